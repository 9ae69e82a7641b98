"""Guarded numerics: drafts are evaluated in any shape, the text is the trusted one.

In the hash network logits of block states have an error, a hash of their index in the
call; prefill chunks, the trusted shape, have none. The oracle only knows exact logits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import fake_model, oracle
from helpers.fake_model import build, capped, prompts_of, texts, weights

from jaxdave import policies
from jaxdave.core.config import Numerics
from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.engine import autotune, decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import stream
from jaxdave.numerics.error_bounds import prediction_error

FUZZ = 0.25


def oracle_results(net, prompts, room, length, policy):
    return [oracle.oracle(net, p, room, length, policy.name) for p in prompts]


@pytest.mark.parametrize(
    ("policy", "drafts", "length"),
    [
        (policies.static(1), (1, 4), 4),
        (policies.static(2), 8, 8),
        (policies.threshold(0.3), 3, 4),
        pytest.param(policies.left_to_right(1), 1, 1, marks=pytest.mark.slow),
        pytest.param(policies.static(1), (2, 8), 1, marks=pytest.mark.slow),
        pytest.param(policies.threshold(0.3), (1, 2, 6), 8, marks=pytest.mark.slow),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_inexact_logits_give_the_trusted_text(policy, drafts, length):
    decoder = build(policy, drafts, length, 30, numerics="guarded")
    assert decoder.spec.numerics is Numerics.GUARDED
    prompts = prompts_of([3, 17, 9], length)
    for seed in range(12):
        net = weights(seed, fuzz=FUZZ)
        result = generate(decoder, net, prompts)
        want = oracle_results(net, prompts, 30, length, policy)
        assert [row.token_ids for row in result.completions] == [
            w.token_ids for w in want
        ]
        for row, truth in zip(result.completions, want, strict=True):
            assert row.steps == truth.steps
            # The prefill takes the first step, or leaves it to a recheck call.
            assert row.steps - sum(row.accepted) in (0, 1)
            assert len(row.accepted) == row.nfe.total - 1


@pytest.mark.parametrize(
    "temperature", [pytest.param(0.0, marks=pytest.mark.slow), 0.7]
)
def test_the_text_is_that_of_every_draft_length_and_batch(temperature):
    prompts, net = prompts_of([2, 21, 8], 5), weights(5, fuzz=FUZZ)
    settings = {"numerics": "guarded", "temperature": temperature}
    plain = build(policies.static(1), 1, 4, 30, **settings)
    want = texts(generate(plain, net, prompts, seed=3))
    decoder = build(policies.static(1), (1, 2, 6), 4, 30, **settings)
    for cap in (1, 3, 6):
        quick = generate(capped(decoder, cap), net, prompts, seed=3)
        assert texts(quick) == want
    alone = generate(decoder, net, prompts[1:2], seed=3)
    assert texts(alone) == want[1:2]


def test_without_rechecks_inexact_logits_change_the_text():
    decoder = build(policies.static(1), 8, 4, 30, numerics="guarded")
    spec = dataclasses.replace(decoder.spec, numerics=Numerics.FAST)
    loose = dataclasses.replace(decoder, spec=spec)
    prompts, changed = prompts_of([3, 17, 9], 1), 0
    for seed in range(4):
        net = weights(seed, fuzz=FUZZ)
        want = [
            t.token_ids for t in oracle_results(net, prompts, 30, 4, policies.static(1))
        ]
        found = [row.token_ids for row in generate(loose, net, prompts).completions]
        changed += found != want
        guards = [
            row.nfe.recheck for row in generate(decoder, net, prompts).completions
        ]
        assert all(guards)
    assert changed


def test_exact_logits_need_no_recheck():
    decoder = build(policies.left_to_right(1), 8, 4, 30, numerics="guarded")
    rows = generate(decoder, weights(1), prompts_of([3, 17], 1)).completions
    assert [row.nfe.recheck for row in rows] == [0, 0]


def test_streamed_is_generated():
    decoder = build(policies.static(1), 8, 4, 30, numerics="guarded")
    net, prompts = weights(2, fuzz=FUZZ), prompts_of([3, 17], 1)
    sent = [[], []]
    for update in stream(decoder, net, prompts):
        sent[update.row] += update.token_ids
    rows = generate(decoder, net, prompts).completions
    assert [tuple(row) for row in sent] == [row.token_ids for row in rows]


@pytest.mark.parametrize(
    ("cache", "dtype"),
    [
        (None, "bfloat16"),
        pytest.param(None, "float16", marks=pytest.mark.slow),
        pytest.param("dual", "float32", marks=pytest.mark.slow),
        pytest.param("dual", "float16", marks=pytest.mark.slow),
        pytest.param("prefix", "bfloat16", marks=pytest.mark.slow),
        pytest.param(None, "float32", marks=pytest.mark.slow),
        pytest.param("dual", "bfloat16", marks=pytest.mark.slow),
        pytest.param("none", "bfloat16", marks=pytest.mark.slow),
        pytest.param("none", "float32", marks=pytest.mark.slow),
    ],
)
def test_transformers_keep_their_text_in_any_shape(cache, dtype):
    config = fake_model.TINY
    if cache is not None:
        config = dataclasses.replace(config, attention="full", family="llada")
    prompts = prompts_of([5, 18, 9], 1, 30)
    common = {"block_length": 4, "max_new_tokens": 24, "cache": cache}
    params = jax.tree.map(lambda a: a.astype(dtype), fake_model.tiny_params(1))
    plain = decoders.static(config, **common)
    want = generate(plain, params, prompts).completions
    assert plain.numerics == "guarded"
    decoder = decoders.freedave(config, draft_steps=(2, 6), **common)
    rows = generate(decoder, params, prompts).completions
    assert [r.token_ids for r in rows] == [r.token_ids for r in want]
    assert sum(r.nfe.total for r in rows) < sum(r.nfe.total for r in want)
    alone = generate(decoder, params, prompts[:1]).completions[0]
    assert alone.token_ids == want[0].token_ids


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param("entropy:steps=4", marks=pytest.mark.slow),
        "factor:factor=0.5",
        pytest.param("topk_margin:steps=4,alg_temp=0.5", marks=pytest.mark.slow),
        pytest.param("eb_sampler:gamma=2,proxy=confidence", marks=pytest.mark.slow),
        pytest.param("hierarchical:threshold=0.5", marks=pytest.mark.slow),
        pytest.param("prophet:steps=4,early=2,mid=1", marks=pytest.mark.slow),
        pytest.param("sched:steps=4,tau_high=2,tau_low=1", marks=pytest.mark.slow),
    ],
)
def test_other_rules_have_one_text_too(rule):
    policy, prompts = policies.parse(rule), prompts_of([3, 17, 9], 2)
    plain, drafted = (build(policy, d, 4, 30, numerics="guarded") for d in (1, 4))
    loose = dataclasses.replace(
        drafted, spec=dataclasses.replace(drafted.spec, numerics=Numerics.FAST)
    )
    changed = 0
    for seed in range(6):
        net = weights(seed, fuzz=FUZZ)
        want = generate(plain, net, prompts).completions
        found = generate(drafted, net, prompts).completions
        assert [row.token_ids for row in found] == [row.token_ids for row in want]
        changed += texts(generate(loose, net, prompts)) != [w.token_ids for w in want]
    assert changed, "numbers as loose must change the text that nobody guards"


def test_differences_are_of_what_is_open_and_said():
    row = lambda *values: jnp.asarray(values, jnp.float32)  # noqa: E731
    then = Prediction(
        jnp.array([5, 6, -1, 7]), row(1, 2, 0, 4), row(1, 2, 9, 4),
        row(1, jnp.inf, 9, 4), row(1e-8, 0, 1, 3), jnp.zeros(4), row(1, 2, 9, 9),
    )  # fmt: skip
    now = Prediction(
        jnp.array([5, 8, 1, 7]), row(1.5, 9, 9, 9), row(1, 2, 0, 4.25),
        row(1, jnp.inf, 0, 9), row(2e-8, 0, 9, 9), jnp.zeros(4), row(1, 1, 0, 0),
    )  # fmt: skip
    found = prediction_error(now, then, jnp.array([True, True, True, False]))
    # Of the second the other token leads by 1, of the third nothing was said, and of
    # the last, which is known, only its gap may be looked at.
    want = ErrorBound(*row(0.5, 3, 0.25, 0, 1, 0))
    assert jax.tree.map(float, found) == pytest.approx(jax.tree.map(float, want))


def test_a_measurement_is_of_weights_that_are_all_the_same(monkeypatch):
    """One leaf in common does not make a model; nor does the id of one that is gone."""
    made = []
    monkeypatch.setattr(autotune, "MEASUREMENTS", {})
    monkeypatch.setattr(autotune, "_measurement_key", lambda *_: None)
    monkeypatch.setattr(
        autotune, "measure", lambda *_: made.append(1) or autotune.Measurements((), ())
    )
    spec: Any = build(policies.static(1), 1, 4, 8).spec
    none: Any = None
    ask = lambda params: autotune._measured(spec, none, params, none, "shapes")  # noqa: E731
    shared, first, second = (jnp.ones(n) for n in (1, 2, 2))
    for params in ({"a": shared, "b": first}, {"a": shared, "b": second}) * 2:
        ask(params)
    assert len(made) == 2
    ((held, found),) = [
        v for k, v in autotune.MEASUREMENTS.items() if id(first) in k[2]
    ]
    key = next(k for k in autotune.MEASUREMENTS if id(first) in k[2])
    monkeypatch.setitem(autotune.MEASUREMENTS, key, (held[::-1], found))
    ask({"a": shared, "b": first})
    assert len(made) == 3
