"""Guarded numerics: drafts are evaluated loosely, and the text is the trusted one.

The hash network's pieces are off by a hash of their seat, its chunks never are: they
are the shape that is trusted. The oracle only knows the trusted numbers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import policy_films
import pytest
import toys
from toys import build, capped, prompts_of, texts, weights

from jaxdave import decoders, policies
from jaxdave.run import generate, stream
from jaxdave.types import Prediction

pytestmark = pytest.mark.usefixtures("quick_compiles")

FUZZ = 0.25


def truths(net, prompts, room, length, policy):
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
def test_loose_numbers_give_the_trusted_text(policy, drafts, length):
    decoder = build(policy, drafts, length, 30, numerics="guarded")
    assert decoder.program.guarded
    prompts = prompts_of([3, 17, 9], length)
    for seed in range(12):
        net = weights(seed, fuzz=FUZZ)
        result = generate(decoder, net, prompts)
        want = truths(net, prompts, 30, length, policy)
        assert [row.token_ids for row in result.rows] == [w.token_ids for w in want]
        for row, truth in zip(result.rows, want, strict=True):
            assert row.steps == truth.steps
            # The prefill takes the first step, or leaves it to a guard call.
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
    for cap in (1, 3, 4, 6):
        quick = generate(capped(decoder, cap), net, prompts, seed=3)
        assert texts(quick) == want
    alone = generate(decoder, net, prompts[1:2], seed=3)
    assert texts(alone) == want[1:2]


def test_without_doubt_loose_numbers_change_the_text():
    decoder = build(policies.static(1), 8, 4, 30, numerics="guarded")
    program = dataclasses.replace(decoder.program, guarded=False)
    loose = dataclasses.replace(decoder, program=program, numerics="fast")
    prompts, changed = prompts_of([3, 17, 9], 1), 0
    for seed in range(4):
        net = weights(seed, fuzz=FUZZ)
        want = [t.token_ids for t in truths(net, prompts, 30, 4, policies.static(1))]
        found = [row.token_ids for row in generate(loose, net, prompts).rows]
        changed += found != want
        guards = [row.nfe.guard for row in generate(decoder, net, prompts).rows]
        assert all(guards)
    assert changed


def test_numbers_that_agree_are_not_doubted():
    decoder = build(policies.left_to_right(1), 8, 4, 30, numerics="guarded")
    rows = generate(decoder, weights(1), prompts_of([3, 17], 1)).rows
    assert [row.nfe.guard for row in rows] == [0, 0]


def test_streamed_is_generated():
    decoder = build(policies.static(1), 8, 4, 30, numerics="guarded")
    net, prompts = weights(2, fuzz=FUZZ), prompts_of([3, 17], 1)
    sent = [[], []]
    for update in stream(decoder, net, prompts):
        sent[update.row] += update.token_ids
    rows = generate(decoder, net, prompts).rows
    assert [tuple(row) for row in sent] == [row.token_ids for row in rows]


@pytest.mark.parametrize(
    ("cache", "dtype"),
    [
        (None, "bfloat16"),
        ("dual", "float32"),
        pytest.param("prefix", "bfloat16", marks=pytest.mark.slow),
        pytest.param(None, "float32", marks=pytest.mark.slow),
        pytest.param("dual", "bfloat16", marks=pytest.mark.slow),
        pytest.param("none", "bfloat16", marks=pytest.mark.slow),
        pytest.param("none", "float32", marks=pytest.mark.slow),
    ],
)
def test_transformers_keep_their_text_in_any_shape(cache, dtype):
    config = toys.TINY
    if cache is not None:
        config = dataclasses.replace(config, attention="full", family="llada")
    prompts = prompts_of([5, 18, 9], 1, 30)
    common = {"block_length": 4, "max_new_tokens": 24, "cache": cache}
    params = jax.tree.map(lambda a: a.astype(dtype), toys.tiny_params(1))
    plain = decoders.static(config, **common)
    want = generate(plain, params, prompts).rows
    assert plain.numerics == "guarded"
    for drafts in (4, (2, 6)):
        decoder = decoders.freedave(config, draft_steps=drafts, **common)
        rows = generate(decoder, params, prompts).rows
        assert [r.token_ids for r in rows] == [r.token_ids for r in want]
        assert sum(r.nfe.total for r in rows) < sum(r.nfe.total for r in want)
    alone = generate(decoder, params, prompts[:1]).rows[0]
    assert alone.token_ids == want[0].token_ids


@pytest.mark.parametrize(
    "policy",
    [policies.parse(e.name) for e in policies.listing() if e.lossless],
    ids=lambda p: p.name,
)
def test_a_rule_that_is_sure_decides_the_same_on_near_scores(policy):
    if policy.sure is None:
        pytest.skip("it cannot tell")
    size, error = 6, 0.05

    @jax.jit
    @jax.vmap
    def decide(score_W, open_W):
        view = view_of(score_W, open_W)
        memory = policy.init(size, 6)
        return policy.step(view, memory)[0], policy.sure(  # pyright: ignore
            view, memory, jnp.float32(error)
        )

    rng = np.random.default_rng(0)
    open_CW = rng.random((400, size)) < 0.7
    open_CW[:, 0] |= ~open_CW.any(axis=1)
    score_CW = rng.choice([0.5, 2.2], (400, size)) + rng.normal(0, 0.2, (400, size))
    tokens_CW, sure_C = decide(score_CW.astype(np.float32), open_CW)
    assert 20 < np.sum(sure_C)
    for _ in range(30):
        moved_CW = score_CW + rng.uniform(-error, error, score_CW.shape)
        near_CW, _ = decide(moved_CW.astype(np.float32), open_CW)
        same_C = np.all(np.asarray(near_CW) == np.asarray(tokens_CW), axis=1)
        assert (same_C | ~np.asarray(sure_C)).all()


def view_of(score_W, open_W):
    """A block some of which is open, in the first step of a request."""
    size = score_W.shape[0]
    tokens_W = jnp.where(open_W, policy_films.MASK, 7).astype(jnp.int32)
    token_W = jnp.arange(size, dtype=jnp.int32) + 10
    pred = Prediction(token_W, *[score_W] * 4, runner=-token_W, lead=score_W)
    return policy_films.view_of(
        pred, jnp.zeros((size, 6)), tokens_W, jnp.int32(0), jnp.int32(size),
        jnp.int32(3), policy_films.key_of(0, 3),
    )  # fmt: skip
