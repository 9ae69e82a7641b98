"""Blocks of a window: which is being decoded, what is open, when a row has ended."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.state import RowState

AdvanceFn = Callable[..., tuple[jax.Array, jax.Array]]


def past_seen(layout: "WindowLayout", evaluated_L, known_L, state: RowState):
    """Past blocks that the evaluated state has completed: their cache is at hand."""
    del known_L
    return layout.complete_blocks(evaluated_L, state), jnp.bool_(False)


def past_known(layout: "WindowLayout", evaluated_L, known_L, state: RowState):
    """Past blocks that are complete at all; the cache is primed again after that."""
    del evaluated_L
    moved = layout.complete_blocks(known_L, state)
    return moved, moved > 0


def nowhere(layout: "WindowLayout", evaluated_L, known_L, state: RowState):
    """The window covers the whole answer."""
    del layout, evaluated_L, known_L, state
    return jnp.int32(0), jnp.bool_(False)


def lookahead_length(drafts: int, length: int) -> int:
    """Positions that drafts of a block-causal model reach from a block's start."""
    return length * (1 + (2 * -(-drafts // length) if drafts > 1 else 1))


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """The geometry of a decode: block length, window length, mask id and stop ids.

    A window holds whole blocks. anchored: blocks are counted from the first generated
    position, as full-attention decoders do; otherwise from position 0. slide(grid,
    evaluated_L, known_L, state) -> (blocks that the window moves on, whether the cache
    must then be primed again): `past_seen`, `past_known` or `nowhere`. reach: positions
    of the window that may be decoded before it moves; None: all.
    """

    length: int
    window_length: int
    mask_id: int
    stop_ids: tuple[int, ...]
    anchored: bool = False
    slide: AdvanceFn = past_seen
    reach: int | None = None

    @property
    def blocks(self) -> int:
        return self.window_length // self.length

    def used_length(self, drafts: int) -> int:
        """How much of the window calls with so many drafts make use of.

        After d tokens are accepted the next d drafts come from the same call, so that
        they reach 2 d tokens past the current block.
        """
        if self.slide is not past_seen:
            return self.window_length
        return min(self.window_length, lookahead_length(drafts, self.length))

    def first(self, begin: jax.Array) -> jax.Array:
        """Where the first window starts, given the first generated position."""
        return begin if self.anchored else begin // self.length * self.length

    def window(self, state: RowState) -> jax.Array:
        """The tokens of the row's window [L]."""
        return self.along(state.tokens_T, state)

    def along(self, array_T: jax.Array, state: RowState) -> jax.Array:
        """The part of an array over the canvas that the window covers."""
        return jax.lax.dynamic_slice_in_dim(array_T, state.start, self.window_length)

    def places(self, state: RowState) -> jax.Array:
        """The positions of the window [L]."""
        return state.start + jnp.arange(self.window_length, dtype=jnp.int32)

    def active(self, tokens_L: jax.Array, state: RowState):
        """The first block of the window that has something left to decode.

        Returns its index (the last block's if there is none) and open_L, True at its
        masked positions before the row's end.
        """
        masked_L, block_L = self.open(tokens_L, state), self.block_of()
        block = jnp.min(jnp.where(masked_L, block_L, self.blocks - 1))
        return block, masked_L & (block_L == block)

    def open(self, tokens_L: jax.Array, state: RowState) -> jax.Array:
        """What may be decoded before the window moves [L]."""
        last = state.start + (self.reach or self.window_length)
        near_L = self.places(state) < jnp.minimum(state.end, last)
        return (tokens_L == self.mask_id) & near_L

    def block_of(self) -> jax.Array:
        """The block of each position of the window [L]."""
        return jnp.arange(self.window_length, dtype=jnp.int32) // self.length

    def cut(self, array_L: jax.Array, block: jax.Array) -> jax.Array:
        """One block of an array that runs along the window."""
        return jax.lax.dynamic_slice_in_dim(array_L, block * self.length, self.length)

    def paste(self, tokens_L: jax.Array, part_W: jax.Array, block: jax.Array):
        """The window with one block replaced."""
        return jax.lax.dynamic_update_slice(tokens_L, part_W, (block * self.length,))

    def complete_blocks(self, tokens_L: jax.Array, state: RowState) -> jax.Array:
        """How many blocks at the front of the window have no mask left.

        Positions past the row's end are never decoded, so on an anchored grid, whose
        answer is whole blocks, they do not count.
        """
        masked_L = tokens_L == self.mask_id
        if self.anchored:
            masked_L &= self.places(state) < state.end
        return self._first(masked_L) // self.length

    def ended(self, tokens_L: jax.Array, state: RowState) -> jax.Array:
        """Whether this state of the window is final.

        It is when an end token has everything to its left committed, or when nothing
        before the row's end is masked.
        """
        place_L = self.places(state)
        masked_L = tokens_L == self.mask_id
        settled_L = jnp.arange(self.window_length) < self._first(masked_L)
        stop_L = jnp.isin(tokens_L, jnp.asarray(self.stop_ids, jnp.int32))
        stopped = jnp.any(settled_L & stop_L & (place_L >= state.begin))
        full = ~jnp.any(masked_L & (place_L < state.end))
        # A full window is only the end if the row ends inside it.
        inside = state.end <= state.start + self.window_length
        return stopped | (full & inside)

    def _first(self, flag_L: jax.Array) -> jax.Array:
        """The first place where the flag holds; the window's length if nowhere."""
        place_L = jnp.arange(self.window_length, dtype=jnp.int32)
        return jnp.min(jnp.where(flag_L, place_L, self.window_length))
