"""Curvature by products with the Hessian: by differences, and on an enumerated toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_policy
from helpers.toy_policy import IS_ANSWER, MASK, SEQUENCES, table
from jax.flatten_util import ravel_pytree

from jaxdave.training.reinforce import answer_curvature, curvature, log_probs

RIGHT = 5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def chains(params):
    """Log-probabilities of the tokens of all answers of the toy, [27, 3]."""
    return jax.vmap(
        lambda tokens_T: log_probs.chain_log_probs(
            toy_policy.logits_of(params), tokens_T, IS_ANSWER, 3, mask_id=MASK
        )
    )(jnp.asarray(SEQUENCES))


def small_table(seed: int):
    """The toy's parameters as a tree, so that structures are looked at too."""
    first, second = jnp.split(table(seed).astype(jnp.float64), 2)
    return {"first": first, "second": second}


def joined(params):
    return jnp.concatenate([params["first"], params["second"]])


def right_likelihood(params):
    """By its plain definition, in numpy's terms: the product over the chain."""
    total, state = 0.0, [MASK] * 3
    for place, token in enumerate(SEQUENCES[RIGHT].tolist()):
        row = joined(params)[sum(s * 4**k for k, s in enumerate(state)), place]
        total = total + row[token] - jnp.log(jnp.sum(jnp.exp(row)))
        state[place] = token
    return jnp.exp(total)


def differences(objective, params, way, step=1e-4):
    """The second derivative along a direction, by three values."""

    def at(distance):
        moved = jax.tree.map(lambda a, b: a + distance * b, params, way)
        return objective(moved)

    return float((at(step) - 2 * at(0.0) + at(-step)) / step**2)


def full_hessian(objective, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda at: objective(unravel(at))))(flat))


@pytest.mark.parametrize("seed", range(3))
def test_the_likelihood_of_the_right_answer(seed):
    params, way = small_table(seed), small_table(seed + 10)
    objective = answer_curvature.answer_likelihood(lambda p: chains(joined(p))[RIGHT])
    # Log-probabilities are float32, whatever the parameters are.
    np.testing.assert_allclose(objective(params), right_likelihood(params), rtol=1e-5)
    square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(way))
    np.testing.assert_allclose(
        answer_curvature.curvature_along(objective, params, way),
        differences(right_likelihood, params, way) / square,
        rtol=1e-4,
        atol=1e-7,
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_eigenvalue_is_that_of_the_whole_hessian(seed):
    params = small_table(seed)
    want = np.linalg.eigvalsh(full_hessian(right_likelihood, params))
    start = jax.grad(right_likelihood)(params)
    largest = jax.jit(answer_curvature.largest_curvature, static_argnums=(0, 3))
    found = largest(right_likelihood, params, start, 8)
    np.testing.assert_allclose(abs(found.value), np.abs(want).max(), rtol=1e-6)
    assert float(found.residual) < 1e-5 * abs(float(found.value))
    along = answer_curvature.curvature_along(right_likelihood, params, found.direction)
    np.testing.assert_allclose(along, found.value, rtol=1e-9)
    # Fewer products find no more than there is.
    fewer = largest(right_likelihood, params, start, 1)
    assert abs(float(fewer.value)) <= abs(float(found.value))


def test_eigenvalues_of_opposite_signs_are_told_apart():
    """Of -3 and 2.9 power iteration would find neither for long."""
    sizes = jnp.array([-3.0, 2.9, 0.5])
    found = answer_curvature.largest_curvature(
        lambda x: x @ (sizes * x) / 2, jnp.ones(3), jnp.array([1.0, 2.0, 1.0]), 3
    )
    np.testing.assert_allclose(found.value, -3.0, rtol=1e-9)
    np.testing.assert_allclose(jnp.abs(found.direction), [1, 0, 0], atol=1e-7)


def test_a_hessian_of_nothing_has_no_curvature():
    found = answer_curvature.largest_curvature(
        lambda x: jnp.sum(0.0 * x), jnp.ones(3), jnp.zeros(3), 4
    )
    assert float(found.value) == 0 and not jnp.any(found.direction)
    assert (
        float(answer_curvature.curvature_along(jnp.sum, jnp.ones(3), jnp.zeros(3))) == 0
    )


def test_the_log_linear_policy_is_the_closed_form():
    rng = np.random.default_rng(0)
    features, theta = (
        jnp.asarray(rng.normal(size=(4, 3))),
        jnp.asarray(rng.normal(size=3)),
    )
    reward = jnp.array([1.0, 0.0, 0.0, 0.0])
    objective = answer_curvature.answer_likelihood(
        lambda theta: jax.nn.log_softmax(features @ theta)[0]
    )
    start = curvature.gradient(features, reward, theta)
    found = answer_curvature.largest_curvature(objective, theta, start, 3)
    want = curvature.curvature(features, reward, theta)
    np.testing.assert_allclose(abs(found.value), want.norm, rtol=1e-9)


def test_answers_by_their_probability_give_the_exact_derivatives():
    """All 27, each weighted as often as it is drawn: the estimate's expectation."""
    params, way = small_table(0), small_table(11)
    rewards = jnp.asarray(np.random.default_rng(1).normal(size=27))

    def of_answers(params):
        return jnp.sum(chains(joined(params)).astype(jnp.float64), axis=1)

    chance = jnp.exp(of_answers(params))
    # A constant baseline changes nothing.
    weights = 27 * chance * (rewards - 0.7)
    sampled = answer_curvature.sampled_reward(of_answers, params, weights)

    def expected(params):
        return jnp.exp(of_answers(params)) @ rewards

    for got, want in zip(
        jax.tree.leaves(jax.grad(sampled)(params)),
        jax.tree.leaves(jax.grad(expected)(params)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(
        answer_curvature.curvature_along(sampled, params, way),
        answer_curvature.curvature_along(expected, params, way),
        rtol=1e-4,
    )


def test_weights_and_variances_of_groups():
    rng = np.random.default_rng(2)
    rewards = rng.integers(0, 2, size=(5, 6)).astype(float)
    want = [
        [one - np.mean(np.delete(group, at)) for at, one in enumerate(group)]
        for group in rewards
    ]
    np.testing.assert_allclose(
        answer_curvature.leave_one_out(jnp.asarray(rewards)), want, atol=1e-12
    )
    # Over all groups of two the mean is p (1 - p).
    pairs = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    chance = jnp.array([0.09, 0.21, 0.21, 0.49])
    found = chance @ answer_curvature.sampled_variance(pairs)
    np.testing.assert_allclose(found, 0.3 * 0.7, rtol=1e-9)


def test_cosines_of_all_pairs():
    gradients = jnp.array([[1.0, 0.0], [-2.0, 0.0], [1e-30, 1e-30], [0.0, 0.0]])
    found = answer_curvature.absolute_cosines(gradients)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [1, half, 0, half, 0, 0], atol=1e-12)
