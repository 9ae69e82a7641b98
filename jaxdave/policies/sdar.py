"""SDAR's rules: a block's length shared evenly among its denoising steps.

n_k = length // steps, and one more in the first length % steps steps, whatever the
block's masks are (S3). steps: per block. Source: SDAR (arXiv 2510.06303, generate.py;
its command line's defaults). Deviations: at least one token a step, never a position
that is not masked, and the last step takes all. `entropy_bounded`: `bounded.py`.
"""

import jax.numpy as jnp

from jaxdave.policies.block import Clock, even_split, scheduled
from jaxdave.policies.checks import check_count, check_share
from jaxdave.policies.common import log_odds, named
from jaxdave.policies.spans import Span, Told, above, either, same, top
from jaxdave.types import Policy, View


def sequential(steps: int = 4) -> Policy:
    """The n_k places from the leftmost mask on.

    Schedule, source and deviations: see this module. Raises ValueError below 1.
    """
    check_count(4, steps=steps)

    def choose(view: View, clock: Clock, told: Told) -> Span:
        size = view.open_W.shape[0]
        at_W = jnp.arange(size, dtype=jnp.int32)
        first = jnp.min(jnp.where(view.open_W, at_W, size))
        some = jnp.maximum(even_split(size, steps, clock), 1)
        return same(view.open_W & (at_W < first + some))

    return scheduled(named("sequential", steps=steps), choose)


def low_confidence_static(steps: int = 4) -> Policy:
    """The n_k most confident tokens.

    Schedule, source and deviations: see this module. Raises ValueError below 1.
    """
    check_count(4, steps=steps)

    def choose(view: View, clock: Clock, told: Told) -> Span:
        some = even_split(view.open_W.shape[0], steps, clock)
        return top(view, some, told.score)

    return scheduled(named("low_confidence_static", steps=steps), choose)


def low_confidence_dynamic(steps: int = 4, threshold: float = 0.85) -> Policy:
    """Every token surer than `threshold`, or the n_k best if those are fewer.

    H = {i: c_i > threshold}; commit H if |H| >= n_k, otherwise the n_k best. Schedule,
    source and deviations: see this module; LLaDA2 has the same rule. Raises ValueError
    for a parameter out of range.
    """
    check_count(4, steps=steps)
    check_share(0.85, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    def choose(view: View, clock: Clock, told: Told) -> Span:
        some = even_split(view.open_W.shape[0], steps, clock)
        # H is the run of best tokens of its length, so the longer of the two is both.
        return either(above(told.score, bound), top(view, some, told.score))

    name = named("low_confidence_dynamic", steps=steps, threshold=threshold)
    return scheduled(name, choose)
