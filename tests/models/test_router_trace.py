"""Margins of routers: no smaller error changes a choice, some larger one does."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_experts
from helpers.plain_experts import KINDS

from jaxdave.core.model_api import BlockStates
from jaxdave.models import transformer
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.experts import mix_experts, mix_experts_of_rows
from jaxdave.models.router import route, route_traced
from jaxdave.models.router_trace import TracedVectors, join, num_columns, split
from jaxdave.runtime.machine import this_machine
from tests.models.test_experts import bias_of, drawn, matrices

TOKENS, DRAWS = 200, 20
EVERY = pytest.mark.parametrize("kind", KINDS)


def chosen(logits, bias, config) -> np.ndarray:
    """The set of experts of each token, bool [S, X]."""
    expert_SC = np.asarray(route(jnp.asarray(logits, jnp.float32), bias, config)[0])
    return (expert_SC[..., None] == np.arange(config.count)).any(axis=1)


@EVERY
def test_no_smaller_error_changes_a_choice(kind):
    config, draws = KINDS[kind], np.random.default_rng(0)
    logits, bias = drawn(TOKENS, config.count), bias_of(config)
    trace = route_traced(jnp.asarray(logits), bias, config)[1]
    margin = np.asarray(trace.margin)[:, None]
    # First order: of errors of a tenth, slopes are those of the scores as they are.
    margin = np.minimum(margin, 0.1) * 0.9
    before = chosen(logits, bias, config)
    for _ in range(DRAWS):
        error = np.sign(draws.normal(size=logits.shape)) * margin
        np.testing.assert_array_equal(chosen(logits + error, bias, config), before)
    np.testing.assert_array_equal(trace.best, logits.max(axis=1))


@EVERY
def test_some_error_of_a_few_margins_changes_it(kind):
    """Else margins were smaller than they need to be, and decisions doubted in vain."""
    config, draws = KINDS[kind], np.random.default_rng(0)
    logits, bias = drawn(TOKENS, config.count), bias_of(config)
    margin = np.asarray(route_traced(jnp.asarray(logits), bias, config)[1].margin)
    before = chosen(logits, bias, config)
    changed = np.zeros(TOKENS, bool)
    for _ in range(20 * DRAWS):
        error = np.sign(draws.normal(size=logits.shape)) * 4 * margin[:, None]
        changed |= (chosen(logits + error, bias, config) != before).any(axis=1)
    assert changed.mean() > 0.9


@EVERY
def test_equal_experts_have_no_margin(kind):
    config = KINDS[kind]
    logits = jnp.zeros((3, config.count)) + jnp.asarray([-200.0, 0.0, 200.0])[:, None]
    trace = route_traced(logits, None, config)[1]
    np.testing.assert_array_equal(trace.margin, 0)


@EVERY
def test_rows_side_by_side_are_rows_alone(kind):
    config, machine = KINDS[kind], this_machine()
    stacks = matrices(config)
    x_BSE = drawn(3, 7, stacks.gate.shape[1], seed=5)
    logits = jnp.asarray(drawn(3 * 7, config.count))
    routing = jax.tree.map(
        lambda a: a.reshape(3, 7, *a.shape[1:]), route(logits, None, config)
    )

    def alone(x, routing):
        return mix_experts(x, routing, stacks, machine)

    def beside(x, routing):
        return mix_experts_of_rows(x, routing, stacks, machine)

    rows = [jax.tree.map(operator.itemgetter(i), routing) for i in range(3)]
    expected = list(map(alone, x_BSE, rows))
    ours = jax.jit(jax.vmap(beside))(x_BSE, routing)
    np.testing.assert_allclose(ours, np.stack(expected), rtol=1e-5, atol=1e-5)
    # One row's vectors for the experts of all rows.
    shared = jax.jit(jax.vmap(beside, in_axes=(None, 0)))(x_BSE[0], routing)
    np.testing.assert_allclose(shared[0], expected[0], rtol=1e-5, atol=1e-5)


def test_traces_travel_with_hidden_vectors():
    hidden, best = jnp.ones((2, 3, 5)), jnp.arange(24.0).reshape(2, 3, 4)
    trace = split(jnp.zeros((2, 3, 5 + num_columns(4))), 5).trace
    joined = join(TracedVectors(hidden, trace._replace(best=best)))
    assert joined.shape == (2, 3, 5 + num_columns(4))
    again = split(joined, 5)
    np.testing.assert_array_equal(again.hidden, hidden)
    np.testing.assert_array_equal(again.trace.best, best)


def test_a_block_state_has_the_margins_of_its_ancestors():
    """Its keys are those of blocks whose experts may have been others."""
    config = plain_experts.tiny("llada2", rotary_dim=4, family="llada2")
    model = block_causal_model(config, numerics="guarded")
    params = transformer.init(config, 0)
    length = config.block_length
    tokens_MP = jnp.asarray(
        np.random.default_rng(0).integers(0, 30, (3, length)), jnp.int32
    )
    cache = model.prefill(
        params, jnp.zeros(64, jnp.int32), 0, jnp.int32(0), 64, 2 * length, 64
    )[1]
    # The second block after the first, and after the third.
    states = BlockStates(
        tokens_MP=tokens_MP[jnp.asarray([0, 1, 2, 1])],
        block_M=jnp.asarray([0, 1, 0, 1]),
        chain_MJ=jnp.asarray([[0, 0], [0, 1], [2, 2], [2, 3]]),
    )
    assert model.evaluate_blocks and model.router_trace
    hidden = model.evaluate_blocks(params, states, jnp.int32(0), 64, cache)[0]
    margin = np.asarray(model.router_trace(hidden).margin)
    assert margin.shape == (4, length) and np.all(margin == margin[:, :1])
    assert margin[1, 0] <= margin[0, 0] and margin[3, 0] <= margin[2, 0]
    assert len(set(margin[:, 0].tolist())) > 1


def test_only_guarded_numerics_trace_routers():
    config = plain_experts.tiny("qwen")
    assert block_causal_model(config, numerics="exact").router_trace is None
    assert block_causal_model(config, numerics="fast").router_trace is None
    assert block_causal_model(config, numerics="guarded").router_trace is not None
