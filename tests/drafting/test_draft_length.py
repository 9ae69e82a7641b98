# pyright: reportCallIssue=false, reportArgumentType=false
"""How many drafts a call carries: by what they cost, and by what is known of them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.fake_model import build, prompts_of, weights

from jaxdave import policies
from jaxdave.core.draft_api import DraftFn, DraftSet
from jaxdave.core.state import default_runtime_params
from jaxdave.decoding import loop as decode_loop
from jaxdave.drafting.draft_length import choose_num_drafts, likeliest_drafts
from jaxdave.drafting.nested import ACCEPTANCE_PRIOR, propose_nested
from jaxdave.engine.generation import prefill_prompts

STEPS = (1, 2, 4, 8)


def rows_of(counts, done=None):
    counts = np.asarray(counts, np.float32).reshape(-1, 2)
    is_done = np.zeros(len(counts), bool) if done is None else np.asarray(done)
    return SimpleNamespace(acceptance_counts=counts, done=jnp.asarray(is_done))


def drafts_of(worth_BK, valid_BK=None) -> DraftSet:
    worth_BK = jnp.asarray(worth_BK, jnp.float32)
    valid_BK = jnp.ones(worth_BK.shape, bool) if valid_BK is None else valid_BK
    index_K = jnp.arange(worth_BK.shape[-1], dtype=jnp.int32)
    depth_BK = jnp.broadcast_to(index_K, worth_BK.shape)
    tokens = depth_BK[..., None, None]
    return DraftSet(tokens, depth_BK, jnp.asarray(valid_BK), worth_BK)


def chosen(rows, seconds, drafts=None, most=STEPS[-1]) -> int:
    runtime = default_runtime_params(most, 0, len(STEPS))
    runtime = runtime._replace(seconds_Z=jnp.asarray(seconds, jnp.float32))
    return STEPS[int(choose_num_drafts(STEPS, runtime, rows, drafts))]


def test_nested_worths_choose_as_if_nothing_was_proposed():
    draws, seen = np.random.default_rng(0), set()
    nested_K = ACCEPTANCE_PRIOR ** np.arange(STEPS[-1])
    for _ in range(100):
        rows = rows_of(draws.uniform(0, 15, (3, 2)), draws.random(3) < 0.3)
        seconds = np.sort(draws.uniform(1, 4, len(STEPS)))
        expected = chosen(rows, seconds)
        assert chosen(rows, seconds, drafts_of([nested_K] * 3)) == expected
        seen.add(expected)
    assert seen == set(STEPS)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_only_drafts_that_are_there_are_paid_for(count):
    """Whatever a row has seen: what is not valid cannot be accepted."""
    is_valid_1K = (np.arange(STEPS[-1]) < count)[None]
    drafts = drafts_of(np.ones((1, STEPS[-1])), is_valid_1K)
    fits = min(size for size in STEPS if size >= count)
    assert chosen(rows_of([30.0, 0.0]), [1.0, 1.1, 1.2, 1.3], drafts) == fits


def test_unlikely_drafts_are_not_paid_for():
    seconds = [1.0, 1.4, 1.8, 2.6]
    sure = [1, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93]
    doubtful = [1, 0.9, 0.2, 0.1, 0.01, 0.01, 0.01, 0.01]
    rows = rows_of([0.0, 0.0])
    assert chosen(rows, seconds, drafts_of([sure])) == 8
    assert chosen(rows, seconds, drafts_of([doubtful])) == 2
    # One call serves all rows of a batch; those that have ended have no say.
    both, two = drafts_of([sure, doubtful]), np.zeros((2, 2))
    assert chosen(rows_of(two, [False, True]), seconds, both) == 8
    assert chosen(rows_of(two, [True, False]), seconds, both) == 2
    # A row whose drafts fail more often than they claim to.
    assert chosen(rows_of([0.0, 20.0]), seconds, drafts_of([sure])) < 8


def test_the_likeliest_drafts_are_kept_behind_the_first():
    drafts = drafts_of([0.5, 0.9, 0.9, 1.0, 0.7], [True, True, True, False, True])
    kept = likeliest_drafts(drafts, 4)
    assert kept.depth_K.tolist() == [0, 1, 2, 4]
    assert kept.tokens_KNL[:, 0, 0].tolist() == [0, 1, 2, 4]
    assert likeliest_drafts(drafts, 5).valid_K.tolist() == [True] * 4 + [False]


def propose_nothing(context, first, num_drafts):
    drafts = propose_nested(context, first, num_drafts)
    return drafts._replace(valid_K=drafts.valid_K & (jnp.arange(num_drafts) == 0))


def call_sizes(draft, draft_steps) -> list[int]:
    """How many calls of each length a decode makes where longer ones cost a bit."""
    decoder = build(
        policies.static(1), draft_steps, 4, 24, draft=draft, numerics="fast"
    )
    net, spec = weights(2), decoder.spec
    runtime = spec.runtime(draft_steps[-1])
    runtime = runtime._replace(seconds_Z=jnp.linspace(1.0, 1.2, len(draft_steps)))
    step = jax.jit(lambda state: decode_loop.step(spec, net, runtime, state)[0])
    state = prefill_prompts(decoder, net, prompts_of([5, 3]))
    while not bool(state.rows.done.all()):
        state = step(state)
    return np.asarray(state.rows.stats.size_Z).max(axis=0).tolist()


def test_a_call_is_as_long_as_there_are_drafts():
    short, long = call_sizes(DraftFn(propose_nothing), (1, 4))
    assert short > 0 and long == 0
    short, long = call_sizes(DraftFn(propose_nested), (1, 4))
    # At the end of a row no draft is left.
    assert long > 0 and short <= 2
