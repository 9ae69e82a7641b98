"""The integration without its harness: stop strings, batches, options."""

import sys

import pytest
from helpers import fake_model

from jaxdave import policies
from jaxdave.engine.stop_strings import cut_at_stop
from jaxdave.integrations.lm_eval import cli, options
from jaxdave.integrations.lm_eval.generate_until import (
    GenerationRequest,
    generate_answers,
)

LETTERS = "abcdefghijklm"


def letters(ids) -> str:
    return "".join(LETTERS[i] for i in ids)


def texts_of(decoder, params, requests, batch_size: int, seed: int = 0) -> dict:
    answers = generate_answers(
        decoder, params, letters, requests, batch_size=batch_size, seed=seed
    )
    return {index: answer.text for index, answer in answers}


def toy_decoder(max_new_tokens: int):
    return fake_model.build(policies.static(1), 2, 4, max_new_tokens)


def test_answers_end_at_their_own_stop_strings_in_any_batch():
    params = fake_model.weights(3)
    prompts = [tuple(p) for p in fake_model.prompts_of([5, 9, 3, 9, 4])]

    def complete(max_new_tokens, prompt):
        decoder = toy_decoder(max_new_tokens)
        return letters(
            fake_model.generate(decoder, params, [prompt]).completions[0].token_ids
        )

    whole = [complete(24, p) for p in prompts]
    stops = [(), (whole[1][2:4],), (whole[2][-1],), ("xyz",), (whole[4][0],)]
    limits = [24, 24, 24, 5, 24]
    requests = [
        GenerationRequest(*request, settings=24)
        for request in zip(prompts, limits, stops, strict=True)
    ]
    requests.append(GenerationRequest(prompts[0], 16, (), settings=16))
    expected = [
        cut_at_stop(text[:limit], stop)
        for text, limit, stop in zip(whole, limits, stops, strict=True)
    ]
    for size in (1, 4):
        texts = texts_of(toy_decoder, params, requests, size)
        assert [texts[i] for i in range(5)] == expected
        assert texts[5] == complete(16, prompts[0])


def test_a_batch_ends_with_the_last_of_its_stop_strings(monkeypatch):
    """Calls are saved, which the text does not show."""
    from jaxdave.engine import generate_until as module

    calls = []
    stream = module.stream

    def spy(*args, **settings):
        made = stream(*args, **settings)
        updates = made._updates

        def seen():
            for update in updates:
                calls.append(update.call)
                yield update

        made._updates = seen()
        return made

    monkeypatch.setattr(module, "stream", spy)
    params = fake_model.weights(3)
    (prompt,) = fake_model.prompts_of([5])
    request = GenerationRequest(tuple(prompt), 24, (), settings=24)

    def complete(request):
        return texts_of(toy_decoder, params, [request], 1)[0]

    text, num_calls = complete(request), calls[-1]
    calls.clear()
    stops = (text[3:5],)
    assert complete(request._replace(stops=stops)) == cut_at_stop(text, stops)
    assert 0 < calls[-1] < num_calls


def test_noise_is_keyed_by_the_prompt_and_its_repeats():
    """Not by the batch; a second request with the same prompt gets another text."""
    params = fake_model.weights(3)

    def warm_decoder(max_new_tokens):
        return fake_model.build(
            policies.static(1), 1, 4, max_new_tokens, temperature=1.0
        )

    def complete(requests, size, seed):
        return texts_of(warm_decoder, params, requests, size, seed)

    prompts = [tuple(p) for p in fake_model.prompts_of([5, 9, 5])]
    requests = [GenerationRequest(prompts[i], 8, (), settings=8) for i in (0, 1, 0, 2)]
    texts = {size: complete(requests, size, seed=0) for size in (1, 4)}
    assert texts[1] == texts[4]
    assert texts[1][0] != texts[1][2]
    alone = complete(requests[1:2], 1, seed=0)
    assert alone[0] == texts[1][1]
    other_seed = complete(requests[1:2], 1, seed=1)
    assert other_seed[0] != alone[0]


def test_options_are_read_as_the_harness_parses_them():
    read = options.read(
        {
            "pretrained": 7, "draft_steps": 4, "threshold": 1, "batch_size": "auto:4",
            "mc_num": 3, "add_bos_token": True, "device": "cuda", "method": "threshold",
        }
    )  # fmt: skip
    s = read.settings
    assert (read.load.model, s.draft_steps, s.threshold, read.batch_size) == (
        "7",
        4,
        1.0,
        8,
    )
    assert type(s.threshold) is float and s.method == "threshold"
    assert (read.scoring.mc_num, read.reading.add_bos_token) == (3, True)
    assert "threshold" in read.given and "temperature" not in read.given
    assert options.read({"draft_steps": "auto", "batch_size": "3"}).batch_size == 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"colour": "red"}, "model_args: 'colour' is unknown; use add_bos_token"),
        ({"threshold": "high"}, "threshold='high' must be a number or none"),
        ({"draft_steps": "two"}, "draft_steps='two' must be a whole number or 'auto'"),
        ({"add_bos_token": 1}, "add_bos_token=1 must be true or false"),
        ({"draft_steps": 0}, "draft_steps=0 must be at least 1"),
        ({"mc_num": 0}, "mc_num=0 must be at least 1"),
        ({"likelihood": "exact"}, "likelihood='exact' is unknown"),
        ({"max_length": 1}, "max_length=1 must be at least 2"),
        ({"batch_size": "many"}, "batch_size='many' must be a whole number"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_bad_options_are_one_line(args, words):
    with pytest.raises(ValueError) as caught:
        options.read(args)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_harness_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1
    assert "pip install 'jaxdave[eval]'" in err
