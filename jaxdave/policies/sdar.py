"""SDAR's rules: a block's length shared evenly among its denoising steps.

n_k = length // steps, and one more in the first length % steps steps, whatever the
block's masks are (S3). steps: per block. Source: SDAR (arXiv 2510.06303, generate.py;
its command line's defaults). Deviations: at least one token a step, never a position
that is not masked, and the last step takes all. `entropy_bounded`: `bounded.py`.
"""

import jax
import jax.numpy as jnp

from jaxdave.policies.block import Clock, by_rank, even_split, scheduled, unsighted
from jaxdave.policies.checks import check_count, check_share
from jaxdave.policies.common import apart, best, count, far_from, log_odds, named
from jaxdave.types import Policy, View


def sequential(steps: int = 4) -> Policy:
    """The n_k places from the leftmost mask on.

    Schedule, source and deviations: see this module. Raises ValueError below 1.
    """
    check_count(4, steps=steps)

    def choose(view: View, clock: Clock) -> jax.Array:
        size = view.open_W.shape[0]
        at_W = jnp.arange(size, dtype=jnp.int32)
        first = jnp.min(jnp.where(view.open_W, at_W, size))
        some = jnp.maximum(even_split(size, steps, clock), 1)
        return view.open_W & (at_W < first + some)

    return scheduled(named("sequential", steps=steps), choose, unsighted)


def low_confidence_static(steps: int = 4) -> Policy:
    """The n_k most confident tokens.

    Schedule, source and deviations: see this module. Raises ValueError below 1.
    """
    check_count(4, steps=steps)

    def choose(view: View, clock: Clock) -> jax.Array:
        some = even_split(view.open_W.shape[0], steps, clock)
        return best(view, some, view.pred.score)

    return scheduled(
        named("low_confidence_static", steps=steps), choose, by_rank(choose)
    )


def low_confidence_dynamic(steps: int = 4, threshold: float = 0.85) -> Policy:
    """Every token surer than `threshold`, or the n_k best if those are fewer.

    H = {i: c_i > threshold}; commit H if |H| >= n_k, otherwise the n_k best. Schedule,
    source and deviations: see this module; LLaDA2 has the same rule. Raises ValueError
    for a parameter out of range.
    """
    check_count(4, steps=steps)
    check_share(0.85, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    def choose(view: View, clock: Clock) -> jax.Array:
        some = even_split(view.open_W.shape[0], steps, clock)
        sure_W = view.open_W & (view.pred.score > bound)
        enough = count(sure_W) >= jnp.maximum(some, 1)
        return jnp.where(enough, sure_W, best(view, some, view.pred.score))

    def sure(view: View, clock: Clock, error: jax.Array) -> jax.Array:
        chosen_W = choose(view, clock)
        is_by_bound = jnp.all(chosen_W == (view.open_W & (view.pred.score > bound)))
        is_told = is_by_bound | apart(view, chosen_W, error)
        return far_from(view, bound, error) & is_told

    name = named("low_confidence_dynamic", steps=steps, threshold=threshold)
    return scheduled(name, choose, sure)
