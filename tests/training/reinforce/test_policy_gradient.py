"""The surrogate's gradient is that of the expected reward, by enumeration.

The policy is a distribution over 27 answers, as a rule the toy's chain; rewards are
drawn.
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


def most_certain_first(params):
    """Step maps of the rule that takes the position of the largest probability."""
    found = []
    for tokens in SEQUENCES.tolist():
        steps, state = [9] * 3, [MASK] * 3
        for step in range(3):
            largest = [
                max(toy_policy.log_prob(params, state, at, v) for v in range(3))
                if state[at] == MASK
                else -np.inf
                for at in range(3)
            ]
            place = int(np.argmax(largest))
            steps[place], state[place] = step, tokens[place]
        found.append(steps)
    return found


@pytest.mark.parametrize(
    "maps",
    [[[1, 0, 0]] * 27, most_certain_first(PARAMS)],
    ids=["two tokens a step", "most certain first"],
)
def test_along_trajectories(maps):
    """Rules whose paths are a distribution over answers: TraceRL's gradient is exact.

    Of the second rule paths change with the answer; where the most certain position is
    no tie they do not change with small changes of the parameters.
    """
    steps = jnp.asarray(maps, jnp.int32)

    @jax.jit
    def paths(params):
        return jax.vmap(
            lambda tokens_T, steps_T: log_probs.trajectory_log_probs(
                toy_policy.logits_of(params), tokens_T, steps_T, 3, mask_id=MASK
            )
        )(jnp.asarray(SEQUENCES), steps)

    old = paths(PARAMS)
    chance = jnp.exp(jnp.sum(old, axis=1))
    np.testing.assert_allclose(jnp.sum(chance), 1.0, rtol=1e-5)
    config = PolicyLossConfig(reduction="sum", kl_weight=0.0)
    weighted = 27 * chance * (REWARDS - 0.3)
    mask = jnp.ones(old.shape, bool)
    got = jax.grad(
        lambda params: -policy_loss(paths(params), old, weighted, mask, config).loss
    )(PARAMS)
    # The reference by differences along drawn directions, with nothing in common.
    for seed in range(3):
        way = np.asarray(table(seed + 10), np.float64)

        def expected_at(distance, way=way):
            params = np.asarray(PARAMS, np.float64) + distance * way
            return sum(
                np.exp(toy_policy.path_log_prob(params, tokens, path)) * float(reward)
                for tokens, path, reward in zip(
                    SEQUENCES.tolist(), maps, REWARDS, strict=True
                )
            )

        want = (expected_at(1e-5) - expected_at(-1e-5)) / 2e-5
        np.testing.assert_allclose(np.sum(np.asarray(got) * way), want, atol=1e-5)
