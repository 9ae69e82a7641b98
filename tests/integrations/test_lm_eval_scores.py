"""Log-likelihoods as lm-evaluation-harness asks for them."""

import functools

import pytest
from helpers.lm_tasks import (
    MODEL,
    PROBLEMS,
    SETTINGS,
    RecordingHook,
    make_lm,
    make_request,
)

from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.eval.likelihood import masks
from jaxdave.eval.likelihood.batching import Question, log_likelihoods
from jaxdave.eval.likelihood.score import make_scorer
from jaxdave.integrations.lm_eval.model import JaxDave
from jaxdave.io import checkpoint


def make_full_lm(**args) -> JaxDave:
    """A full-attention model as the harness sees it."""
    return JaxDave(llada(), **{**SETTINGS, "batch_size": 8, **args})


def test_likelihoods_do_not_depend_on_the_batch():
    requests = [
        make_request("loglikelihood", "Q: " + p.prompt + " ", p.answer)
        for p in PROBLEMS
    ]
    requests.append(make_request("loglikelihood", "", PROBLEMS[0].answer))
    requests.append(make_request("loglikelihood", "no more", ""))
    alone = make_lm(batch_size=1, mc_num=15).loglikelihood(requests, True)
    lm, cached = make_lm(mc_num=15), []
    lm.set_cache_hook(RecordingHook(cached))
    together = lm.loglikelihood(requests, True)
    assert [greedy for _, greedy in together[:-1]] == [False] * 6
    assert together[-1] == (0.0, True)
    for (a, _), (b, _) in zip(alone, together, strict=True):
        assert a == pytest.approx(b, abs=1e-3) and a <= 0
    assert len({round(value, 3) for value, _ in together}) == 7
    scores = {args: value for _, args, value in cached}
    assert scores == {r.args: x for r, x in zip(requests[:-1], together, strict=False)}


def test_a_continuation_begins_where_its_text_does():
    """After a chat template's newline, but before spaces and inside shared tokens."""
    lm, encode = make_lm(), MODEL.codec.encode_text
    rendered = lm.apply_chat_template([{"role": "user", "content": "How many?"}])
    assert rendered.endswith("\n")
    assert lm._encode_pair(rendered, "1+2") == (encode(rendered), encode("1+2"))
    assert lm._encode_pair("Tom has  ", "3") == (encode("Tom has"), encode("  3"))
    assert lm._encode_pair("a To", "m has") == (encode("a"), encode(" Tom has"))
    assert lm._encode_pair("Tom", "") == (encode("Tom"), [])


def test_the_chain_and_is_greedy():
    """The answer that greedy decoding writes, token by token, and another."""
    context = MODEL.codec.render([{"role": "user", "content": PROBLEMS[0].prompt}])
    right, wrong = PROBLEMS[0].answer[:5], "77777"
    requests = [make_request("loglikelihood", context, text) for text in (right, wrong)]
    lm = make_lm(likelihood="chain", is_greedy=True)
    (good, is_good), (bad, is_bad) = lm.loglikelihood(requests, True)
    assert is_good and not is_bad
    assert -0.1 < good <= 0 and bad < -10


@functools.cache
def llada():
    return checkpoint.load("llada-1m")


def test_what_is_scored_of_a_pair_and_how():
    """The context before its target, and both, against the questions themselves."""
    context, target = PROBLEMS[0].prompt[:9], PROBLEMS[0].answer[:3]
    lm = make_full_lm(likelihood="reverse", scored="context", guidance=0.5)
    before, after = lm._encode_pair(context, target)
    ask = lambda lm: lm.loglikelihood(  # noqa: E731
        [make_request("loglikelihood", context, target)], True
    )[0][0]
    scorer = make_scorer(llada().config, numerics="fast", guidance=0.5)
    question = Question((), tuple(before), tuple(after))
    params = llada().params
    (want,) = dict(
        log_likelihoods(scorer, params, [question], masks.reverse_chain)
    ).values()
    assert ask(lm) == pytest.approx(want, abs=1e-3)
    both = ask(make_full_lm(likelihood="one_pass", scored="both"))
    whole = Question((), (*before, *after))
    plain = make_scorer(llada().config, numerics="fast")
    (want,) = dict(log_likelihoods(plain, params, [whole], masks.one_pass)).values()
    assert both == pytest.approx(want / len(whole.target), abs=1e-3)


def test_a_greedy_text_of_full_attention_is_of_its_own_length():
    context = llada().codec.render([{"role": "user", "content": PROBLEMS[0].prompt}])
    lm = make_full_lm(likelihood="confidence", is_greedy=True)
    ids = tuple(lm.tok_encode(context))
    decoder = decoders.static(
        llada().config, max_new_tokens=4, block_length=4, cache="none"
    )
    text = generate(decoder, llada().params, [ids]).completions[0].token_ids
    asked = [(("", ""), list(ids), list(answer)) for answer in (text, (text[0],) * 4)]
    (good, is_good), (bad, is_bad) = lm._loglikelihood_tokens(asked, True)
    assert is_good and not is_bad and good > bad


def test_long_texts_are_scored_in_windows():
    text = " ".join(p.prompt for p in PROBLEMS)
    lm = make_lm(max_length=70, mc_num=3)
    (whole,) = lm.loglikelihood_rolling(
        [make_request("loglikelihood_rolling", text)], True
    )
    ids = lm.tok_encode(text)
    assert len(ids) > 2 * 69
    windows = [ids[at : at + 69] for at in range(0, len(ids), 69)]
    before = [[lm.eot_token_id], *([part[-1]] for part in windows)]
    pairs = [(("", ""), *pair) for pair in zip(before, windows, strict=False)]
    parts = lm._loglikelihood_tokens(pairs[:-1], True)
    # The last window sees as much of what stands before it as fits.
    size = len(windows[-1])
    parts += lm._loglikelihood_tokens(
        [(("", ""), ids[-69 - 1 : -size], windows[-1])], True
    )
    assert whole == pytest.approx(sum(value for value, _ in parts), rel=1e-4)
