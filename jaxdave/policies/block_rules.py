"""Policies with a memory per block, and schedules of how many tokens a step commits.

Published rules are written for one block and restart in the next. `block_policy` wraps
such a rule: it notices that the view shows another block, and hands the rule a fresh
memory and a clock that counts the steps of the block.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Memory, Policy, PolicyView, no_memory
from jaxdave.core.prediction import ErrorBound
from jaxdave.policies.common import count, fill_positions, masked_positions
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    bounded_view,
    exact_view,
    is_decided,
)

NO_BLOCK = -(2**31)
"""`BlockStart.position` before the first block: a position at which none begins."""


class BlockClock(NamedTuple):
    """How far a block has been decoded.

    Attributes:
        index: Steps taken in the block so far, int32 scalar.
        masks: Masks that the block began with, int32 scalar.
    """

    index: jax.Array
    masks: jax.Array


class BlockStart(NamedTuple):
    """The state of things when the present block was seen first.

    Attributes:
        position: The block's first position, int32 scalar.
        step: Index of the policy step, int32 scalar.
        masks: Masks in the block, int32 scalar.
    """

    position: jax.Array
    step: jax.Array
    masks: jax.Array


BlockStepFn = Callable[[PolicyView, BlockClock, Memory], tuple[jax.Array, Memory]]
"""(view, clock, memory) -> (tokens_W, memory), as `Policy.step` with a clock."""

BlockCertainFn = Callable[[PolicyView, BlockClock, Memory, ErrorBound], jax.Array]
"""(view, clock, memory, error bound) -> bool, as `Policy.is_certain` with a clock."""

BlockOrderFn = Callable[[PolicyView, BlockClock], jax.Array]
"""(view, clock) -> int32 [W], as `Policy.commit_order` with a clock."""


def block_policy(
    name: str,
    step: BlockStepFn,
    init: Callable[[int, int], Memory] = no_memory,
    revises: bool = False,
    is_certain: BlockCertainFn | None = None,
    commit_order: BlockOrderFn | None = None,
) -> Policy:
    """A policy whose memory starts afresh in every block.

    Args:
        name: The policy's name.
        step: What a step commits.
        init: Maps (block size W, features E) to the memory at a block's beginning.
        revises: See `Policy`.
        is_certain: The certificate of `step`, or None if the rule has none.
        commit_order: The order of its steps, or None if the rule has none.

    Returns:
        The policy. Its memory is (`BlockStart`, the rule's memory).
    """

    def init_blocks(size: int, width: int) -> Memory:
        zero = jnp.int32(0)
        return BlockStart(jnp.int32(NO_BLOCK), zero, zero), init(size, width)

    def enter_block(view: PolicyView, memory: Memory) -> tuple[BlockClock, Memory]:
        start, inner = memory
        is_new_block = start.position != view.position_W[0]
        # A block is known by its first position. At a new one the
        # memory is replaced leaf by leaf, not by `cond`, of which
        # both branches run under `vmap` in any case.
        start_here = BlockStart(
            view.position_W[0], view.step, count(masked_positions(view))
        )
        fresh = start_here, init(*view.queries.hidden_WE.shape)
        start, inner = jax.tree.map(
            lambda a, b: jnp.where(is_new_block, a, b), fresh, (start, inner)
        )
        return BlockClock(view.step - start.step, start.masks), (start, inner)

    def step_in_block(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        clock, (start, inner) = enter_block(view, memory)
        tokens_W, inner = step(view, clock, inner)
        return tokens_W, (start, inner)

    policy = Policy(name, step_in_block, init_blocks, revises)
    if commit_order is not None:

        def commit_order_in_block(view: PolicyView, memory: Memory) -> jax.Array:
            return commit_order(view, enter_block(view, memory)[0])

        policy = policy._replace(commit_order=commit_order_in_block)
    if is_certain is None:
        return policy

    def is_certain_in_block(
        view: PolicyView, memory: Memory, error_bound: ErrorBound
    ) -> jax.Array:
        # The memory that the step would enter with;
        # what it leaves is not needed to certify it.
        clock, (_, inner) = enter_block(view, memory)
        return is_certain(view, clock, inner, error_bound)

    return policy._replace(is_certain=is_certain_in_block)


DecideFn = Callable[
    [PolicyView, BlockClock, Memory, IntervalView], tuple[Interval, Memory]
]
"""(view, clock, memory, values) -> (the positions to commit, memory)."""


def block_interval_policy(
    name: str,
    decide: DecideFn,
    init: Callable[[int, int], Memory] = no_memory,
    commit_order: BlockOrderFn | None = None,
) -> Policy:
    """A policy with a memory per block, and its certificate, from a rule on intervals.

    Args:
        name: The policy's name.
        decide: The rule. Its memory may only be made of what no error can change, that
            is of tokens at open positions and of exact numbers: the certificate looks
            at the choice alone.
        init: Maps (block size W, features E) to the memory at a block's beginning.
        commit_order: The order of its steps, or None if the rule has none.

    Returns:
        The policy.
    """

    def step(
        view: PolicyView, clock: BlockClock, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        # On intervals of width 0 both ends of the choice are equal.
        choice, memory = decide(view, clock, memory, exact_view(view.pred))
        return fill_positions(view, choice.low), memory

    def is_certain(
        view: PolicyView, clock: BlockClock, memory: Memory, error_bound: ErrorBound
    ) -> jax.Array:
        values = bounded_view(view.pred, error_bound)
        choice, _ = decide(view, clock, memory, values)
        return is_decided(view, choice)

    return block_policy(
        name, step, init, is_certain=is_certain, commit_order=commit_order
    )


def scheduled_policy(
    name: str,
    choose: Callable[[PolicyView, BlockClock, IntervalView], Interval],
    commit_order: BlockOrderFn | None = None,
) -> Policy:
    """A policy that depends on the clock of its block, and has no other memory.

    Args:
        name: The policy's name.
        choose: Maps (view, clock, values) to the positions to commit, an interval of
            bool [W].
        commit_order: The order of its steps, or None if the rule has none.

    Returns:
        The policy, with its certificate.
    """

    def decide(
        view: PolicyView, clock: BlockClock, memory: Memory, values: IntervalView
    ) -> tuple[Interval, Memory]:
        return choose(view, clock, values), memory

    return block_interval_policy(name, decide, commit_order=commit_order)


def even_split(masks: jax.Array | int, steps: int, clock: BlockClock) -> jax.Array:
    """The number of tokens that a step commits when steps share masks evenly.

    n_k = masks // steps, and one more in the first masks % steps steps. The last step
    takes all masks, so that a step that found fewer open positions loses nothing.

    Args:
        masks: How many masks to share, int32 scalar.
        steps: How many steps share them.
        clock: The clock of the block.

    Returns:
        n_k for k = `clock.index`, int32 scalar.
    """
    masks = jnp.asarray(masks, jnp.int32)
    # As `get_num_transfer_tokens` of LLaDA's generate.py counts them.
    share = masks // steps + (clock.index < masks % steps).astype(jnp.int32)
    return jnp.where(clock.index >= steps - 1, masks, share)


def next_splits(
    view: PolicyView, masks: jax.Array | int, steps: int, clock: BlockClock
) -> jax.Array:
    """The numbers of tokens that the next steps commit when they share masks evenly.

    Args:
        view: The policy's view.
        masks: How many masks to share, int32 scalar.
        steps: How many steps share them.
        clock: The clock of the block.

    Returns:
        `even_split` of this step and of those after it, int32 [W].
    """
    index_W = clock.index + jnp.arange(view.open_W.shape[0], dtype=jnp.int32)
    return even_split(masks, steps, clock._replace(index=index_W))


class TimeGrid(NamedTuple):
    """A linear time that falls in steps, as Dream's sampler counts it.

    Attributes:
        times: t_0 ... t_steps, float32 [steps + 1], from 1 down to 0: the last step
            takes all, as if its time ended at 0.
    """

    times: np.ndarray

    @property
    def steps(self) -> int:
        """How many steps the time falls in."""
        return len(self.times) - 1

    def shares(self) -> np.ndarray:
        """The share of the remaining masks that each step commits.

        Returns:
            1 - t_{i+1} / t_i, float32 [steps]; 1 in the last step.
        """
        return np.float32(1) - self.times[1:] / self.times[:-1]


def time_grid(steps: int, eps: float) -> TimeGrid:
    """A linear time from 1 to eps.

    Args:
        steps: Number of steps.
        eps: The last time, above 0 and below 1.

    Returns:
        linspace(1, eps, steps + 1) with 0 in the place of the last time, in the float32
        numbers that `torch.linspace` has: counted from both ends, so that a count that
        is a whole number but for rounding is rounded as in the published code.
    """
    first, last = np.float32(1), np.float32(eps)
    # In float64, where these products are exact: a sum is rounded once, as by the fused
    # multiply-add that torch uses on every processor that has one.
    stride = np.float64((last - first) / np.float32(steps))
    index = np.arange(steps + 1)
    from_first = first + stride * index
    from_last = last - stride * (steps - index)
    times = np.where(index < (steps + 1) // 2, from_first, from_last)
    times = times.astype(np.float32)
    return TimeGrid(np.append(times[:-1], np.float32(0)))


def next_commit(
    view: PolicyView, shares: np.ndarray, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The next step of a time grid that commits something, and how much.

    Step i commits int(m share_i) of the m masks that remain. A step that commits none
    leaves the state as it is, so that the model would say the same again: the policy
    goes on to the next step of the grid without a call. Where a wrapper has closed
    masks, the step is one of the grid whatever it commits, as a block's first token is
    in Fast-dLLM's Dream.

    Args:
        view: The policy's view.
        shares: The shares of all steps, float32 [steps].
        index: The step of the grid that is due, int32 scalar.

    Returns:
        (the step of the grid to take, the number of tokens that it commits, which is 0
        only where a wrapper has closed masks), int32 scalars.
    """
    # Masks of the whole block, also those that a wrapper has closed: the grid counts
    # what remains to be decoded. The product is rounded as Dream's int(...) finds it.
    masks = count(masked_positions(view))
    counts_I = jnp.floor(masks.astype(jnp.float32) * jnp.asarray(shares))
    last = len(shares) - 1
    step_I = jnp.arange(len(shares), dtype=jnp.int32)
    index = jnp.minimum(index, last)
    commits_I = (step_I >= index) & (counts_I >= 1)
    is_whole = count(view.open_W) == masks
    first = jnp.min(jnp.where(commits_I, step_I, last))
    step = jnp.where(is_whole, first, index)
    return step, counts_I[step].astype(jnp.int32)
