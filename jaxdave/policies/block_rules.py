"""Memory that begins anew in every block, and schedules of how many to commit."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Memory, Policy, PolicyView
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
"""No block begins there."""


class BlockClock(NamedTuple):
    """Where a block stands: its steps so far, and the masks that it began with."""

    index: jax.Array
    masks: jax.Array


class BlockStart(NamedTuple):
    """A block's first position, the policy step at its beginning, its masks then."""

    place: jax.Array
    step: jax.Array
    masks: jax.Array


BlockStepFn = Callable[[PolicyView, BlockClock, Memory], tuple[jax.Array, Memory]]


def per_block(
    name: str,
    step: BlockStepFn,
    init: Callable[[int, int], Memory] = lambda size, width: (),
    revises: bool = False,
    sure: Callable[[PolicyView, BlockClock, Memory, ErrorBound], jax.Array]
    | None = None,
) -> Policy:
    """A policy whose memory is that of `init` whenever another block comes to be seen.

    step(view, clock, memory) -> (tokens_W, memory); sure(view, clock, memory, Doubt) as
    in `Policy`.
    """

    def first(size: int, width: int) -> Memory:
        zero = jnp.int32(0)
        return BlockStart(jnp.int32(NO_BLOCK), zero, zero), init(size, width)

    def told(view: PolicyView, memory: Memory) -> tuple[BlockClock, Memory]:
        begun, inner = memory
        fresh = begun.place != view.position_W[0]
        now = BlockStart(view.position_W[0], view.step, count(masked_positions(view)))
        anew = now, init(*view.queries.hidden_WE.shape)
        begun, inner = jax.tree.map(
            lambda a, b: jnp.where(fresh, a, b), anew, (begun, inner)
        )
        return BlockClock(view.step - begun.step, begun.masks), (begun, inner)

    def moved(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        clock, (begun, inner) = told(view, memory)
        tokens_W, inner = step(view, clock, inner)
        return tokens_W, (begun, inner)

    made = Policy(name, moved, first, revises)
    if sure is None:
        return made

    def certain(view: PolicyView, memory: Memory, doubt: ErrorBound) -> jax.Array:
        clock, (_, inner) = told(view, memory)
        return sure(view, clock, inner, doubt)

    return made._replace(is_certain=certain)


DecideFn = Callable[
    [PolicyView, BlockClock, Memory, IntervalView], tuple[Interval, Memory]
]


def block_interval_policy(
    name: str,
    decide: DecideFn,
    init: Callable[[int, int], Memory] = lambda size, width: (),
) -> Policy:
    """A policy from what it chooses, and what it will remember of its block.

    The memory may be made of tokens of open positions and of what is exact, so that no
    error can change it: a certificate looks at the choice alone.
    """

    def step(
        view: PolicyView, clock: BlockClock, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        choice, memory = decide(view, clock, memory, exact_view(view.pred))
        return fill_positions(view, choice.low), memory

    def is_certain(
        view: PolicyView, clock: BlockClock, memory: Memory, doubt: ErrorBound
    ) -> jax.Array:
        choice, _ = decide(view, clock, memory, bounded_view(view.pred, doubt))
        return is_decided(view, choice)

    return per_block(name, step, init, sure=is_certain)


def scheduled_policy(
    name: str, choose: Callable[[PolicyView, BlockClock, IntervalView], Interval]
) -> Policy:
    """A policy that remembers nothing but the clock of its block."""
    return block_interval_policy(
        name, lambda view, clock, memory, told: (choose(view, clock, told), memory)
    )


def even_split(masks: jax.Array | int, steps: int, clock: BlockClock) -> jax.Array:
    """How many of `masks` a step commits when `steps` steps share them evenly (S3).

    n_k = masks // steps, and one more in the first masks % steps steps; the last step
    takes what is left, so that a step in which less was open loses nothing.
    """
    masks = jnp.asarray(masks, jnp.int32)
    share = masks // steps + (clock.index < masks % steps).astype(jnp.int32)
    return jnp.where(clock.index >= steps - 1, masks, share)


def time_shares(steps: int, eps: float) -> np.ndarray:
    """1 - t_{i+1} / t_i for t = linspace(1, eps, steps + 1), and 1 in the last step."""
    times = np.linspace(1.0, eps, steps + 1)
    return np.append(1.0 - times[1:-1] / times[:-2], 1.0).astype(np.float32)


def time_share(shares: np.ndarray, clock: BlockClock) -> jax.Array:
    """The share of the remaining masks that this step commits (S4)."""
    return jnp.asarray(shares)[jnp.minimum(clock.index, len(shares) - 1)]
