"""The leftmost run of confident tokens: FreeDave's left-to-right rule."""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.common import best_positions, log_odds, policy_name
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    at_least,
    decreasing,
    increasing,
    intersection,
    interval_policy,
    point,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_count, check_share


@register
def leftmost_run(threshold: float = 0.9, tokens_per_step: int = 1) -> Policy:
    """The masks from the left up to the first unsure one, or a few if that is none.

    With the masks i_1 < i_2 < ... commit i_1 ... i_r, where r is the largest number
    with c_i >= threshold for all of them; if r = 0, commit i_1 ... i_n with n =
    `tokens_per_step`, whatever their confidence. Tokens between two masks do not end a
    run.

    Args:
        threshold: The lowest probability of a token of the run, in 0..1.
        tokens_per_step: Tokens to commit where the leftmost one is unsure, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: FreeDave (arXiv 2510.00294; cychomatica/FreeDave, generation/core.py:
    alg_temp=-1 with a confidence_threshold; without one it is `left_to_right`).
    Deviation: confidences are of the unfiltered tempered distribution.

    Example:
        >>> leftmost_run(0.8).name
        'leftmost_run(threshold=0.8, tokens_per_step=1)'
    """
    check_share(0.9, threshold=threshold)
    check_count(1, tokens_per_step=tokens_per_step)
    bound = jnp.float32(log_odds(threshold))

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        # Never falls: with more sure positions the run is no shorter.
        def run(is_sure_W: jax.Array) -> jax.Array:
            stops_W = (view.open_W & ~is_sure_W).astype(jnp.int32)
            return view.open_W & (jnp.cumsum(stops_W) == 0)

        def leftmost(count: int) -> Interval:
            zeros_W = jnp.zeros_like(view.pred.score)
            return point(best_positions(view, count, zeros_W))

        run_W = increasing(run, at_least(values.score, bound))
        is_empty = decreasing(lambda chosen_W: ~jnp.any(chosen_W), run_W)
        few = intersection(leftmost(tokens_per_step), is_empty)
        # The leftmost mask is part of either choice, so it is never in doubt.
        return union(leftmost(1), run_W, few)

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        # A run is one step, and so is each unsure position.
        is_sure_W = view.open_W & (view.pred.score >= bound)
        is_unsure_W = view.open_W & ~is_sure_W
        run_W = jnp.cumsum(is_unsure_W, dtype=jnp.int32)
        index_W = jnp.arange(run_W.shape[0])
        is_later_WW = index_W[:, None] > index_W[None, :]
        same_run_WW = (run_W[:, None] == run_W[None, :]) & is_sure_W[None, :]
        begins_W = is_unsure_W | ~jnp.any(same_run_WW & is_later_WW, axis=1)
        return jnp.cumsum(begins_W & view.open_W, dtype=jnp.int32) - 1

    name = policy_name(
        "leftmost_run", threshold=threshold, tokens_per_step=tokens_per_step
    )
    policy = interval_policy(name, choose)
    # With several it depends on what the last ones were how far the next ones reach.
    return policy._replace(commit_order=commit_order if tokens_per_step == 1 else None)
