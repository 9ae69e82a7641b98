"""Dream's rules: a share of the remaining masks that follows a linear time.

t_i = linspace(1, eps, steps + 1); step i commits n_i = int(m (1 - t_{i+1} / t_i)) of
the m masks that remain, the last step all. `steps` is per block; the grid begins again
in every block, as in Fast-dLLM's Dream. Defaults are those of Dream's generation
config.

Source: Dream (arXiv 2508.15487, generation_utils.py). Deviations: a step whose n_i is 0
commits one token; confidences are of the unfiltered tempered distribution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.block_rules import (
    BlockClock,
    scheduled_policy,
    time_share,
    time_shares,
)
from jaxdave.policies.common import (
    count,
    masked_positions,
    policy_name,
    position_gumbels,
    position_uniforms,
)
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    decreasing,
    increasing,
    point,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_amount, check_count

FeatureFn = Callable[[IntervalView], Interval]
"""The statistic, an interval of float32 [W], that positions are ordered by."""
EPS = 1e-3
"""Dream's last time."""


@register
def origin(steps: int = 512, eps: float = EPS) -> Policy:
    """Every masked position by chance, more likely from step to step.

    Commit i if u_i < 1 - t_{i+1} / t_i, u_i ~ U(0, 1); all in the last step. Schedule
    and source: see this module. Deviation: if chance picks none, the one with the
    smallest u_i is committed.

    Args:
        steps: Steps per block, at least 1.
        eps: The last time, above 0 and below 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.
    """
    shares = checked_time_shares(steps, eps)

    def choose(view: PolicyView, clock: BlockClock, values: IntervalView) -> Interval:
        # A random number per position carries no numerical error, so that the choice is
        # certain whatever the model computed.
        uniform_W = position_uniforms(view)
        by_chance = point(uniform_W < time_share(shares, clock))
        return union(select_top(view, 1, point(-uniform_W)), by_chance)

    return scheduled_policy(policy_name("origin", steps=steps, eps=eps), choose)


@register
def maskgit_plus(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The most probable tokens first, by Dream's time schedule.

    c_i = p_i(token); alg_temp > 0: n_i positions drawn without replacement from
    softmax(c / alg_temp). Schedule, source and deviations: see this module.

    Args:
        steps: Steps per block, at least 1.
        eps: The last time, above 0 and below 1.
        alg_temp: Temperature at which positions are sampled; 0: the best ones.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.
    """
    return _timed_policy(
        policy_name("maskgit_plus", steps=steps, eps=eps, alg_temp=alg_temp),
        steps=steps,
        eps=eps,
        alg_temp=alg_temp,
        order=lambda values: values.score,
        confidence=lambda values: increasing(jax.nn.sigmoid, values.score),
    )


@register
def topk_margin(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The clearest lead over the second token first, by Dream's time schedule.

    c_i = p_(1) - p_(2) of position i; alg_temp as in `maskgit_plus`. Schedule, source
    and deviations: see this module.

    Args:
        steps: Steps per block, at least 1.
        eps: The last time, above 0 and below 1.
        alg_temp: Temperature at which positions are sampled; 0: the best ones.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.
    """

    def probability_margin(values: IntervalView) -> Interval:
        # `margin` is -log(1 - c).
        return increasing(lambda margin_W: -jnp.expm1(-margin_W), values.margin)

    return _timed_policy(
        policy_name("topk_margin", steps=steps, eps=eps, alg_temp=alg_temp),
        steps=steps,
        eps=eps,
        alg_temp=alg_temp,
        order=lambda values: values.margin,
        confidence=probability_margin,
    )


@register
def entropy(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The lowest entropy first, by Dream's time schedule.

    c_i = sum over v of p_i(v) log p_i(v); alg_temp as in `maskgit_plus`. Schedule,
    source and deviations: see this module.

    Args:
        steps: Steps per block, at least 1.
        eps: The last time, above 0 and below 1.
        alg_temp: Temperature at which positions are sampled; 0: the best ones.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.
    """
    return _timed_policy(
        policy_name("entropy", steps=steps, eps=eps, alg_temp=alg_temp),
        steps=steps,
        eps=eps,
        alg_temp=alg_temp,
        order=negative_entropy,
        confidence=negative_entropy,
    )


def checked_time_shares(steps: int, eps: float) -> np.ndarray:
    """The shares of `block_rules.time_shares`, of parameters that are checked.

    Args:
        steps: Steps per block, at least 1.
        eps: The last time, above 0 and below 1.

    Returns:
        float32 [steps].

    Raises:
        ValueError: A parameter is out of range.
    """
    check_count(512, steps=steps)
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps} must be above 0 and below 1; {EPS} is usual")
    return time_shares(steps, eps)


def scheduled_count(
    view: PolicyView, shares: np.ndarray, clock: BlockClock
) -> jax.Array:
    """The number of tokens n_i that the time schedule commits in this step.

    Args:
        view: The policy's view.
        shares: The shares of all steps, float32 [steps].
        clock: The clock of the block.

    Returns:
        n_i, int32 scalar; it may be 0.
    """
    # Masks of the whole block, also those that a wrapper has closed: the schedule
    # counts what remains to be decoded. The floor is Dream's int(...).
    masks = count(masked_positions(view)).astype(jnp.float32)
    return jnp.floor(masks * time_share(shares, clock)).astype(jnp.int32)


def _timed_policy(
    name: str,
    *,
    steps: int,
    eps: float,
    alg_temp: float,
    order: FeatureFn,
    confidence: FeatureFn,
) -> Policy:
    """A rule of Dream's, ordered by `order`, or sampled by `confidence`.

    Both rank alike; `order` does not saturate where a probability rounds to 1.
    """
    shares = checked_time_shares(steps, eps)
    check_amount(0.0, alg_temp=alg_temp)

    def choose(view: PolicyView, clock: BlockClock, values: IntervalView) -> Interval:
        score = order(values)
        if alg_temp > 0:
            score = sampled_order(confidence(values), alg_temp, view, values.slack)
        return select_top(view, scheduled_count(view, shares, clock), score)

    return scheduled_policy(name, choose)


def negative_entropy(values: IntervalView) -> Interval:
    """The negative entropy, highest where the model is most certain.

    Args:
        values: The statistics of a prediction.

    Returns:
        An interval of float32 [W], in nats.
    """
    return decreasing(jnp.negative, values.entropy)


def sampled_order(
    confidence: Interval, temperature: float, view: PolicyView, slack: float
) -> Interval:
    """Scores whose highest n are n draws without replacement from softmax(c / T).

    Args:
        confidence: The confidences c, an interval of float32 [W].
        temperature: The temperature T, above 0.
        view: The policy's view, for its random numbers.
        slack: `IntervalView.slack`.

    Returns:
        c / T + Gumbel noise, an interval of float32 [W].
    """
    noise_W = position_gumbels(view)
    score = increasing(lambda c_W: c_W / jnp.float32(temperature) + noise_W, confidence)
    # Both terms are made with exponentials, c of at most 1 or an entropy of a few nats.
    slack_W = jnp.float32(slack) * (1 + 1 / temperature + jnp.abs(noise_W))
    return Interval(score.low - slack_W, score.high + slack_W)
