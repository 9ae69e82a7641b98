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

from jaxdave.policies.block import Clock, by_time, scheduled, time_shares
from jaxdave.policies.checks import check_amount, check_count
from jaxdave.policies.common import count, gumbels, masked, named, uniforms
from jaxdave.policies.spans import (
    Span,
    Told,
    either,
    falling,
    rising,
    same,
    top,
)
from jaxdave.types import Policy, View

Feature = Callable[[Told], Span]
EPS = 1e-3


def origin(steps: int = 512, eps: float = EPS) -> Policy:
    """Every masked position is committed by chance, as time goes by.

    commit i if u_i < 1 - t_{i+1} / t_i, u_i ~ U(0, 1); all in the last step. Schedule
    and source: see this module. Deviation: if chance picks none, the one with the
    smallest u_i is committed. Raises ValueError for a parameter out of range.
    """
    shares = checked_shares(steps, eps)

    def choose(view: View, clock: Clock, told: Told) -> Span:
        drawn_W = uniforms(view)
        timely = same(drawn_W < by_time(shares, clock))
        return either(top(view, 1, same(-drawn_W)), timely)

    return scheduled(named("origin", steps=steps, eps=eps), choose)


def maskgit_plus(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The most probable tokens first, by Dream's time schedule.

    c_i = p_i(token); alg_temp > 0: n_i positions drawn without replacement from
    softmax(c / alg_temp). Schedule, source and deviations: see this module. Raises
    ValueError for a parameter out of range.
    """
    return _timed(
        named("maskgit_plus", steps=steps, eps=eps, alg_temp=alg_temp),
        (steps, eps, alg_temp),
        order=lambda told: told.score,
        confidence=lambda told: rising(jax.nn.sigmoid, told.score),
    )


def topk_margin(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The clearest lead over the second token first, by Dream's time schedule.

    c_i = p_(1) - p_(2) of position i; alg_temp as in `maskgit_plus`. Schedule, source
    and deviations: see this module. Raises ValueError for a parameter out of range.
    """
    return _timed(
        named("topk_margin", steps=steps, eps=eps, alg_temp=alg_temp),
        (steps, eps, alg_temp),
        order=lambda told: told.margin,
        confidence=lambda told: rising(lambda m_W: -jnp.expm1(-m_W), told.margin),
    )


def entropy(steps: int = 512, eps: float = EPS, alg_temp: float = 0.0) -> Policy:
    """The lowest entropy first, by Dream's time schedule.

    c_i = sum over v of p_i(v) log p_i(v); alg_temp as in `maskgit_plus`. Schedule,
    source and deviations: see this module. Raises ValueError for a parameter out of
    range.
    """
    return _timed(
        named("entropy", steps=steps, eps=eps, alg_temp=alg_temp),
        (steps, eps, alg_temp),
        order=clarity,
        confidence=clarity,
    )


def checked_shares(steps: int, eps: float):
    """`block.time_shares`, or ValueError for a parameter out of range."""
    check_count(512, steps=steps)
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps} must be above 0 and below 1; {EPS} is usual")
    return time_shares(steps, eps)


def time_count(view: View, shares, clock: Clock) -> jax.Array:
    """n_i: how many tokens the schedule commits."""
    masks = count(masked(view)).astype(jnp.float32)
    return jnp.floor(masks * by_time(shares, clock)).astype(jnp.int32)


def _timed(name: str, settings, order: Feature, confidence: Feature) -> Policy:
    """order ranks exactly; confidence is what chance is weighed by."""
    steps, eps, alg_temp = settings
    shares = checked_shares(steps, eps)
    check_amount(0.0, alg_temp=alg_temp)

    def choose(view: View, clock: Clock, told: Told) -> Span:
        score = order(told)
        if alg_temp > 0:
            score = drawn(confidence(told), alg_temp, view, told.slack)
        return top(view, time_count(view, shares, clock), score)

    return scheduled(name, choose)


def clarity(told: Told) -> Span:
    """The entropy, below 0."""
    return falling(jnp.negative, told.entropy)


def drawn(confidence: Span, temperature: float, view: View, slack: float) -> Span:
    """Numbers whose best are draws without replacement: c / temperature + Gumbel."""
    noise_W = gumbels(view)
    score = rising(lambda c_W: c_W / jnp.float32(temperature) + noise_W, confidence)
    # Both terms are made with exponentials, c of at most 1 or an entropy of a few nats.
    loose_W = jnp.float32(slack) * (1 + 1 / temperature + jnp.abs(noise_W))
    return Span(score.least - loose_W, score.most + loose_W)
