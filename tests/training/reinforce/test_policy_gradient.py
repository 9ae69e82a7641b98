"""The surrogate's gradient is that of the expected reward, by enumeration.

The policy is the toy's chain, a distribution over 27 answers; its rewards are drawn.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_policy
from helpers.toy_policy import IS_ANSWER, MASK, SEQUENCES, table

from jaxdave.training.reinforce import log_probs
from jaxdave.training.reinforce.advantages import group_advantages
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig, policy_loss

PARAMS = table(0)
REWARDS = jnp.asarray(np.random.default_rng(0).normal(size=27), jnp.float32)
RIGHT = jnp.zeros(27).at[5].set(1.0)
LEVELS = ["token", "sequence"]


@jax.jit
def chains(params):
    """Log-probabilities of the tokens of all answers, [27, 3]."""
    return jax.vmap(
        lambda tokens_T: log_probs.chain_log_probs(
            toy_policy.logits_of(params), tokens_T, IS_ANSWER, 3, mask_id=MASK
        )
    )(jnp.asarray(SEQUENCES))


OLD = chains(PARAMS)
CHANCE = jnp.exp(jnp.sum(OLD, axis=1))


def expected(params, rewards):
    return jnp.exp(jnp.sum(chains(params), axis=1)) @ rewards


def surrogate_gradient(advantages, weights, ratio):
    """Of the answers together, each weighted: 27 times the mean, as the loss has it."""
    config = PolicyLossConfig(ratio=ratio, reduction="sum", kl_weight=0.0)
    mask = jnp.ones(OLD.shape, bool)

    def loss(params):
        weighted = 27 * weights * advantages
        return -policy_loss(chains(params), OLD, weighted, mask, config).loss

    return jax.jit(jax.grad(loss))(PARAMS)


@pytest.mark.parametrize("ratio", LEVELS)
@pytest.mark.parametrize("baseline", [0.0, 1.5])
def test_with_any_baseline(ratio, baseline):
    want = jax.grad(expected)(PARAMS, REWARDS)
    got = surrogate_gradient(REWARDS - baseline, CHANCE, ratio)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert float(jnp.max(jnp.abs(want))) > 0.01


def group_gradient(rewards, normalize):
    """Over all groups of two answers, by their probability."""
    pairs = np.array(list(itertools.product(range(27), repeat=2)))
    advantages = group_advantages(rewards[pairs], normalize=normalize)
    # What an answer contributes, over the groups that hold it; mean over both members.
    chance = CHANCE[pairs[:, 0]] * CHANCE[pairs[:, 1]]
    summed = jnp.zeros(27)
    for member in (0, 1):
        summed = summed.at[pairs[:, member]].add(chance * advantages[:, member] / 2)
    return surrogate_gradient(summed, jnp.ones(27), "token")


def test_a_group_mean_scales_the_gradient_by_one_less_one_over_its_size():
    want = jax.grad(expected)(PARAMS, REWARDS)
    got = group_gradient(REWARDS, "none")
    np.testing.assert_allclose(got, want / 2, atol=2e-6)


def test_two_answers_of_which_one_is_right_are_divided_by_one_half():
    """GRPO of groups of two: advantages 1 and -1 for 1/2 and -1/2."""
    got = group_gradient(RIGHT, "std")
    np.testing.assert_allclose(got, 2 * group_gradient(RIGHT, "none"), atol=1e-6)


def test_many_answers_are_divided_by_the_deviation_of_the_reward():
    """GRPO in the limit: the group holds every answer as often as it is likely."""
    counts = np.round(np.asarray(CHANCE) * 20000).astype(int)
    answers = np.repeat(np.arange(27), counts)
    advantages = group_advantages(RIGHT[answers][None], normalize="std")[0]
    summed = jnp.zeros(27).at[answers].add(advantages / len(answers))
    got = surrogate_gradient(summed, jnp.ones(27), "token")
    p = float(CHANCE[5])
    want = jax.grad(expected)(PARAMS, RIGHT) / np.sqrt(p * (1 - p))
    np.testing.assert_allclose(got, want, atol=0.02 * float(jnp.max(jnp.abs(want))))


def test_off_policy_the_ratio_of_a_sequence_is_the_importance_weight():
    """Unclipped, the sequence-level surrogate is the expected reward anywhere."""
    config = PolicyLossConfig(
        ratio="sequence", reduction="sum", clip_low=1.0, clip_high=1e6, kl_weight=0.0
    )
    other = PARAMS + 0.5 * table(1)
    weighted = 27 * CHANCE * REWARDS
    mask = jnp.ones(OLD.shape, bool)
    got = -policy_loss(chains(other), OLD, weighted, mask, config).loss
    np.testing.assert_allclose(got, expected(other, REWARDS), rtol=1e-4)
    assert abs(float(got) - float(expected(PARAMS, REWARDS))) > 0.01
