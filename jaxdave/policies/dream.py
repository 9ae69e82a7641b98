"""Dream's rules: a share of the remaining masks that follows a linear time.

t_i = linspace(1, eps, steps + 1); step i commits n_i = int(m (1 - t_{i+1} / t_i)) of
the m masks that remain, the last step all. steps: per block; the grid begins anew in
every block, as in Fast-dLLM's Dream. Defaults are those of Dream's generation config.
Source: Dream (arXiv 2508.15487, generation_utils.py). Deviations: a step whose n_i is 0
commits one token; confidences are of the unfiltered tempered distribution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

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
EPS = 1e-3


@register
def origin(steps: int = 512, eps: float = EPS) -> Policy:
    """Every masked position is committed by chance, as time goes by.

    commit i if u_i < 1 - t_{i+1} / t_i, u_i ~ U(0, 1); all in the last step. Schedule
    and source: see this module. Deviation: if chance picks none, the one with the
    smallest u_i is committed. Raises ValueError for a parameter out of range.
    """
    shares = time_shares_checked(steps, eps)

    def choose(view: PolicyView, clock: BlockClock, told: IntervalView) -> Interval:
        drawn_W = position_uniforms(view)
        timely = point(drawn_W < time_share(shares, clock))
        return union(select_top(view, 1, point(-drawn_W)), timely)

    return scheduled_policy(policy_name("origin", steps=steps, eps=eps), choose)


@register
def maskgit_plus(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The most probable tokens first, by Dream's time schedule.

    c_i = p_i(token); alg_temp > 0: n_i positions drawn without replacement from
    softmax(c / alg_temp). Schedule, source and deviations: see this module. Raises
    ValueError for a parameter out of range.
    """
    return _timed(
        policy_name("maskgit_plus", steps=steps, eps=eps, alg_temp=alg_temp),
        (steps, eps, alg_temp),
        order=lambda told: told.score,
        confidence=lambda told: increasing(jax.nn.sigmoid, told.score),
    )


@register
def topk_margin(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The clearest lead over the second token first, by Dream's time schedule.

    c_i = p_(1) - p_(2) of position i; alg_temp as in `maskgit_plus`. Schedule, source
    and deviations: see this module. Raises ValueError for a parameter out of range.
    """
    return _timed(
        policy_name("topk_margin", steps=steps, eps=eps, alg_temp=alg_temp),
        (steps, eps, alg_temp),
        order=lambda told: told.margin,
        confidence=lambda told: increasing(lambda m_W: -jnp.expm1(-m_W), told.margin),
    )


@register
def entropy(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The lowest entropy first, by Dream's time schedule.

    c_i = sum over v of p_i(v) log p_i(v); alg_temp as in `maskgit_plus`. Schedule,
    source and deviations: see this module. Raises ValueError for a parameter out of
    range.
    """
    return _timed(
        policy_name("entropy", steps=steps, eps=eps, alg_temp=alg_temp),
        (steps, eps, alg_temp),
        order=negative_entropy,
        confidence=negative_entropy,
    )


def time_shares_checked(steps: int, eps: float):
    """`block.time_shares`, or ValueError for a parameter out of range."""
    check_count(512, steps=steps)
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps} must be above 0 and below 1; {EPS} is usual")
    return time_shares(steps, eps)


def time_count(view: PolicyView, shares, clock: BlockClock) -> jax.Array:
    """n_i: how many tokens the schedule commits."""
    masks = count(masked_positions(view)).astype(jnp.float32)
    return jnp.floor(masks * time_share(shares, clock)).astype(jnp.int32)


def _timed(name: str, settings, order: FeatureFn, confidence: FeatureFn) -> Policy:
    """order ranks exactly; confidence is what chance is weighed by."""
    steps, eps, alg_temp = settings
    shares = time_shares_checked(steps, eps)
    check_amount(0.0, alg_temp=alg_temp)

    def choose(view: PolicyView, clock: BlockClock, told: IntervalView) -> Interval:
        score = order(told)
        if alg_temp > 0:
            score = sampled_order(confidence(told), alg_temp, view, told.slack)
        return select_top(view, time_count(view, shares, clock), score)

    return scheduled_policy(name, choose)


def negative_entropy(told: IntervalView) -> Interval:
    """The entropy, below 0."""
    return decreasing(jnp.negative, told.entropy)


def sampled_order(
    confidence: Interval, temperature: float, view: PolicyView, slack: float
) -> Interval:
    """Numbers whose best are draws without replacement: c / temperature + Gumbel."""
    noise_W = position_gumbels(view)
    score = increasing(lambda c_W: c_W / jnp.float32(temperature) + noise_W, confidence)
    # Both terms are made with exponentials, c of at most 1 or an entropy of a few nats.
    loose_W = jnp.float32(slack) * (1 + 1 / temperature + jnp.abs(noise_W))
    return Interval(score.low - loose_W, score.high + loose_W)
