# pyright: reportCallIssue=false
"""Policies that score candidates: their rules in plain Python, and losslessness."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_full_model, fake_model, oracle
from helpers.fake_full_model import Rule
from helpers.fake_model import (
    MASK,
    ROWS,
    SIZE,
    VARIANTS,
    capped,
    prompts_of,
    texts,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.decoding.policy_step import POLICY_NOISE
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import stream
from jaxdave.policies.registry import makers
from jaxdave.sampling.noise import request_key

MAKERS = makers()

SEED, NEW_TOKENS = 5, 16
CLOSE = 1e-4
"""Candidates whose scores are as close as this are not compared here."""


def predictions(logits):
    """(token, probability, 1 - probability, entropy) of each row, in float64."""
    logits = logits.astype(np.float64)
    logits[:, [MASK, *range(SIZE, ROWS)]] = -np.inf
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    token = np.argmax(logits, axis=1)
    doubt = [np.delete(row, t).sum() for row, t in zip(p, token, strict=True)]
    entropy = [-sum(x * math.log(x) for x in row if x > 0) for row in p]
    return token.tolist(), (1 - np.array(doubt)).tolist(), doubt, entropy


@functools.cache
def noise(n: int, draw: int, place: int) -> float:
    """What the interface promises: keyed by request, step, candidate and position."""
    key = request_key(jnp.uint32(SEED), jnp.uint32(0))
    for part in (n, POLICY_NOISE, draw, place):
        key = jax.random.fold_in(key, part)
    return float(jax.random.gumbel(key, mode="high"))


def order_of(doubts, places) -> list[int]:
    return sorted(range(len(places)), key=lambda i: (doubts[i], places[i]))


def info_gain(n, begin, places, prediction, count: int):
    """(indices that each candidate commits, their prior scores)."""
    _, p, doubt, entropy = prediction
    if all(x >= 0.8 for x in p):
        return [list(range(len(places)))] * count, [-sum(entropy)] * count
    picks = [order_of(doubt, places)[:1]]
    for draw in range(count - 1):
        scores = [
            p[i] / 0.2 + noise(n, draw, places[i] - begin) for i in range(len(places))
        ]
        picks.append([int(np.argmax(scores))])
    return picks, [-entropy[pick[0]] for pick in picks]


def lopa(n, begin, places, prediction, count: int):
    _, p, doubt, _ = prediction
    order = order_of(doubt, places)
    anchor = [i for i in order if p[i] >= 0.7] or order[:1]
    rest = [i for i in order if i not in anchor]
    fills = [anchor, *(anchor + rest[j : j + 1] for j in range(count - 1))]
    return fills, [0.0] * count


RULES = {"info_gain": (info_gain, 3), "lopa": (lopa, 2)}
POLICIES = {
    "info_gain": policies.info_gain(candidates=4),
    "lopa": policies.lopa(branches=4, threshold=0.7),
}


class Stage:
    """A request on a hash network: open positions, predictions, the end."""

    def __init__(self, net, prompt, length: int, cache: str | None):
        self.net, self.length, self.cache = net, length, cache
        self.begin, self.end = len(prompt), len(prompt) + NEW_TOKENS
        if cache is None:  # block-causal blocks are decoded whole
            self.end = len(oracle.blank(prompt, NEW_TOKENS, length))
        self.rule = Rule(self.begin, self.end, length, cache or "", False)
        self.frozen, self.block = [], -1

    def first(self, prompt):
        if self.cache is None:
            return oracle.blank(prompt, NEW_TOKENS, self.length)
        return [*prompt, *[MASK] * NEW_TOKENS]

    def is_over(self, canvas) -> bool:
        return bool(oracle.finished(canvas, self.begin, self.end))

    def places(self, canvas) -> list[int]:
        if self.cache is None:
            lo, hi = oracle.first_block(canvas, self.length)
        else:
            lo = self.rule.block(canvas)
            hi = lo + self.length
        return [p for p in range(lo, min(hi, self.end)) if canvas[p] == MASK]

    def begins_block(self, canvas) -> bool:
        """True if the cache must be refreshed from this very state."""
        return not self.is_over(canvas) and self.is_past(canvas)

    def is_past(self, canvas) -> bool:
        """True if nothing is left that may be decoded under the present cache."""
        if MASK not in canvas[: self.end]:
            return True
        if self.cache in (None, "none"):
            return False
        return self.rule.block(canvas) != self.block

    def predict(self, canvas, places):
        """The predictions at some positions, see `predictions`."""
        if self.cache is None:
            logits = fake_model.dense_logits(self.net, canvas, places, self.length)
        else:
            block = self.rule.block(canvas)
            logits = fake_full_model.logits(
                self.net, self.rule, canvas, self.frozen, block, places
            )
        return predictions(logits)


def best_candidate(stage: Stage, kind: str, fills, priors):
    """The state that the policy goes to; None where two are too close to tell."""
    scores = []
    for state, prior in zip(fills, priors, strict=True):
        places = [] if stage.is_past(state) else stage.places(state)
        doubts = stage.predict(state, places)[RULES[kind][1]] if places else [0.0]
        scores.append(prior - sum(doubts) / len(doubts))
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    rivals = [s for s, w in zip(fills, scores, strict=True) if w > scores[best] - CLOSE]
    return fills[best] if all(s == fills[best] for s in rivals) else None


def path(kind: str, net, prompt, length: int, cache):
    """The states of a decode one by one, and its calls; None if one is undecided."""
    stage, n, calls = Stage(net, prompt, length, cache), 0, 0
    state = stage.first(prompt)
    states = [state]
    while not stage.is_over(state):
        if calls == 0 or stage.begins_block(state):
            stage.frozen, calls = state, calls + 1
            stage.block = stage.rule.block(state) if cache else -1
        places = stage.places(state)
        prediction = stage.predict(state, places)
        picks, priors = RULES[kind][0](n, stage.begin, places, prediction, 4)
        fills = [list(state) for _ in picks]
        for fill, pick in zip(fills, picks, strict=True):
            for i in pick:
                fill[places[i]] = prediction[0][i]
        state, n = fills[0], n + 1
        is_one = all(f == fills[0] for f in fills)
        if not (is_one and (stage.is_over(state) or stage.begins_block(state))):
            calls += 1
            state = best_candidate(stage, kind, fills, priors)
        if state is None:
            return None
        states.append(state)
    return states, calls


def built(kind: str, drafts: int, length: int, cache, **rest):
    """FreeDave over a branching policy on a hash network."""
    settings = {"lossy": True, **rest}
    if cache is None:
        return fake_model.build(POLICIES[kind], drafts, length, NEW_TOKENS, **settings)
    return fake_full_model.build(
        POLICIES[kind], drafts, length, NEW_TOKENS, cache, **settings
    )


def cases(*quick_cases):
    """Every (kind, cache); those that are not listed are slow."""
    return [
        pytest.param(
            kind, cache, marks=() if (kind, cache) in quick_cases else pytest.mark.slow
        )
        for kind in sorted(RULES)
        for cache in (None, "none", "prefix", "dual")
    ]


@pytest.mark.parametrize(
    ("kind", "cache"),
    cases(("info_gain", None), ("info_gain", "none"), ("lopa", "dual")),
)
def test_a_candidate_is_weighed_as_the_rule_says(kind, cache):
    decoder, compared, lengths = built(kind, 3, 8, cache), 0, set()
    for salt in range(12):
        net = weights(salt, **VARIANTS[("table", "stops", "chaotic")[salt % 3]])
        prompt = prompts_of([5 + salt], salt)[0]
        expected = path(kind, net, prompt, 8, cache)
        if expected is None:
            continue
        states, calls = expected
        plain, canvases = fake_model.decode(
            capped(decoder, 1), net, [prompt], seed=SEED
        )
        end = len(prompt) + NEW_TOKENS
        assert canvases[0][:end].tolist() == states[-1][:end]
        assert plain.completions[0].steps == len(states) - 1
        assert plain.completions[0].nfe.total == calls
        compared, lengths = compared + 1, lengths | {len(states)}
    assert compared >= 8
    assert len(lengths) > 1


@pytest.mark.parametrize(
    ("kind", "cache"), cases(("info_gain", "dual"), ("lopa", None))
)
def test_drafts_keep_the_text_of_a_policy_that_weighs(kind, cache):
    decoder, saved = built(kind, 4, 4, cache, temperature=0.7), 0

    @settings(max_examples=6)
    @given(st.integers(0, 999), st.sampled_from(sorted(VARIANTS)))
    def holds(salt, variant):
        nonlocal saved
        net, prompts = weights(salt, **VARIANTS[variant]), prompts_of([4, 9, 2], salt)
        plain, canvases = fake_model.decode(capped(decoder, 1), net, prompts, seed=SEED)
        quick, others = fake_model.decode(decoder, net, prompts, seed=SEED)
        assert texts(quick) == texts(plain)
        assert (canvases == others).all()
        for a, b in zip(quick.completions, plain.completions, strict=True):
            assert a.nfe.total <= b.nfe.total
            saved += b.nfe.total - a.nfe.total
        assert (
            texts(generate(decoder, net, prompts[1:2], seed=SEED)) == texts(plain)[1:2]
        )

    holds()
    assert saved > 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_candidate_that_fills_the_window_is_evaluated_by_the_next_call(temperature):
    """What follows it was beyond what the call predicts: it must not be made up.

    Where no token depends on another, drafts hold so far that a bold candidate fills
    the last block of the window, and the next block used to be a copy of it.
    """
    decoder = built("lopa", 4, 4, None, temperature=temperature)
    for salt in (2, 6, 8, 10):
        net, prompts = weights(salt, **VARIANTS["fixed"]), prompts_of([4, 9, 2], salt)
        plain, _ = fake_model.decode(capped(decoder, 1), net, prompts, seed=SEED)
        drafted, _ = fake_model.decode(decoder, net, prompts, seed=SEED)
        assert texts(drafted) == texts(plain)
        for a, b in zip(drafted.completions, plain.completions, strict=True):
            assert a.nfe.total < b.nfe.total


def test_streams_and_wrappers_take_policies_that_weigh():
    net, prompts = weights(3, **VARIANTS["stops"]), prompts_of([6, 11], 3)
    inner = policies.demote(policies.info_gain(candidates=3), (fake_model.STOP,))
    policy = policies.small_blocks(inner, 2)
    decoder = fake_full_model.build(policy, 4, 8, NEW_TOKENS, "dual", True)
    plain = generate(capped(decoder, 1), net, prompts, seed=SEED)
    assert texts(generate(decoder, net, prompts, seed=SEED)) == texts(plain)
    sent = [[], []]
    for update in stream(decoder, net, prompts, seed=SEED):
        sent[update.row] += update.token_ids
    assert [tuple(row) for row in sent] == [row.token_ids for row in plain.completions]


def test_a_real_network_keeps_the_text_too():
    decoder = decoders.freedave(
        fake_model.TINY,
        policies.info_gain(candidates=3),
        draft_steps=3,
        max_new_tokens=12,
    )
    prompts = prompts_of([3, 8], 1, 30)
    for seed in range(2):
        params = fake_model.tiny_params(seed)
        plain = generate(capped(decoder, 1), params, prompts)
        quick = generate(decoder, params, prompts)
        assert texts(quick) == texts(plain)
        assert texts(generate(decoder, params, prompts[:1])) == texts(plain)[:1]


def test_every_policy_that_weighs_has_a_rule_here():
    weighs = {n for n, make in MAKERS.items() if make().scoring is not None}
    assert weighs == set(RULES) == set(POLICIES)


def test_a_lossy_policy_is_refused_unless_asked_for():
    with pytest.raises(ValueError, match=r"lopa.*speculates.*lossy=True"):
        decoders.freedave(fake_model.TINY, policies.lopa())
    wrapped = policies.small_blocks(policies.lopa(), 2)
    with pytest.raises(ValueError, match="lossy=True"):
        decoders.freedave(fake_model.TINY, wrapped, draft_steps=1)
    assert decoders.freedave(fake_model.TINY, policies.lopa(), lossy=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: policies.info_gain(candidates=0), "candidates=0 must be"),
        (lambda: policies.info_gain(temperature=0.0), "temperature=0 must be above"),
        (lambda: policies.info_gain(temperature=-1.0), r"temperature=-1.0 must be"),
        (lambda: policies.info_gain(bypass=1.5), r"bypass=1.5 must be in 0..1"),
        (lambda: policies.lopa(branches=0), "branches=0 must be"),
        (lambda: policies.lopa(threshold=-0.1), r"threshold=-0.1 must be"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
