"""lm-evaluation-harness round trips, offline, with tasks whose data is in this package.

They need the harness, which the `test` extra leaves out: `pip install -e ".[eval]"`.
"""

import json

import pytest
from helpers.lm_tasks import (
    CHOOSE,
    GENERATE,
    MAX_NEW_TOKENS,
    MODEL,
    NUM_PROBLEMS,
    PROBLEMS,
    SETTINGS,
    RecordingHook,
    evaluate,
    make_lm,
    make_request,
)

import jaxdave
from jaxdave.integrations.lm_eval import lm_requests
from jaxdave.integrations.lm_eval.model import JaxDave
from jaxdave.io import checkpoint


def test_a_task_of_texts_goes_round():
    """Every answer is right, and is the text of `jaxdave.generate`."""
    results = evaluate(make_lm(), GENERATE)
    assert results["results"]["words"]["acc,none"] == 1.0
    texts = [sample["resps"][0][0] for sample in results["samples"]["words"]]
    decoder = jaxdave.freedave(
        MODEL.config, draft_steps=4, max_new_tokens=MAX_NEW_TOKENS, numerics="fast"
    )
    prompts = [MODEL.codec.encode_prompt(p.prompt) for p in PROBLEMS]
    rows = jaxdave.generate(decoder, MODEL.params, prompts).completions
    assert texts == [MODEL.codec.decode(row.token_ids) for row in rows]


def test_what_texts_have_taken_is_in_the_results_and_in_a_file(tmp_path):
    """The sums are those of the file's lines, and those of `jaxdave.generate`."""
    file = tmp_path / "stats" / "texts.jsonl"
    results = evaluate(make_lm(stats_file=str(file)), GENERATE)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["task"], line["doc_id"]) for line in lines] == [
        ("words", number) for number in range(NUM_PROBLEMS)
    ]
    stats = results["config"]["jaxdave_stats"]
    names = "valid_tokens steps reference_nfe proposed_drafts accepted_drafts".split()
    for name in names:
        assert stats[name] == sum(line[name] for line in lines) > 0
    calls = sum(line["nfe"]["total"] for line in lines)
    assert stats["nfe"]["total"] == calls
    assert stats["tokens_per_nfe"] == stats["valid_tokens"] / calls
    assert stats["hit_rate"] == stats["accepted_drafts"] / stats["proposed_drafts"]
    assert stats["texts"] == NUM_PROBLEMS and stats["memory"]["bytes"] > 0
    assert stats["tasks"] == {
        "words": {k: v for k, v in stats.items() if k not in ("tasks", "memory")}
    }
    decoder = jaxdave.freedave(MODEL.config, max_new_tokens=MAX_NEW_TOKENS, **SETTINGS)
    prompts = [MODEL.codec.encode_prompt(p.prompt) for p in PROBLEMS]
    rows = jaxdave.generate(decoder, MODEL.params, prompts).completions
    for line, row in zip(lines, rows, strict=True):
        assert {**row.to_dict(), **line} == {**line, "token_ids": list(row.token_ids)}


def test_stop_strings_are_taken_as_the_task_gives_them(caplog):
    """Backslashes and all, with a warning; or not at all."""
    translate = lm_requests.generation_request

    def stops(until, **args):
        lm = make_lm(**args)
        kwargs = {"until": until, "max_gen_toks": 4}
        return translate(lm.options, MODEL, lm.tok_encode, "x", kwargs).stops

    assert stops(["\n\n", "", "END"]) == ("\n\n", "END") and not caplog.records
    assert stops("END") == ("END",) and stops([None]) == ()
    assert stops([r"\n\n"]) == (r"\n\n",)
    (warning,) = caplog.records
    assert "takes the stop string" in warning.message and "\n" not in warning.message
    assert stops(["END"], escape_until=True) == ()
    with pytest.raises(ValueError, match="stop=7 must be a text"):
        stops([7])


def test_a_task_of_choices_goes_round():
    """The right answer is likelier than another's, and than one with a digit more."""
    results = evaluate(make_lm(mc_num=15), CHOOSE)
    assert results["results"]["choices"]["acc,none"] == 1.0


def test_settings_differ_by_request_and_order_is_kept():
    """Stop strings, lengths and temperatures of their own, whatever the batch."""
    chat = MODEL.codec.render
    prompts = [chat([{"role": "user", "content": p.prompt}]) for p in PROBLEMS]
    gen_kwargs = [
        {"until": ["="], "max_gen_toks": MAX_NEW_TOKENS},
        {"until": "####", "max_gen_toks": MAX_NEW_TOKENS},
        {"max_gen_toks": 3},
        {"until": [], "max_gen_toks": MAX_NEW_TOKENS},
        {
            "until": ["nothing", ""],
            "max_new_tokens": MAX_NEW_TOKENS,
            "temperature": 0.0,
        },
    ]
    requests = [
        make_request("generate_until", prompt, kwargs)
        for prompt, kwargs in zip(prompts, gen_kwargs, strict=True)
    ]
    cached = []
    texts = {}
    for size in (1, 8):
        lm = make_lm(batch_size=size)
        lm.set_cache_hook(RecordingHook(cached))
        texts[size] = lm.generate_until(requests, True)
    assert texts[1] == texts[8]
    first, second, short, *whole = texts[8]
    answers = [p.answer for p in PROBLEMS]
    assert first == answers[0].partition("=")[0]
    assert second == answers[1].partition("####")[0]
    assert answers[2].startswith(short) and len(MODEL.codec.encode_text(short)) == 3
    assert whole == answers[3:]
    assert sorted(text for _, _, text in cached) == sorted(texts[1] + texts[8])
    for kind, (context, kwargs), text in cached:
        at = prompts.index(context)
        assert (kind, kwargs, text) == ("generate_until", gen_kwargs[at], texts[8][at])


def test_model_args_take_precedence_over_the_task():
    """Whole blocks under full attention; a long prompt loses its beginning."""
    model = checkpoint.load("llada-1m")
    gen_kwargs = {"max_gen_toks": 20, "temperature": 0.5, "top_k": 3, "do_sample": True}
    lm = JaxDave(model, max_length=100)

    def translate(lm, kwargs):
        text = "word " * 90 + "end"
        return lm_requests.generation_request(
            lm.options, model, lm.tok_encode, text, kwargs
        )

    request = translate(lm, gen_kwargs)
    s = request.settings
    assert (request.max_new_tokens, s.max_new_tokens) == (20, 32)
    assert (s.temperature, s.top_k) == (0.5, 3)
    assert list(request.prompt) == lm.tok_encode("word " * 90 + "end")[-68:]
    # Without a temperature there is nothing for top_k to cut.
    s = translate(lm, {**gen_kwargs, "do_sample": False}).settings
    assert (s.temperature, s.top_k) == (0.0, 0)
    lm = JaxDave(model, temperature=0.1, max_new_tokens=64)
    request = translate(lm, gen_kwargs)
    s = request.settings
    assert (request.max_new_tokens, s.max_new_tokens) == (64, 64)
    assert (s.temperature, s.top_k) == (0.1, 3)
    assert len(request.prompt) > 68


def test_the_chat_template_and_an_answer_to_continue():
    lm = make_lm()
    turns = [{"role": "user", "content": "How many?"}]
    rendered = lm.apply_chat_template(turns)
    assert lm.tok_encode(rendered) == MODEL.codec.encode_prompt("How many?")
    unfinished = [*turns, {"role": "assistant", "content": "1+"}]
    text = lm.apply_chat_template(unfinished, add_generation_prompt=False)
    assert text == rendered + "1+"
    with pytest.raises(ValueError, match="role 'user' and must be the assistant's"):
        lm.apply_chat_template(turns, add_generation_prompt=False)
    assert lm.tokenizer_name == "sdar-1m"
    assert "add_generation_prompt" in (lm.chat_template(True) or "")
    assert lm.chat_template(False) is None
