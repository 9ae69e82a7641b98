"""d3LLM's rules: an entropy threshold, in one block or in several in a pipeline."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.common import (
    masked_positions,
    order_after_first,
    policy_name,
)
from jaxdave.policies.dream import negative_entropy
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    above,
    exact_view,
    intersection,
    interval_policy,
    point,
    select_best,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import (
    block_counts,
    check_amount,
    check_count,
    check_share,
)


@register
def entropy_threshold(threshold: float = 0.4) -> Policy:
    """Every token whose entropy is below a bound, at least the one with the lowest.

    Commit i with H_i < threshold, and the lowest H_i.

    Args:
        threshold: The bound in nats, 0 or more.

    Returns:
        The policy.

    Raises:
        ValueError: `threshold` is below 0 or not finite.

    Source: d3LLM (arXiv 2601.07568; hao-ai-lab/d3LLM, alg="entropy_threshold"; 0.4 in
    its scripts for Dream, 0.5 in those for LLaDA), SGLang's EntropyThreshold (0.95).
    Deviation: entropies are of the unfiltered tempered distribution.
    """
    check_amount(0.4, threshold=threshold)

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        certainty = negative_entropy(values)
        sure = above(certainty, jnp.float32(-threshold))
        return union(select_top(view, 1, certainty), sure)

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        # After the first step no token below the bound is left.
        values = exact_view(view.pred)
        first_W = choose(view, values).low
        return order_after_first(view.open_W, negative_entropy(values).low, first_W)

    name = policy_name("entropy_threshold", threshold=threshold)
    return interval_policy(name, choose)._replace(commit_order=commit_order)


@register
def multi_block(
    length: int = 32, threshold: float = 0.4, block_add_threshold: float = 0.1
) -> Policy:
    """An entropy threshold in several small blocks at once, each begun after another.

    The block is cut into small blocks of `length`. A small block is active if in every
    one before it a share of at least `block_add_threshold` is decoded. Commit i in the
    active ones with H_i < threshold; of the first one with masks at least the lowest
    H_i. With block_add_threshold=1 it is `entropy_threshold` with small blocks.

    Args:
        length: Positions of a small block, counted from the block's start, at least 1.
        threshold: The bound in nats, 0 or more.
        block_add_threshold: The decoded share of a small block from which the next one
            is active, in 0..1; 0: all are from the start.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: d3LLM (arXiv 2601.07568; hao-ai-lab/d3LLM, _sample_multi_block of its Dream
    with the settings of its scripts), SGLang's FullAttnMultiBlock. Small blocks are
    theirs and the block is the whole answer: its own setting is one single block with
    cache "none". Deviations: an end token does not fill what is right of it, as
    decoding ends by itself when all before it is known; without
    `decoded_token_threshold`, which decides nothing there but what is cached; its LLaDA
    also commits H_i = threshold and the lowest H_i of all active blocks. Its delayed
    cache is not offered: it depends on which calls have run.
    """
    check_count(32, length=length)
    check_amount(0.4, threshold=threshold)
    check_share(0.1, block_add_threshold=block_add_threshold)
    most_masks = _most_masks(length, block_add_threshold)

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        size = view.open_W.shape[0]
        small_block_W = jnp.arange(size, dtype=jnp.int32) // length
        first = jnp.min(jnp.where(view.open_W, small_block_W, size))
        first_W = view.open_W & (small_block_W == first)
        certainty = negative_entropy(values)
        sure = above(certainty, jnp.float32(-threshold))
        # Of the first small block the lowest entropy is committed in either case:
        # where another one is below the bound, it is so too.
        return union(
            select_best(first_W, point(jnp.int32(1)), certainty),
            intersection(sure, point(_active(view, length, most_masks))),
        )

    name = policy_name(
        "multi_block",
        length=length,
        threshold=threshold,
        block_add_threshold=block_add_threshold,
    )
    counts = block_counts(length=(length, 32))
    return interval_policy(name, choose)._replace(counts=counts)


def _most_masks(length: int, share: float) -> int:
    """The most masks of a small block of which at least a share is decoded."""
    # In float64 and in this form, as the published code rounds it.
    masks = np.arange(length + 1)
    return int(np.max(masks[1 - masks / length >= share]))


def _active(view: PolicyView, length: int, most_masks: int) -> jax.Array:
    """The positions of small blocks that are active, bool [W]."""
    size = view.open_W.shape[0]
    num_small_blocks = -(-size // length)
    masked_W = jnp.pad(masked_positions(view), (0, num_small_blocks * length - size))
    masks_J = jnp.sum(masked_W.reshape(-1, length), axis=1, dtype=jnp.int32)
    too_few_J = jnp.cumsum(masks_J > most_masks, dtype=jnp.int32)
    # The first small block waits for none.
    is_active_J = jnp.pad(too_few_J[:-1], (1, 0)) == 0
    return jnp.repeat(is_active_J, length, total_repeat_length=masked_W.shape[0])[:size]
