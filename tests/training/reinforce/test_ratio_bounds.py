"""BGPO: below the objective everywhere, and equal to it where policies are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_policy
from helpers.toy_policy import IS_ANSWER, MASK, table

from jaxdave.training.reinforce import elbo
from jaxdave.training.reinforce.ratio_bounds import bgpo_objective, ratio_bounds

TOKENS = jnp.array([2, 0, 1])
MASKS = elbo.quadrature_masks(jax.random.key(0), IS_ANSWER, 2, 4)


def terms(params):
    logits_of = toy_policy.logits_of(params)
    return elbo.elbo_terms(logits_of, TOKENS, MASKS, mask_id=MASK)


def ratio(params, old_N):
    return jnp.exp(elbo.elbo(terms(params) - old_N, MASKS.share_N))


def test_plain_statement():
    new, old = np.array([0.3, -0.2, 0.1]), np.array([0.1, 0.1, -0.4])
    share = np.array([0.5, 0.25, 0.25])
    got = ratio_bounds(*(jnp.asarray(x, jnp.float32) for x in (new, old, share)))
    d = new - old
    np.testing.assert_allclose(got.lower, 1 + np.sum(share * d), rtol=1e-6)
    np.testing.assert_allclose(got.upper, np.sum(share * np.exp(d)), rtol=1e-6)
    assert got.lower < np.exp(np.sum(share * d)) < got.upper


@pytest.mark.parametrize("advantage", [1.5, -1.5, 0.0])
def test_it_is_a_lower_bound_at_any_other_policy(advantage):
    old = terms(table(0))
    gaps = []
    for seed in range(1, 20):
        params = table(0) + 0.3 * table(seed)
        bound = bgpo_objective(
            terms(params), old, MASKS.share_N, jnp.float32(advantage)
        )
        gaps.append(advantage * float(ratio(params, old)) - float(bound))
    assert min(gaps) >= -1e-5
    assert (max(gaps) > 0.01) == (advantage != 0)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_on_policy_its_value_and_gradient_are_those_of_the_ratio(advantage):
    params = table(0)
    old = terms(params)

    def bound(params):
        return bgpo_objective(terms(params), old, MASKS.share_N, jnp.float32(advantage))

    value, grad = jax.value_and_grad(bound)(params)
    of_ratio = jax.grad(lambda params: advantage * ratio(params, old))(params)
    np.testing.assert_allclose(value, advantage, rtol=1e-6)
    np.testing.assert_allclose(grad, of_ratio, atol=1e-6)
    assert float(jnp.max(jnp.abs(grad))) > 0.1


def test_its_gradient_is_the_sum_of_the_gradients_of_single_masks():
    """The point of BGPO: no mask's gradient needs another mask."""
    params, old = table(1), terms(table(0))

    def part(params, index):
        one = jnp.zeros_like(MASKS.share_N).at[index].set(1.0)
        value = bgpo_objective(terms(params), old, one, jnp.float32(-1.0))
        return MASKS.share_N[index] * value

    whole = jax.grad(
        lambda params: bgpo_objective(
            terms(params), old, MASKS.share_N, jnp.float32(-1.0)
        )
    )(params)
    parts = [jax.grad(part)(params, index) for index in range(len(MASKS.share_N))]
    np.testing.assert_allclose(sum(parts), whole, atol=1e-5)
