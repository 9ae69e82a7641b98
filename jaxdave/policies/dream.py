"""Dream's rules: a share of the remaining masks that follows a linear time.

t_i = linspace(1, eps, steps + 1); step i commits n_i = int(m (1 - t_{i+1} / t_i)) of
the m masks that remain, the last step all. `steps` is per block; the grid begins again
in every block, as in Fast-dLLM's Dream. Defaults are those of Dream's generation
config.

Steps whose n_i is 0 take no call, as nothing would change: with as many steps as masks,
the first step commits none, the last one two, and the text is the published code's in
one call less. Under a cache, where a block's first token is a step of its own, as many
steps as positions leave all n_i at 0, so that Fast-dLLM's code, and this, commit the
rest of the block at once; ask for fewer steps or for many more. `static`, the policy
where none is named, commits one token in every step.

Source: Dream (arXiv 2508.15487, generation_utils.py). Deviation: confidences are of the
unfiltered tempered distribution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.block_rules import (
    BlockClock,
    TimeGrid,
    block_interval_policy,
    next_commit,
    time_grid,
)
from jaxdave.policies.common import (
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

    Commit i if u_i < 1 - t_{i+1} / t_i, u_i ~ U(0, 1); all in the last step. Steps in
    which chance picks none take no call: with t the present time, the next step is the
    first one with some u_i < 1 - t_{k+1} / t, and commits all such i, which is the same
    law. Schedule and source: see this module.

    Args:
        steps: Steps per block, at least 1.
        eps: The last time, above 0 and below 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.
    """
    times = checked_time_grid(steps, eps).times

    def decide(
        view: PolicyView, clock: BlockClock, index: Memory, values: IntervalView
    ) -> tuple[Interval, Memory]:
        # A random number per position carries no numerical error, so that the choice is
        # certain whatever the model computed.
        uniform_W = position_uniforms(view)
        times_I = jnp.asarray(times)
        index = jnp.minimum(index, steps - 1)
        # Chance to be picked in the steps from the present one up to step k.
        picked_I = 1 - times_I[1:] / times_I[index]
        least = jnp.min(jnp.where(view.open_W, uniform_W, 1.0))
        step_I = jnp.arange(steps, dtype=jnp.int32)
        picks_I = (step_I >= index) & (least < picked_I)
        step = jnp.min(jnp.where(picks_I, step_I, steps - 1))
        return point(uniform_W < picked_I[step]), step + 1

    name = policy_name("origin", steps=steps, eps=eps)
    return block_interval_policy(name, decide, no_steps)._replace(draws=True)


@register
def maskgit_plus(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The most probable tokens first, by Dream's time schedule.

    c_i = p_i(token); alg_temp > 0: n_i positions drawn without replacement from
    softmax(c / alg_temp). Schedule, source and deviation: see this module.

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
    and deviation: see this module.

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
    source and deviation: see this module.

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


def checked_time_grid(steps: int, eps: float) -> TimeGrid:
    """The grid of `block_rules.time_grid`, of parameters that are checked.

    Args:
        steps: Steps per block, at least 1.
        eps: The last time, above 0 and below 1.

    Returns:
        The grid.

    Raises:
        ValueError: A parameter is out of range.
    """
    check_count(512, steps=steps)
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps} must be above 0 and below 1; {EPS} is usual")
    return time_grid(steps, eps)


def no_steps(size: int, width: int) -> Memory:
    """The memory of a time grid before a block's first step: none are taken.

    Args:
        size: Positions of a block.
        width: Features of a hidden vector.

    Returns:
        int32 scalar.
    """
    del size, width
    return jnp.int32(0)


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
    shares = checked_time_grid(steps, eps).shares()
    check_amount(0.0, alg_temp=alg_temp)

    def decide(
        view: PolicyView, clock: BlockClock, index: Memory, values: IntervalView
    ) -> tuple[Interval, Memory]:
        step, num_tokens = next_commit(view, shares, index)
        score = order(values)
        if alg_temp > 0:
            score = sampled_order(confidence(values), alg_temp, view, values.slack)
        return select_top(view, num_tokens, score), step + 1

    policy = block_interval_policy(name, decide, no_steps)
    return policy._replace(draws=alg_temp > 0)


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
