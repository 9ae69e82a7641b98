"""Advantages: how much better an answer is than the others to the same prompt.

Axes: R kinds of reward, P prompts, G answers of a group.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Normalize = Literal["std", "none"]


def group_advantages(
    rewards_PG: jax.Array, *, normalize: Normalize = "std"
) -> jax.Array:
    """Compare every reward with those of its group.

    "none" is REINFORCE with the mean as baseline, r - mean; "std" is GRPO, which
    divides that by the standard deviation of the group (of all of it, 1/G). A group
    whose rewards are all equal has advantages 0 either way: there is nothing to learn
    from it, and no division by zero.

    The mean holds the answer's own reward, so that REINFORCE's expected gradient is
    (1 - 1/G) times that of the expected reward: its direction is exact.

    Args:
        rewards_PG: Finite rewards (`rewards.checked_rewards`), float [P, G].
        normalize: What the differences are divided by.

    Returns:
        float [P, G]; sums to 0 over every group.

    Raises:
        ValueError: `normalize` is neither.

    Example:
        >>> rewards_PG = jnp.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
        >>> group_advantages(rewards_PG, normalize="none")[0].tolist()
        [0.75, -0.25, -0.25, -0.25]
        >>> group_advantages(rewards_PG)[1].tolist()
        [0.0, 0.0, 0.0, 0.0]

    Source: DeepSeekMath, arXiv 2402.03300, section 4.1; Dr. GRPO, arXiv 2503.20783, on
    leaving the division out. Deviation from JustGRPO's code and others, which divide by
    std + 1e-4 with std of G - 1: a constant is not needed where equal rewards are told
    apart, and it would bend the step size that the theory is about (`curvature`).
    """
    if normalize not in ("std", "none"):
        raise ValueError(f'normalize={normalize!r} must be "std" or "none"')
    centred_PG = _centred(rewards_PG)
    if normalize == "none":
        return centred_PG
    return _divided(centred_PG, jnp.sqrt(_mean_square(centred_PG)))


def decoupled_advantages(
    rewards_RPG: jax.Array,
    *,
    weights: tuple[float, ...] | None = None,
    over_batch: bool = True,
) -> jax.Array:
    """Normalise every kind of reward by itself in its group, then add.

    Added first, two rewards of different scale leave what the larger one says: a group
    in which one answer is right and another fast would not tell them apart. A kind of
    reward in which a group does not differ says nothing about that group.

    Args:
        rewards_RPG: Finite rewards of R kinds, for example accuracy and speed, float
            [R, P, G].
        weights: Of the kinds, one each; None: all 1.
        over_batch: Whether the sums are normalised once more over all prompts, so that
            their scale does not grow with the kinds of reward.

    Returns:
        float [P, G].

    Raises:
        ValueError: There is not one weight for each kind.

    Source: LightningRL, arXiv 2603.13319, and its code (reward/rl_reward.py: z-scores
    of accuracy and of tokens per forward in each group, and their sum; its config: then
    z-scores over the batch), after NVIDIA's GDPO, arXiv 2601.05242. Deviation: no small
    constant is added to standard deviations; what has none is 0.
    """
    kinds = rewards_RPG.shape[0]
    weights = (1.0,) * kinds if weights is None else weights
    if len(weights) != kinds:
        raise ValueError(
            f"{len(weights)} weights for {kinds} kinds of reward; give one for each"
        )
    each_RPG = jax.vmap(group_advantages)(rewards_RPG)
    weight_R11 = jnp.asarray(weights, rewards_RPG.dtype)[:, None, None]
    sum_PG = jnp.sum(weight_R11 * each_RPG, axis=0)
    if not over_batch:
        return sum_PG
    # Every group sums to 0 already, and so does the batch.
    flat_1N = sum_PG.reshape(1, -1)
    return _divided(flat_1N, jnp.sqrt(_mean_square(flat_1N))).reshape(sum_PG.shape)


def _centred(rewards_PG: jax.Array) -> jax.Array:
    """Differences from the mean of the group; exactly 0 where all rewards are equal."""
    first_P1 = rewards_PG[:, :1]
    shifted_PG = rewards_PG - first_P1
    return shifted_PG - jnp.mean(shifted_PG, axis=1, keepdims=True)


def _mean_square(centred_PG: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(centred_PG), axis=1, keepdims=True)


def _divided(centred_PG: jax.Array, scale_P1: jax.Array) -> jax.Array:
    """The quotient; 0 where the divisor is."""
    is_zero_P1 = scale_P1 == 0
    return jnp.where(is_zero_P1, 0.0, centred_PG / jnp.where(is_zero_P1, 1.0, scale_P1))
