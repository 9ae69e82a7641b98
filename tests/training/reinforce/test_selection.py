"""The static rule's choices have probabilities, and they add up to 1."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.training.reinforce.selection import selection_log_probs

LENGTH, VOCAB, MASK = 3, 4, 4
TABLE = 1.5 * np.random.default_rng(0).normal(size=(125, LENGTH, VOCAB))
BASE = (VOCAB + 1) ** np.arange(LENGTH)


def logits_of(states_SR):
    index_S = jnp.sum(states_SR * jnp.asarray(BASE, jnp.int32)[None], axis=1)
    return jnp.asarray(TABLE, jnp.float32)[index_S]


PATHS = [
    (tokens, order)
    for tokens in itertools.product(range(VOCAB), repeat=LENGTH)
    for order in itertools.permutations(range(LENGTH))
]


def all_paths(temperature: float) -> np.ndarray:
    """Log-probabilities of the commits of all tokens in all orders."""

    def one(tokens_R, ranks_R):
        return selection_log_probs(
            logits_of, tokens_R, ranks_R, LENGTH, mask_id=MASK, temperature=temperature
        )

    tokens, orders = (np.array(part, np.int32) for part in zip(*PATHS, strict=True))
    return np.asarray(jax.jit(jax.vmap(one))(tokens, orders), np.float64)


def test_probabilities_add_up_to_one():
    for temperature in (0.6, 1.0):
        chance = np.exp(all_paths(temperature).sum(axis=1))
        np.testing.assert_allclose(chance.sum(), 1.0, rtol=1e-4)


def test_they_are_how_often_the_rule_takes_each_path():
    """200,000 draws, by definition; the chi-square statistic per degree is about 1."""
    rng = np.random.default_rng(1)
    draws = 200_000
    tokens = np.full((draws, LENGTH), MASK)
    order = np.full((draws, LENGTH), -1)
    for step in range(LENGTH):
        logits = TABLE[tokens @ BASE]
        chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        uniform = rng.random((draws, LENGTH, 1))
        drawn = np.minimum((chance.cumsum(-1) < uniform).sum(-1), VOCAB - 1)
        score = np.take_along_axis(chance, drawn[..., None], -1)[..., 0]
        place = np.where(tokens == MASK, score, -1).argmax(1)
        rows = np.arange(draws)
        tokens[rows, place], order[rows, place] = drawn[rows, place], step
    seen = {path: 0 for path in PATHS}
    for path in zip(
        map(tuple, tokens.tolist()), map(tuple, order.tolist()), strict=True
    ):
        seen[path] += 1
    expected = draws * np.exp(all_paths(1.0).sum(axis=1))
    counted = np.array([seen[path] for path in PATHS])
    usual = expected > 5
    assert usual.sum() > 50 and counted[~usual].sum() < 0.01 * draws
    statistic = np.sum((counted - expected)[usual] ** 2 / expected[usual])
    assert 0.6 < statistic / usual.sum() < 1.5


def test_blocks_are_apart():
    """Two blocks: each has what it has alone, and padding has nothing."""
    tokens, ranks = np.array([1, 0, 2], np.int32), np.array([2, 0, 1], np.int32)

    def double(states_SR):
        return jnp.concatenate(
            [logits_of(states_SR[:, :LENGTH]), logits_of(states_SR[:, LENGTH:])], axis=1
        )

    alone = selection_log_probs(
        logits_of,
        jnp.asarray(tokens),
        jnp.asarray(ranks),
        LENGTH,
        mask_id=MASK,
        temperature=1.0,
    )
    never = np.full(LENGTH, np.iinfo(np.int32).max, np.int32)
    for second, want in ((ranks, alone), (never, jnp.zeros(LENGTH))):
        got = selection_log_probs(
            double,
            jnp.asarray(np.concatenate([tokens, tokens])),
            jnp.asarray(np.concatenate([ranks, second])),
            LENGTH,
            mask_id=MASK,
            temperature=1.0,
        )
        np.testing.assert_allclose(got[:LENGTH], alone, rtol=1e-5)
        np.testing.assert_allclose(got[LENGTH:], want, rtol=1e-5)


def test_the_gradient_is_finite_where_nothing_loses_and_ids_are_suppressed():
    """The least probable token commits: no other position can have lost to it."""
    tokens, ranks = jnp.array([0, 1, 2]), jnp.array([0, 1, 2], jnp.int32)
    logits_V = jnp.array([-4.0, 1.0, 2.0, -jnp.inf])

    def total(shift):
        def logits_of(states_SR):
            place_R = jnp.arange(LENGTH, dtype=jnp.float32)
            own_RV = logits_V[None, :] + shift * jnp.outer(place_R, jnp.arange(4.0))
            return jnp.broadcast_to(own_RV, (*states_SR.shape, 4))

        values = selection_log_probs(
            logits_of, tokens, ranks, LENGTH, mask_id=MASK, temperature=1.0
        )
        return jnp.sum(values)

    value, gradient = jax.value_and_grad(total)(jnp.float32(0.1))
    assert np.isfinite(value) and np.isfinite(gradient) and gradient != 0
