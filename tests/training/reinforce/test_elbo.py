"""Bounds, against the mean over all orders of an answer of three tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_policy
from helpers.toy_policy import IS_ANSWER, MASK, ORDERS, SEQUENCES, table

from jaxdave.training.reinforce import elbo

PARAMS = table(5, 2.0)
TOKENS = [2, 0, 1]


def estimate(masks, params=PARAMS, tokens=TOKENS, **options):
    terms = elbo.elbo_terms(
        toy_policy.logits_of(params),
        jnp.asarray(tokens, jnp.int32),
        masks,
        mask_id=MASK,
        **options,
    )
    return elbo.elbo(terms, masks.share_N)


def every_mask(times, shares):
    """All masks at some times, each counted by its probability."""
    rows = [
        (
            subset,
            1 / time,
            share * time ** sum(subset) * (1 - time) ** (3 - sum(subset)),
        )
        for time, share in zip(times, shares, strict=True)
        for subset in toy_policy.subsets()
    ]
    masked, weight, share = zip(*rows, strict=True)
    return elbo.MaskSamples(
        jnp.array(masked), jnp.array(weight, jnp.float32), jnp.array(share, jnp.float32)
    )


def nodes(num_nodes):
    node, weight = np.polynomial.legendre.leggauss(num_nodes)
    return (node + 1) / 2, weight / 2


def test_the_integral_is_the_mean_over_orders():
    """A fine rule of midpoints, which knows nothing of polynomials."""
    times = (np.arange(400) + 0.5) / 400
    got = estimate(every_mask(times, np.full(400, 1 / 400)))
    want = toy_policy.mean_over_orders(PARAMS, TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_it_is_a_bound():
    """Of every answer: below the log of its mean probability over orders."""
    masks = every_mask(*nodes(2))
    gaps = []
    for tokens in SEQUENCES.tolist():
        paths = [toy_policy.path_log_prob(PARAMS, tokens, order) for order in ORDERS]
        gaps.append(np.log(np.mean(np.exp(paths))) - estimate(masks, tokens=tokens))
    assert min(gaps) > -1e-5 and max(gaps) > 0.1


@pytest.mark.parametrize("num_nodes", [2, 3])
def test_two_nodes_leave_no_bias_of_three_tokens(num_nodes):
    got = estimate(every_mask(*nodes(num_nodes)))
    want = toy_policy.mean_over_orders(PARAMS, TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_one_node_does():
    got = float(estimate(every_mask(*nodes(1))))
    assert abs(got - toy_policy.mean_over_orders(PARAMS, TOKENS)) > 0.05


def drawn(maker, count=4096):
    """Estimates of many keys, [keys]."""
    keys = jax.random.split(jax.random.key(7), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: estimate(maker(key))))(keys))


def test_drawn_masks_are_unbiased_and_nodes_vary_less():
    """The mean over keys within four standard errors, at equal numbers of masks."""
    want = toy_policy.mean_over_orders(PARAMS, TOKENS)
    of_times = drawn(lambda key: elbo.random_masks(key, IS_ANSWER, 4))
    of_nodes = drawn(lambda key: elbo.quadrature_masks(key, IS_ANSWER, 2, 2))
    for values in (of_times, of_nodes):
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - want) < 4 * error
    assert of_nodes.var() < 0.8 * of_times.var()


def test_only_the_answer_is_masked():
    is_answer = jnp.array([False, True, True])
    key = jax.random.key(0)
    for masks in (
        elbo.random_masks(key, is_answer, 64),
        elbo.quadrature_masks(key, is_answer, 3, 8),
    ):
        assert np.asarray(masks.is_masked_NT).any(axis=0).tolist() == [
            False,
            True,
            True,
        ]
        np.testing.assert_allclose(jnp.sum(masks.share_N), 1.0, rtol=1e-6)
    weight = elbo.quadrature_masks(key, is_answer, 2, 2).weight_N
    want = 1 / np.repeat(nodes(2)[0], 2)
    np.testing.assert_allclose(weight, want, rtol=1e-6)


def test_terms_by_their_definition():
    masks = elbo.random_masks(jax.random.key(3), IS_ANSWER, 6)
    got = elbo.elbo_terms(
        toy_policy.logits_of(PARAMS),
        jnp.asarray(TOKENS, jnp.int32),
        masks,
        mask_id=MASK,
        temperature=0.5,
        states_per_call=2,
    )
    for term, hidden, weight in zip(
        got.tolist(),
        masks.is_masked_NT.tolist(),
        masks.weight_N.tolist(),
        strict=True,
    ):
        pairs = zip(TOKENS, hidden, strict=True)
        state = [MASK if is_masked else token for token, is_masked in pairs]
        want = weight * sum(
            toy_policy.log_prob(2 * PARAMS, state, place, TOKENS[place])
            for place in range(3)
            if hidden[place]
        )
        assert term == pytest.approx(want, rel=1e-5)
