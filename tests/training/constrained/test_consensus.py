"""Federated consensus: what an absent agent knows, and where all agree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdave.training.constrained.consensus import (
    Federation,
    connected_residual,
    disagreement,
    draw_connections,
    federated_gradient,
    start_federation,
    zero_multipliers,
)
from jaxdave.training.constrained.constraint import known
from jaxdave.training.constrained.lagrangian import StepSizes, smoothed_lagrangian
from jaxdave.training.constrained.projections import box


def apply(params, updates) -> Any:
    """`optax.apply_updates`, of a type that arrays have."""
    return optax.apply_updates(params, updates)


AGENTS = 4
# f_i = curvature_i ||x - target_i||^2 / 2, one of them with negative curvature.
CURVATURE = np.array([1.0, 0.5, -0.3, 0.8], np.float32)
TARGET = np.random.default_rng(0).uniform(-0.8, 0.8, (AGENTS, 2)).astype(np.float32)
SOLUTION = (CURVATURE[:, None] * TARGET).sum(axis=0) / CURVATURE.sum()


def agent_gradient(x, data):
    curvature, target = data
    return jax.tree.map(lambda leaf: curvature * (leaf - target), x)


def method(horizon, federation):
    scale = (256 / horizon) ** 0.5
    return smoothed_lagrangian(
        StepSizes(dual=0.3 * scale, primal=0.2 * scale, center=0.3 * scale),
        proximal_weight=2.0,
        penalty=1.0,
        multiplier_bound=10.0,
        start_multipliers=zero_multipliers(federation),
        project=box(-1.0, 1.0),
    )


def final_federations(probability, rounds, horizon, seeds=16):
    start = start_federation({"w": jnp.zeros(2)}, AGENTS)
    solver = method(horizon, start)
    data = (jnp.asarray(CURVATURE), jnp.asarray(TARGET))

    def run(key):
        def step(carry, key):
            federation, state = carry
            updates, state = solver.update(
                federated_gradient(agent_gradient, federation, data),
                state,
                federation,
                constraints=draw_connections(key, AGENTS, probability, rounds=rounds),
            )
            return (apply(federation, updates), state), None

        carry = (start, solver.init(start))
        return jax.lax.scan(step, carry, jax.random.split(key, horizon))[0]

    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds))


@pytest.mark.parametrize("rounds", [1, 3])
def test_agents_that_come_and_go_agree_on_the_solution(rounds):
    def errors(horizon):
        """Over seeds: the mean centre's error, the centres' and agents' distances."""
        federations, state = final_federations(0.5, rounds, horizon)
        assert (state.resets == 0).all()
        off = np.asarray(state.center.server["w"]) - SOLUTION
        apart = np.asarray(jax.vmap(disagreement)(federations))
        rms = [np.sqrt((d**2).mean()) for d in (np.linalg.norm(off, axis=1), apart)]
        return np.linalg.norm(off.mean(axis=0)), *rms

    mean, off, apart = errors(2**14)
    assert mean < 0.02
    # The theory's T^(-1/4) is a factor of 2.8 for 64 times the steps.
    _, shorter_off, shorter_apart = errors(2**8)
    assert off < shorter_off / 2 and apart < shorter_apart / 2


def test_all_connected_agree_to_rounding():
    federations, _ = final_federations(1.0, 1, 2**12, seeds=1)
    np.testing.assert_allclose(federations.server["w"][0], SOLUTION, atol=1e-4)
    assert jax.vmap(disagreement)(federations)[0] < 1e-4


def test_an_absent_agent_takes_a_step_of_its_own():
    federation = Federation(jnp.array([0.5, 0.0]), jnp.full((AGENTS, 2), 0.2))
    solver = method(256, federation)
    state = solver.init(federation)
    state = state._replace(multipliers=jnp.full((AGENTS, 2), 0.7))
    gradient = Federation(jnp.zeros(2), jnp.full((AGENTS, 2), 0.1))
    is_connected = jnp.array([True, False, True, False])
    updates, state = solver.update(
        gradient, state, federation, constraints=known(connected_residual(is_connected))
    )
    absent = ~np.asarray(is_connected)
    np.testing.assert_allclose(updates.agents[absent], -0.2 * 0.1, atol=1e-6)
    assert (state.multipliers[absent] == np.float32(0.7)).all()
    off = np.array([0.2 - 0.5, 0.2])
    y = 0.7 + 0.3 * off
    pull = y + off
    np.testing.assert_allclose(updates.agents[0], -0.2 * (0.1 + pull), atol=1e-6)
    np.testing.assert_allclose(updates.server, 0.2 * 2 * pull, atol=1e-6)


def test_the_sampled_constraint_is_unbiased_up_to_p():
    federation = Federation(jnp.zeros(2), jnp.asarray(TARGET))
    keys = jax.random.split(jax.random.key(1), 4000)
    sampled = jax.vmap(lambda key: draw_connections(key, AGENTS, 0.3).dual(federation))
    np.testing.assert_allclose(sampled(keys).mean(axis=0), 0.3 * TARGET, atol=0.03)
    samples = draw_connections(keys[0], 64, 0.5)
    many = start_federation(jnp.zeros(2), 64)._replace(agents=jnp.ones((64, 2)))
    drawn = np.stack([sample(many)[:, 0] for sample in samples])
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()


@pytest.mark.parametrize("change", [{"rounds": 2}, {"probability": 0.0}])
def test_draws_that_cannot_be_are_refused(change):
    arguments = {"num_agents": 2, "probability": 0.5} | change
    with pytest.raises(ValueError, match=next(iter(change))):
        draw_connections(jax.random.key(0), **arguments)
