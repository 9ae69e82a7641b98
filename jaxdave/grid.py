"""Blocks of a window: which is being decoded, what is open, when a row has ended."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdave.types import Policy, Prediction, RowState, View


@dataclasses.dataclass(frozen=True)
class Grid:
    """The geometry of a decode: block length, window length, mask id and stop ids.

    A window starts at a multiple of the block length and holds whole blocks.
    """

    length: int
    window_length: int
    mask_id: int
    stop_ids: tuple[int, ...]

    @property
    def blocks(self) -> int:
        return self.window_length // self.length

    def window(self, state: RowState) -> jax.Array:
        """The tokens of the row's window [L]."""
        return jax.lax.dynamic_slice(
            state.tokens_T, (state.start,), (self.window_length,)
        )

    def places(self, state: RowState) -> jax.Array:
        """The positions of the window [L]."""
        return state.start + jnp.arange(self.window_length, dtype=jnp.int32)

    def active(self, tokens_L: jax.Array, state: RowState):
        """The first block of the window that has something left to decode.

        Returns its index (the last block's if there is none) and open_L, True at its
        masked positions before the row's end.
        """
        masked_L = (tokens_L == self.mask_id) & (self.places(state) < state.end)
        block_L = jnp.arange(self.window_length, dtype=jnp.int32) // self.length
        block = jnp.min(jnp.where(masked_L, block_L, self.blocks - 1))
        return block, masked_L & (block_L == block)

    def cut(self, array_L: jax.Array, block: jax.Array) -> jax.Array:
        """One block of an array that runs along the window."""
        return jax.lax.dynamic_slice_in_dim(array_L, block * self.length, self.length)

    def step(self, policy: Policy, tokens_L, open_L, block, pred: Prediction):
        """One policy step on the active block, given the prediction of that block."""
        view = View(self.cut(tokens_L, block), self.cut(open_L, block), *pred)
        moved_W = policy.step(view)
        # A policy may move open positions only, whatever it returns.
        moved_W = jnp.where(view.open_W, moved_W, view.tokens_W)
        return jax.lax.dynamic_update_slice(tokens_L, moved_W, (block * self.length,))

    def complete_blocks(self, tokens_L: jax.Array) -> jax.Array:
        """How many blocks at the front of the window have no mask left."""
        masked_L = tokens_L == self.mask_id
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
