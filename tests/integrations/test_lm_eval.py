"""lm-evaluation-harness round trips, offline, with tasks whose data is in this package.

They need the harness, which the `test` extra leaves out: `pip install -e ".[eval]"`.
"""

import pytest
from helpers.lm_tasks import (
    CHOOSE,
    GENERATE,
    MODEL,
    PROBLEMS,
    ROOM,
    Hook,
    ask,
    evaluated,
    of,
)

import jaxdave
from jaxdave.integrations.lm_eval import lm_requests
from jaxdave.integrations.lm_eval.model import JaxDave
from jaxdave.io import checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiles")


def test_a_task_of_texts_goes_round():
    """Every answer is right, and is what `jaxdave.generate` says."""
    found = evaluated(of(), GENERATE)
    assert found["results"]["words"]["acc,none"] == 1.0
    texts = [sample["resps"][0][0] for sample in found["samples"]["words"]]
    decoder = jaxdave.freedave(
        MODEL.config, draft_steps=4, max_new_tokens=ROOM, numerics="fast"
    )
    prompts = [MODEL.codec.encode_prompt(p.prompt) for p in PROBLEMS]
    rows = jaxdave.generate(decoder, MODEL.params, prompts).completions
    assert texts == [MODEL.codec.decode(row.token_ids) for row in rows]


def test_a_task_of_choices_goes_round():
    """The right answer is likelier than another's, and than one with a digit more."""
    found = evaluated(of(mc_num=15), CHOOSE)
    assert found["results"]["choices"]["acc,none"] == 1.0


def test_settings_differ_by_request_and_order_is_kept():
    """Stop strings, rooms and temperatures of their own, whatever the batch."""
    chat = MODEL.codec.render
    prompts = [chat([{"role": "user", "content": p.prompt}]) for p in PROBLEMS]
    said = [
        {"until": ["="], "max_gen_toks": ROOM},
        {"until": "####", "max_gen_toks": ROOM},
        {"max_gen_toks": 3},
        {"until": [], "max_gen_toks": ROOM},
        {"until": ["nothing", ""], "max_new_tokens": ROOM, "temperature": 0.0},
    ]
    requests = [
        ask("generate_until", prompt, kwargs)
        for prompt, kwargs in zip(prompts, said, strict=True)
    ]
    seen = []
    texts = {}
    for size in (1, 8):
        lm = of(batch_size=size)
        lm.set_cache_hook(Hook(seen))
        texts[size] = lm.generate_until(requests, True)
    assert texts[1] == texts[8]
    first, second, short, *whole = texts[8]
    answers = [p.answer for p in PROBLEMS]
    assert first == answers[0].partition("=")[0]
    assert second == answers[1].partition("####")[0]
    assert answers[2].startswith(short) and len(MODEL.codec.encode_text(short)) == 3
    assert whole == answers[3:]
    assert sorted(text for _, _, text in seen) == sorted(texts[1] + texts[8])
    for kind, (context, kwargs), text in seen:
        at = prompts.index(context)
        assert (kind, kwargs, text) == ("generate_until", said[at], texts[8][at])


def test_what_is_named_goes_before_what_a_task_says():
    """Room in whole blocks under full attention; a long prompt loses its beginning."""
    model = checkpoint.load("llada-1m")
    said = {"max_gen_toks": 20, "temperature": 0.5, "top_k": 3, "do_sample": True}
    lm = JaxDave(model, max_length=100)
    ask_for = lambda lm, kwargs: lm_requests.generation(  # noqa: E731
        lm.options, model, lm.tok_encode, "word " * 90 + "end", kwargs
    )
    asked = ask_for(lm, said)
    s = asked.how
    assert (asked.room, s.max_new_tokens, s.temperature, s.top_k) == (20, 32, 0.5, 3)
    assert list(asked.prompt) == lm.tok_encode("word " * 90 + "end")[-68:]
    # Without a temperature there is nothing for top_k to cut.
    s = ask_for(lm, {**said, "do_sample": False}).how
    assert (s.temperature, s.top_k) == (0.0, 0)
    lm = JaxDave(model, temperature=0.1, max_new_tokens=64)
    asked = ask_for(lm, said)
    s = asked.how
    assert (asked.room, s.max_new_tokens, s.temperature, s.top_k) == (64, 64, 0.1, 3)
    assert len(asked.prompt) > 68


def test_the_chat_template_and_a_begun_answer():
    lm = of()
    turns = [{"role": "user", "content": "How many?"}]
    asked = lm.apply_chat_template(turns)
    assert lm.tok_encode(asked) == MODEL.codec.encode_prompt("How many?")
    begun = [*turns, {"role": "assistant", "content": "1+"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == asked + "1+"
    with pytest.raises(ValueError, match="role 'user' and must be the assistant's"):
        lm.apply_chat_template(turns, add_generation_prompt=False)
    assert lm.tokenizer_name == "sdar-1m"
    assert "add_generation_prompt" in (lm.chat_template(True) or "")
    assert lm.chat_template(False) is None
