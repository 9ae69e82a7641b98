"""The 1 / p losses bound the negative log-likelihood: a toy whose truth is known.

Texts of two positions over three tokens have a joint distribution that is a table. A
network that gives the true conditionals attains the bound, the entropy; any other one
stays above it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.training.data.token_batch import TokenBatch
from jaxdave.training.objective.answer_views import trajectory_views, view_log_probs
from jaxdave.training.objective.attention_masks import Layout, visibility
from jaxdave.training.objective.masking import Corruption, Masking
from jaxdave.training.objective.objective_loss import corrupt, corrupted_loss
from jaxdave.training.objective.objectives import OBJECTIVES, Objective
from jaxdave.training.objective.sequence_model import nats_from

MASK = 3
JOINT = np.array([[0.30, 0.02, 0.08], [0.05, 0.20, 0.05], [0.02, 0.03, 0.25]])
ENTROPY = -(JOINT * np.log(JOINT)).sum()
TEXTS = np.array([(a, b) for a in range(3) for b in range(3)], np.int32)
UNIFORM = np.full((3, 3), 1 / 9)


def conditionals(joint: np.ndarray) -> jax.Array:
    """log p(token | the other token, if seen), [position, 1 + other or 0, token]."""
    tables = []
    for table in (joint, joint.T):  # rows: the token itself
        seen = table / table.sum(axis=0)
        tables.append(np.log([table.sum(axis=1), *seen.T]))
    return jnp.asarray(np.array(tables), jnp.float32)


def toy_logits(table, tokens_BQ, layout: Layout, source_BC):
    """Looks up the conditional, given the other token if a query sees it unmasked."""
    is_other = layout.position_BQ[:, :, None] != layout.position_BQ[:, None, :]
    is_told = visibility(layout) & is_other & (tokens_BQ != MASK)[:, None, :]
    other_BQ = jnp.max(jnp.where(is_told, tokens_BQ[:, None, :] + 1, 0), axis=-1)
    logits = table[layout.position_BQ, other_BQ]
    return jnp.take_along_axis(logits, source_BC[..., None], axis=1)


TOY = nats_from(toy_logits)


def batch_of(texts) -> TokenBatch:
    return TokenBatch(texts, jnp.ones(texts.shape, bool), jnp.zeros_like(texts))


def loss_of(objective: Objective, table, texts, corruption) -> np.ndarray:
    """The loss of each text by itself, in nats."""

    def one(text, *parts):
        batch = batch_of(text[None])
        corrupted = Corruption(*(part[None] for part in parts))
        return corrupted_loss(objective, TOY, table, batch, corrupted).total

    return np.asarray(jax.jit(jax.vmap(one))(texts, *corruption), np.float64)


def exact_bound(objective: Objective, joint_of_network: np.ndarray) -> float:
    """The expected loss, by enumeration of texts, masks and quadrature points of p."""
    low, high = objective.masking.low, objective.masking.high
    node, weight = np.polynomial.legendre.leggauss(4)
    ratio = low + (high - low) * (node + 1) / 2
    # One ratio for the whole text: either there is one block, or each block has one
    # token, whose expected loss does not depend on the ratios.
    grid = [
        (text, np.array(mask, bool), p, w / 2)
        for text in TEXTS
        for mask in ((0, 0), (0, 1), (1, 0), (1, 1))
        for p, w in zip(ratio, weight, strict=True)
    ]
    texts, masks, ratios, weights = map(np.array, zip(*grid, strict=True))
    both = np.broadcast_to(ratios[:, None], masks.shape)
    chance = np.where(masks, both, 1 - both).prod(axis=1)
    chance = chance * JOINT[texts[:, 0], texts[:, 1]] * weights
    np.testing.assert_allclose(chance.sum(), 1)
    corruption = Corruption(
        jnp.asarray(np.where(masks, MASK, texts), jnp.int32),
        jnp.asarray(masks),
        jnp.zeros(masks.shape, bool),
        jnp.asarray(both, jnp.float32),
    )
    table = conditionals(joint_of_network)
    return float(chance @ loss_of(objective, table, texts, corruption))


MDM = Objective(masking=Masking(low=1e-6), normalise="tokens")
ONE_BLOCK = OBJECTIVES["bd3lm"](2, low=1e-6, keep_first=False)
TWO_BLOCKS = OBJECTIVES["bd3lm"](1, low=0.3, high=0.8, keep_first=False)


@pytest.mark.parametrize("objective", [MDM, ONE_BLOCK, TWO_BLOCKS])
def test_the_true_conditionals_attain_the_entropy(objective):
    np.testing.assert_allclose(exact_bound(objective, JOINT), ENTROPY, rtol=1e-5)


@pytest.mark.parametrize("objective", [MDM, ONE_BLOCK, TWO_BLOCKS])
def test_other_conditionals_stay_above_it(objective):
    independent = JOINT.sum(axis=1, keepdims=True) * JOINT.sum(axis=0)
    for other in (UNIFORM, independent, (JOINT + UNIFORM) / 2):
        # A network that is the chain rule of another joint has its cross entropy.
        bound = exact_bound(objective, other)
        expected = -(JOINT * np.log(other)).sum()
        np.testing.assert_allclose(bound, expected, rtol=1e-5)
        assert bound > ENTROPY + 0.01


def test_a_loss_without_the_weight_is_no_bound():
    unweighted = Objective(masking=Masking(low=1e-6), weight="one", normalise="tokens")
    assert exact_bound(unweighted, JOINT) < ENTROPY - 0.1


@pytest.mark.parametrize("name", ["mdlm", "llada-pretrain", "bd3lm"])
def test_drawn_masks_converge_to_the_entropy(name):
    settings = {"block_length": 1, "keep_first": False} if name == "bd3lm" else {}
    objective = OBJECTIVES[name](**settings)
    rows = 20_000
    rng = np.random.default_rng(0)
    texts = TEXTS[rng.choice(9, size=rows, p=JOINT.reshape(-1))]
    args = objective, batch_of(texts), jax.random.key(0)
    corruption = corrupt(*args, vocab_size=4, mask_id=MASK)
    losses = loss_of(objective, conditionals(JOINT), texts, corruption)
    error = losses.std() / np.sqrt(rows)
    # The losses have heavy tails (1 / p); still, four standard errors of many.
    assert error < 0.05
    assert abs(losses.mean() - ENTROPY) < 4 * error
    whole = corrupted_loss(objective, TOY, conditionals(JOINT), args[1], corruption)
    np.testing.assert_allclose(float(whole.total), losses.sum(), rtol=1e-4)


@pytest.mark.parametrize("objective", [MDM, ONE_BLOCK, TWO_BLOCKS])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_token_a_step_has_the_log_probability_of_the_text(objective, order):
    if objective is TWO_BLOCKS:  # each block is decoded in its first step
        order = (0, 0)
    batch = batch_of(TEXTS)
    step = jnp.broadcast_to(jnp.array(order)[None], TEXTS.shape)
    views, weight = trajectory_views(objective, batch, step, steps=2, mask_id=MASK)
    args = objective, TOY, conditionals(JOINT), batch, views, weight
    log_probs = np.asarray(view_log_probs(*args)).sum(axis=1)
    np.testing.assert_allclose(log_probs, np.log(JOINT).reshape(-1), rtol=1e-5)


def test_two_tokens_in_one_step_have_that_of_independent_ones():
    batch = batch_of(TEXTS)
    step = jnp.zeros(TEXTS.shape, jnp.int32)
    views, weight = trajectory_views(MDM, batch, step, steps=1, mask_id=MASK)
    args = MDM, TOY, conditionals(JOINT), batch, views, weight
    log_probs = np.asarray(view_log_probs(*args)).sum(axis=1)
    independent = JOINT.sum(axis=1, keepdims=True) * JOINT.sum(axis=0)
    np.testing.assert_allclose(log_probs, np.log(independent).reshape(-1), rtol=1e-5)
