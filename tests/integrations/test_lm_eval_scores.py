"""Log-likelihoods as lm-evaluation-harness asks for them."""

import pytest
from helpers.lm_tasks import MODEL, PROBLEMS, Hook, ask, of

pytestmark = pytest.mark.usefixtures("quick_compiles")


def test_likelihoods_do_not_depend_on_the_batch():
    requests = [
        ask("loglikelihood", "Q: " + p.prompt + " ", p.answer) for p in PROBLEMS
    ]
    requests.append(ask("loglikelihood", "", PROBLEMS[0].answer))
    requests.append(ask("loglikelihood", "no more", ""))
    alone = of(batch_size=1, mc_num=15).loglikelihood(requests, True)
    lm, seen = of(mc_num=15), []
    lm.set_cache_hook(Hook(seen))
    together = lm.loglikelihood(requests, True)
    assert [greedy for _, greedy in together[:-1]] == [False] * 6
    assert together[-1] == (0.0, True)
    for (a, _), (b, _) in zip(alone, together, strict=True):
        assert a == pytest.approx(b, abs=1e-3) and a <= 0
    assert len({round(value, 3) for value, _ in together}) == 7
    kept = {args: value for _, args, value in seen}
    assert kept == {r.args: x for r, x in zip(requests[:-1], together, strict=False)}


def test_a_continuation_begins_where_its_text_does():
    """After a chat template's newline, but before spaces and inside shared tokens."""
    lm, encode = of(), MODEL.codec.encode_text
    asked = lm.apply_chat_template([{"role": "user", "content": "How many?"}])
    assert asked.endswith("\n")
    assert lm._encode_pair(asked, "1+2") == (encode(asked), encode("1+2"))
    assert lm._encode_pair("Tom has  ", "3") == (encode("Tom has"), encode("  3"))
    assert lm._encode_pair("a To", "m has") == (encode("a"), encode(" Tom has"))
    assert lm._encode_pair("Tom", "") == (encode("Tom"), [])


def test_the_chain_and_what_is_greedy():
    """The answer that greedy decoding writes, token by token, and another."""
    context = MODEL.codec.render([{"role": "user", "content": PROBLEMS[0].prompt}])
    right, wrong = PROBLEMS[0].answer[:5], "77777"
    requests = [ask("loglikelihood", context, text) for text in (right, wrong)]
    lm = of(likelihood="chain", is_greedy=True)
    (good, is_good), (bad, is_bad) = lm.loglikelihood(requests, True)
    assert is_good and not is_bad
    assert -0.1 < good <= 0 and bad < -10


def test_long_texts_are_scored_in_windows():
    text = " ".join(p.prompt for p in PROBLEMS)
    lm = of(max_length=70, mc_num=3)
    (whole,) = lm.loglikelihood_rolling([ask("loglikelihood_rolling", text)], True)
    ids = lm.tok_encode(text)
    assert len(ids) > 2 * 69
    cut = [ids[at : at + 69] for at in range(0, len(ids), 69)]
    before = [[lm.eot_token_id], *([part[-1]] for part in cut)]
    pairs = [(("", ""), *pair) for pair in zip(before, cut, strict=False)]
    parts = lm._loglikelihood_tokens(pairs[:-1], True)
    # The last window sees as much of what stands before it as fits.
    size = len(cut[-1])
    parts += lm._loglikelihood_tokens([(("", ""), ids[-69 - 1 : -size], cut[-1])], True)
    assert whole == pytest.approx(sum(value for value, _ in parts), rel=1e-4)
