"""What an integration needs beside its harness: stop strings, batches, options."""

import sys

import pytest
from helpers import fake_model
from hypothesis import given
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.integrations.lm_eval import cli, options
from jaxdave.integrations.lm_eval.generate_until import Asked, answers, cut, is_settled

LETTERS = "abcdefghijklm"
SHORT = st.text("ab", max_size=4)


def letters(ids) -> str:
    return "".join(LETTERS[i] for i in ids)


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("one two", (), "one two"),
        ("one two", ("",), "one two"),
        ("one two", (" ", "tw"), "one"),
        ("one two", ("tw", " "), "one"),
        ("one two", ("three",), "one two"),
        ("one two", ("one",), ""),
    ],
)
def test_text_is_cut_before_the_first_stop_string(text, stops, kept):
    assert cut(text, stops) == kept


@given(SHORT, SHORT, st.lists(SHORT, max_size=3))
def test_a_settled_text_is_cut_alike_whatever_follows(text, more, stops):
    if is_settled(text, stops):
        assert cut(text + more, stops) == cut(text, stops)


def test_a_text_settles_no_later_than_it_must():
    assert not is_settled("ab", ("b", "ab c"))  # "ab c" may begin before "b"
    assert is_settled("ab d", ("b", "ab c"))
    assert is_settled("ab", ("b",))
    assert not is_settled("ab\ufffd\ufffd", ("b", "ab c"))


def toy_decoder(room: int):
    return fake_model.build(policies.static(1), 2, 4, room)


@pytest.mark.usefixtures("quick_compiles")
def test_answers_end_at_their_own_stop_strings_in_any_batch():
    params = fake_model.weights(3)
    prompts = [tuple(p) for p in fake_model.prompts_of([5, 9, 3, 9, 4])]
    said = lambda room, p: letters(  # noqa: E731
        fake_model.generate(toy_decoder(room), params, [p]).completions[0].token_ids
    )
    whole = [said(24, p) for p in prompts]
    stops = [(), (whole[1][2:4],), (whole[2][-1],), ("xyz",), (whole[4][0],)]
    rooms = [24, 24, 24, 5, 24]
    asked = [Asked(*one, 24) for one in zip(prompts, rooms, stops, strict=True)] + [
        Asked(prompts[0], 16, (), 16)
    ]
    want = [cut(text[:r], s) for text, r, s in zip(whole, rooms, stops, strict=True)]
    for rows in (1, 4):
        found = dict(answers(toy_decoder, params, letters, asked, rows=rows, seed=0))
        assert [found[i] for i in range(5)] == want
        assert found[5] == said(16, prompts[0])


@pytest.mark.usefixtures("quick_compiles")
def test_a_batch_ends_with_the_last_of_its_stop_strings(monkeypatch):
    """Calls are saved, which the text does not show."""
    from jaxdave.integrations.lm_eval import generate_until as module

    calls = []
    stream = module.stream

    def spy(*args, **settings):
        for update in stream(*args, **settings):
            calls.append(update.call)
            yield update

    monkeypatch.setattr(module, "stream", spy)
    params = fake_model.weights(3)
    (prompt,) = fake_model.prompts_of([5])
    asked = Asked(tuple(prompt), 24, (), 24)

    def made(one):
        return dict(answers(toy_decoder, params, letters, [one], rows=1, seed=0))

    text, most = made(asked)[0], calls[-1]
    calls.clear()
    assert made(asked._replace(stops=(text[3:5],)))[0] == cut(text, (text[3:5],))
    assert 0 < calls[-1] < most


@pytest.mark.usefixtures("quick_compiles")
def test_noise_is_keyed_by_the_prompt_and_its_repeats():
    """Not by the batch; the same prompt asked again gets another answer."""
    params = fake_model.weights(3)
    hot = lambda room: fake_model.build(policies.static(1), 1, 4, room, temperature=1.0)  # noqa: E731
    prompts = [tuple(p) for p in fake_model.prompts_of([5, 9, 5])]
    asked = [Asked(prompts[i], 8, (), 8) for i in (0, 1, 0, 2)]
    found = {
        rows: dict(answers(hot, params, letters, asked, rows=rows, seed=0))
        for rows in (1, 4)
    }
    assert found[1] == found[4]
    assert found[1][0] != found[1][2]
    alone = dict(answers(hot, params, letters, asked[1:2], rows=1, seed=0))
    assert alone[0] == found[1][1]
    other = dict(answers(hot, params, letters, asked[1:2], rows=1, seed=1))
    assert other[0] != alone[0]


def test_options_are_read_as_the_harness_parses_them():
    read = options.read(
        {
            "pretrained": 7, "draft_steps": 4, "threshold": 1, "batch_size": "auto:4",
            "mc_num": 3, "add_bos_token": True, "device": "cuda", "method": "threshold",
        }
    )  # fmt: skip
    s = read.settings
    assert (s.model, s.draft_steps, s.threshold, s.batch_size) == ("7", 4, 1.0, 8)
    assert type(s.threshold) is float and s.method == "threshold"
    assert (read.scoring.mc_num, read.reading.add_bos_token) == (3, True)
    assert "threshold" in read.given and "temperature" not in read.given
    assert (
        options.read({"draft_steps": "auto", "batch_size": "3"}).settings.batch_size
        == 3
    )


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
