"""The Dilated Unmasking Scheduler (DUS): far positions first, in rounds fixed ahead."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.common import policy_name
from jaxdave.policies.intervals import Interval, IntervalView, interval_policy, point
from jaxdave.policies.registry import register
from jaxdave.policies.validation import block_counts, check_count


@register
def dilated(base: int = 2) -> Policy:
    """Rounds of equally spaced positions, each filling the gaps of those before it.

    Position i of a block of B is of the first round t = 1, 2, ... in which i is a
    multiple of floor(B / base^t) (of the last one, where that is 0); a last round that
    is smaller than the one before joins it. A step commits all masks of the first round
    that has some. With base 2, blocks of 8, 16, 32 take 3, 4, 5 steps. Which positions
    come next depends on nothing that the model says, so nested drafts are only wrong
    where a token changes.

    Args:
        base: What the distance is divided by from round to round, at least 1; 1 is all
            at once.

    Returns:
        The policy.

    Raises:
        ValueError: `base` is below 1.

    Source: DUS (arXiv 2506.19037, eq. 8 and 9; omerlux/DUS, generate.py,
    scheduler="dilated"). Deviations: positions are counted from the block's start, also
    where the prompt reaches into it; without the optional skip of unsure tokens, which
    are taken up again in a later round by the paper and stay masked in the code.

    Example:
        >>> dilated().name
        'dilated(base=2)'
    """
    check_count(2, base=base)

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        round_W = _round_of(view, base)
        return point(view.open_W & (round_W == jnp.min(round_W)))

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        # Rounds without a mask take no step.
        round_W = _round_of(view, base)
        size = round_W.shape[0]
        has_mask_W = jnp.any(round_W[None] == jnp.arange(size)[:, None], axis=1)
        earlier_W = jnp.cumsum(has_mask_W, dtype=jnp.int32) - 1
        return earlier_W[jnp.minimum(round_W, size - 1)]

    policy = interval_policy(policy_name("dilated", base=base), choose)
    counts = block_counts(base=(base, 2))
    return policy._replace(commit_order=commit_order, counts=counts)


def _round_of(view: PolicyView, base: int) -> jax.Array:
    """The round of each open position, int32 [W]; the block's size at all others."""
    size = view.open_W.shape[0]
    return jnp.where(view.open_W, jnp.asarray(rounds(size, base)), size)


def rounds(size: int, base: int) -> np.ndarray:
    """The round in which each position of a block is due.

    Args:
        size: Positions of the block, B.
        base: What the distance is divided by from round to round, at least 1.

    Returns:
        Rounds from 0, int32 [B].

    Example:
        >>> rounds(8, 2).tolist()
        [0, 2, 1, 2, 0, 2, 1, 2]
    """
    index_W = np.arange(size)
    round_W = np.full(size, -1, np.int32)
    stride, number = (size // base if base > 1 else 0), 0
    while np.any(round_W < 0):
        is_due_W = (round_W < 0) & ((index_W % stride == 0) if stride else True)
        # A distance that is rounded down may bring nothing new.
        if np.any(is_due_W):
            round_W[is_due_W] = number
            number += 1
        stride //= base
    last, previous = number - 1, number - 2
    if number > 1 and np.sum(round_W == last) < np.sum(round_W == previous):
        round_W[round_W == last] = previous
    return round_W
