"""The window of a decode: its blocks, which one is active, and when a row has ended.

A call evaluates a *window* of consecutive positions that holds whole blocks. Its first
block with a masked position is the *active* one: policies decide there and nowhere
else. Everything here is index arithmetic on one row.
"""

import dataclasses
import enum
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import NO_TOKEN
from jaxdave.core.state import EditProgress, PolicyState, RowState


class CacheRule(enum.Enum):
    """How the KV cache of a decode comes about, and so how its window may move.

    Attributes:
        EXACT: Block-causal models. Keys and values of a block depend on nothing to its
            right, so those computed when its last token was evaluated are final. The
            window moves past blocks whose complete state has been *evaluated*.
        FROZEN: Full attention under Fast-dLLM's "prefix" or "dual" cache. The cache is
            recomputed (a refresh call) whenever a new block becomes active and frozen
            until then. The window moves past every *committed* block, evaluated or not.
        NONE: Full attention without a cache. The window covers the whole answer and
            never moves.
    """

    EXACT = "exact"
    FROZEN = "frozen"
    NONE = "none"

    @property
    def needs_refresh(self) -> bool:
        """True where moving the window makes the cache stale."""
        return self is CacheRule.FROZEN


VARYING_STEP_TOKENS = 2
"""Tokens that a step is taken to commit where their number varies. On the demo model
looking ahead any further than that saves no call of a threshold policy."""


def lookahead_length(num_drafts: int, block_length: int, step_tokens: int) -> int:
    """Length of the window that drafts of a block-causal model can reach.

    After the tokens of d steps are accepted, the next d drafts are made of the same
    call's prediction, so it has to look twice as far past the active block.

    Args:
        num_drafts: Drafts of a call, 1 or more.
        block_length: Tokens of a block.
        step_tokens: Tokens that a policy step is taken to commit.

    Returns:
        Positions, a multiple of `block_length`.
    """
    # No step spans two blocks.
    tokens = num_drafts * min(step_tokens, block_length)
    blocks = 2 * -(-tokens // block_length) if num_drafts > 1 else 1
    return block_length * (1 + blocks)


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """The geometry of a decode.

    Attributes:
        block_length: Tokens of a block.
        window_length: Tokens of a window, a multiple of `block_length`.
        mask_id: Token id of a position that is not decoded yet.
        stop_ids: Ids that end an answer.
        anchored: Blocks are counted from the first generated position, as decoders of
            full attention and of causal context do, instead of from position 0.
        cache_rule: How the KV cache comes about.
        decodable_length: Positions at the front of the window that may be decoded
            before it moves; None: all.
        early_exit: An end token ends the row; otherwise the whole room is decoded, and
            the answer is cut out of it afterwards.
        step_tokens: Tokens that a policy step is taken to commit, for how far drafts
            reach.
    """

    block_length: int
    window_length: int
    mask_id: int
    stop_ids: tuple[int, ...]
    anchored: bool = False
    cache_rule: CacheRule = CacheRule.EXACT
    decodable_length: int | None = None
    early_exit: bool = True
    step_tokens: int = 1

    @property
    def num_blocks(self) -> int:
        """Blocks of a window."""
        return self.window_length // self.block_length

    def used_length(self, num_drafts: int) -> int:
        """How much of the window calls with so many drafts make use of.

        The window is as long as the largest call needs. A smaller call of a
        block-causal model evaluates only the part that its own drafts can reach.

        Args:
            num_drafts: Drafts of a call.

        Returns:
            Positions from the window's start, a multiple of `block_length`.
        """
        if self.cache_rule is not CacheRule.EXACT:
            return self.window_length
        length = lookahead_length(num_drafts, self.block_length, self.step_tokens)
        return min(self.window_length, length)

    def first_start(self, begin: jax.Array) -> jax.Array:
        """Where the first window starts.

        Args:
            begin: First generated position, int32.

        Returns:
            That position where blocks are anchored at it; else the start of its block,
            which may lie inside the prompt. int32.
        """
        block = begin // self.block_length * self.block_length
        return begin if self.anchored else block

    def last_end(self, begin: Any, max_new_tokens: int) -> Any:
        """The position after the last one that is decoded.

        Blocks are decoded whole, as published loops do, and what is asked for is cut
        out of the result: a position that did not exist would change what the others of
        its block see, so that a text would depend on where it is cut.

        Args:
            begin: First generated position of each row, integers.
            max_new_tokens: How many tokens are asked for.

        Returns:
            The end of the block of the last of them; integers like `begin`.
        """
        end = begin + max_new_tokens
        if self.anchored and self.cache_rule is not CacheRule.EXACT:
            return end
        origin = begin if self.anchored else 0
        blocks = -(-(end - origin) // self.block_length)
        return origin + blocks * self.block_length

    def advance(self, evaluated: PolicyState, committed: PolicyState, row: RowState):
        """How far the window moves after a call.

        Args:
            evaluated: The last accepted state of the window, which was evaluated.
            committed: The policy's step from there, which is known but not evaluated.
            row: The row before the move.

        Returns:
            (blocks to move on, True where the cache must be refreshed before the next
            verify call).
        """
        if self.cache_rule is CacheRule.NONE:
            return jnp.int32(0), jnp.bool_(False)
        # Keys and values of a block are those of the call that evaluated it. The
        # committed state is one step ahead of that: moving past a block that only it
        # completes would leave keys of masks in the cache.
        if self.cache_rule is CacheRule.EXACT:
            progress = evaluated.progress
            if progress is not None and committed.progress is not None:
                # A block that ends as its tokens stay has been evaluated with them.
                stays = jnp.all(evaluated.tokens_L == committed.tokens_L)
                until = jnp.where(
                    stays, committed.progress.final_until, progress.final_until
                )
                progress = progress._replace(final_until=until)
            blocks = self.complete_blocks(evaluated.tokens_L, row, progress)
            return blocks, jnp.bool_(False)
        # A refresh evaluates the committed state from its tokens, so that nothing has
        # to be evaluated before the window moves.
        blocks = self.complete_blocks(committed.tokens_L, row, committed.progress)
        return blocks, blocks > 0

    def window_tokens(self, row: RowState) -> jax.Array:
        """The tokens of the row's window.

        Args:
            row: One row.

        Returns:
            int32 [L].
        """
        return self.slice_window(row.tokens_T, row)

    def slice_window(self, array_T: jax.Array, row: RowState) -> jax.Array:
        """The part of an array over the whole sequence that the window covers.

        Args:
            array_T: An array along the sequence, [T].
            row: The row whose window it is.

        Returns:
            An array [L].
        """
        return jax.lax.dynamic_slice_in_dim(array_T, row.start, self.window_length)

    def positions(self, row: RowState) -> jax.Array:
        """The positions of the window in the sequence.

        Args:
            row: One row.

        Returns:
            int32 [L].
        """
        return row.start + jnp.arange(self.window_length, dtype=jnp.int32)

    def active_block(
        self, tokens_L: jax.Array, row: RowState, progress: EditProgress | None
    ):
        """Find the first block of a state that has something left to decode.

        Args:
            tokens_L: A state of the window, int32 [L].
            row: The row whose window it is.
            progress: That of the state.

        Returns:
            (index of the block, that of the last block if there is none; open_L: bool
            [L], True at its masked positions before the row's end).
        """
        masked_L, block_L = self.open_positions(tokens_L, row), self.block_indices()
        pending_L = masked_L
        if progress is not None:
            pending_L = self.pending_positions(tokens_L, row, progress)
        # The last block stands in where nothing is open: callers slice a block in any
        # case, and `open_L` is then False everywhere.
        block = jnp.min(jnp.where(pending_L, block_L, self.num_blocks - 1))
        return block, masked_L & (block_L == block)

    def open_positions(self, tokens_L: jax.Array, row: RowState) -> jax.Array:
        """Positions that may be filled before the window moves.

        Args:
            tokens_L: A state of the window, int32 [L].
            row: The row whose window it is.

        Returns:
            bool [L], True at masked positions before the row's end and inside the
            decodable part of the window.
        """
        return (tokens_L == self.mask_id) & self._is_decodable(row)

    def pending_positions(
        self, tokens_L: jax.Array, row: RowState, progress: EditProgress | None
    ) -> jax.Array:
        """Positions that a step before the window moves may still change.

        Args:
            tokens_L: A state of the window, int32 [L].
            row: The row whose window it is.
            progress: That of the state.

        Returns:
            bool [L]: the open positions; of a policy that edits, all those before the
            row's end and inside the decodable part of the window that are not final.
        """
        return self._not_final(tokens_L, row, progress) & self._is_decodable(row)

    def block_indices(self) -> jax.Array:
        """The block of each position of the window, int32 [L]."""
        return jnp.arange(self.window_length, dtype=jnp.int32) // self.block_length

    def block_slice(self, tree_L: Any, block: jax.Array) -> Any:
        """One block of the arrays of a pytree.

        Args:
            tree_L: Arrays [L, ...] along the window.
            block: Index of the block, int32 scalar.

        Returns:
            The same pytree, arrays [W, ...].
        """
        first, size = block * self.block_length, self.block_length
        return jax.tree.map(
            lambda array_L: jax.lax.dynamic_slice_in_dim(array_L, first, size), tree_L
        )

    def with_block(self, tokens_L: jax.Array, block_W: jax.Array, block: jax.Array):
        """The window's tokens with one block replaced.

        Args:
            tokens_L: A state of the window, int32 [L].
            block_W: The block's new tokens, int32 [W].
            block: Index of the block, int32.

        Returns:
            int32 [L].
        """
        # An update in place of many states at once would be a scatter.
        blocks_L = jnp.tile(block_W, self.num_blocks)
        return jax.lax.select(self.block_indices() == block, blocks_L, tokens_L)

    def complete_blocks(
        self, tokens_L: jax.Array, row: RowState, progress: EditProgress | None
    ) -> jax.Array:
        """Count the blocks at the front of the window that no step changes any more.

        Args:
            tokens_L: A state of the window, int32 [L].
            row: The row whose window it is.
            progress: That of the state.

        Returns:
            The number of blocks, int32: those without masks, or of a policy that edits
            those that have ended.
        """
        masked_L = self._not_final(tokens_L, row, progress)
        # Positions past the row's end are never decoded. Where blocks are counted from
        # the first generated position the answer is whole blocks: they do not count.
        if self.anchored:
            masked_L &= self.positions(row) < row.end
        return self._first_true(masked_L) // self.block_length

    def is_ended(
        self, tokens_L: jax.Array, row: RowState, progress: EditProgress | None
    ) -> jax.Array:
        """True if this state of the window ends the row.

        It does when an end token has everything to its left committed (under
        `early_exit`), when nothing before the row's end is masked, or when a token
        could not be predicted. Of a policy that edits, the end token must be final, and
        everything before the row's end.

        Args:
            tokens_L: A state of the window, int32 [L].
            row: The row whose window it is.
            progress: That of the state.

        Returns:
            A bool scalar.
        """
        position_L = self.positions(row)
        masked_L = self._not_final(tokens_L, row, progress)
        is_stopped = jnp.bool_(False)
        if self.early_exit:
            index_L = jnp.arange(self.window_length)
            is_left_of_masks_L = index_L < self._first_true(masked_L)
            # An end token with a mask to its left does not end the row yet: a token
            # that is decoded there may be an earlier end. Prompts hold end tokens of
            # their chat template, which do not count.
            # One by one: a reduction over the ids would be a kernel of its own.
            is_id = (tokens_L == stop_id for stop_id in self.stop_ids)
            stop_L = functools.reduce(jnp.logical_or, is_id, jnp.zeros_like(masked_L))
            is_answer_L = is_left_of_masks_L & (position_L >= row.begin)
            is_stopped = jnp.any(stop_L & is_answer_L)
        is_full = ~jnp.any(masked_L & (position_L < row.end))
        # A full window is only the end if the row ends inside it.
        ends_inside = row.end <= row.start + self.window_length
        # Nothing that follows a position without one finite score can be right.
        is_broken = jnp.any(tokens_L == NO_TOKEN)
        return is_stopped | (is_full & ends_inside) | is_broken

    def _not_final(
        self, tokens_L: jax.Array, row: RowState, progress: EditProgress | None
    ) -> jax.Array:
        """Masked positions; of a policy that edits, all from the open block on."""
        if progress is None:
            return tokens_L == self.mask_id
        return self.positions(row) >= progress.final_until

    def _is_decodable(self, row: RowState) -> jax.Array:
        """Positions before the row's end that the window may decode, bool [L]."""
        end = row.start + (self.decodable_length or self.window_length)
        return self.positions(row) < jnp.minimum(row.end, end)

    def _first_true(self, flag_L: jax.Array) -> jax.Array:
        """The first index at which the flag holds; the window's length if nowhere."""
        index_L = jnp.arange(self.window_length, dtype=jnp.int32)
        return jnp.min(jnp.where(flag_L, index_L, self.window_length))
