"""Log-likelihoods as lm-evaluation-harness asks for them."""

import pytest
from helpers.lm_tasks import MODEL, PROBLEMS, RecordingHook, make_lm, make_request

pytestmark = pytest.mark.usefixtures("quick_compiles")


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
