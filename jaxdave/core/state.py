"""The state of a decode: rows, their caches, and what a compiled loop is given.

Axis letters of the whole library are in `jaxdave.core.policy_api`. A *row* is one
sequence of a batch. The loop is written for one row; `jaxdave.decoding.rows` maps it
over a batch.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.host_arrays import fetch_arrays, host_array
from jaxdave.core.policy_api import Memory
from jaxdave.core.prediction import ErrorBound, Prediction


class EditProgress(NamedTuple):
    """How far the blocks of an editing policy are (`Policy.max_post_steps`).

    A part of the state: two states of the same tokens at another progress are not
    equal, as other steps follow from them.

    Attributes:
        final_until: No later step changes a position before this one, int32: the first
            position of the first block that has not ended.
        post_steps: Steps that this block has taken since it had no mask left, int32.
    """

    final_until: jax.Array
    post_steps: jax.Array


class PolicyState(NamedTuple):
    """One point of a decoding path.

    Attributes:
        tokens_L: Tokens of the window, int32 [L]: the policy's next state, which is to
            be evaluated. For a policy that scores candidates it is the state that was
            last chosen; the candidates themselves are in the memory.
        memory: The policy's memory.
        n: Policy-step index, int32; it keys the noise.
        progress: How far its blocks are; None unless the policy edits.
    """

    tokens_L: jax.Array
    memory: Memory
    n: jax.Array
    progress: EditProgress | None = None


class Stats(NamedTuple):
    """Running totals of one row.

    Attributes:
        verify: Verify calls, int32.
        refresh: Calls that recomputed the cache (cache rules of full attention), int32.
        recheck: Calls that decided again what was too close to call, int32.
        size_Z: Verify calls by draft length, int32 [Z].
        drafts: Drafts that verify calls evaluated beside the policy's own next state,
            and those of them that were accepted, int32 [2].
        error: The largest difference that a recheck call has found to what it checked.
        call_T: The call that committed each position, int32 [T]; 0 is the prefill, -1
            none yet.
        accepted_C: Policy steps that each call after the prefill confirmed, int32 [C].
        step_T: The policy step that committed each position, int32 [T]; -1 none yet.
            None, like the next one, unless steps are recorded.
        log_prob_T: The log-probability of each committed token at that step, float32
            [T] (see `decoding.step_record`).
    """

    verify: jax.Array
    refresh: jax.Array
    recheck: jax.Array
    size_Z: jax.Array
    drafts: jax.Array
    error: ErrorBound
    call_T: jax.Array
    accepted_C: jax.Array
    step_T: jax.Array | None = None
    log_prob_T: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RowState:
    """One sequence while it is decoded.

    Attributes:
        tokens_T: The prompt, committed tokens and mask ids, int32 [T]. It already holds
            the policy's next state, which is certain but not evaluated yet.
        hidden_LE: Hidden vectors of the window from the last accepted state, [L, E].
        pred: Their prediction [D, L] at the noise of the coming steps. It is stale:
            good for drafts, never for decisions.
        begin: First generated position, int32.
        end: The position after the last one that is decoded, int32.
        draft_text_T: The user's draft text, int32 [T]; -1 where there is none.
        start: First position of the window, int32.
        needs_refresh: The window has moved to where no cache reaches, so the next call
            must recompute the cache.
        n: Policy-step index of the state in `tokens_T`, int32.
        memory: The policy's memory there.
        draft_memory: The draft function's memory there (see `DraftFn`).
        done: The row has ended.
        key: PRNG key of (seed, request), uint32 [2].
        needs_recheck: The decision after that state was too close to call, so the next
            call must be a recheck.
        verified_until: Before this position the cache holds what recheck calls, or the
            trusted prefill, have computed, int32.
        acceptance_counts: Recent accepted and rejected drafts, decayed, float32 [2].
        stats: Running totals.
        progress: How far the blocks of the state in `tokens_T` are; None unless the
            policy edits.
    """

    tokens_T: jax.Array
    hidden_LE: jax.Array
    pred: Prediction
    begin: jax.Array
    end: jax.Array
    draft_text_T: jax.Array
    start: jax.Array
    needs_refresh: jax.Array
    n: jax.Array
    memory: Memory
    draft_memory: Any
    done: jax.Array
    key: jax.Array
    needs_recheck: jax.Array
    verified_until: jax.Array
    acceptance_counts: jax.Array
    stats: Stats
    progress: EditProgress | None = None


class DecodeState(NamedTuple):
    """All rows of a decode and their KV caches.

    A single row has no batch axis: XLA copies the whole cache where the result of a
    loop is laid out with an axis of one. Methods of this class and
    `jaxdave.decoding.rows` are all that has to know.

    Attributes:
        rows: [B, ...], or [...] for a single row.
        cache: The model's cache, layers first: [N, B, T, ...], or [N, T, ...].
    """

    rows: RowState
    cache: Any

    @property
    def is_single(self) -> bool:
        """True for one row without a batch axis."""
        return self.rows.done.ndim == 0

    def without_batch_axis(self) -> "DecodeState":
        """The only row of a batch of one, without its axis."""
        return DecodeState(squeeze_axis(self.rows, 0), squeeze_axis(self.cache, 1))

    def with_batch_axis(self) -> "DecodeState":
        """A single row as a batch of one; a batch as it is."""
        if not self.is_single:
            return self
        rows = jax.tree.map(lambda a: jnp.expand_dims(a, 0), self.rows)
        cache = jax.tree.map(lambda a: jnp.expand_dims(a, 1), self.cache)
        return DecodeState(rows, cache)

    def fetch(self, arrays: Any) -> Any:
        """Arrays of `rows` on the host, always with their batch axis.

        Args:
            arrays: A pytree of arrays of `rows`, [B, ...] or of a single row [...].

        Returns:
            The same pytree of numpy arrays [B, ...].
        """
        host = fetch_arrays(arrays)
        # Hosts always see a batch, so that results
        # are read in one way for any number of rows.
        return jax.tree.map(lambda a: a[None], host) if self.is_single else host

    def take(self, index_R: jax.Array) -> "DecodeState":
        """Some rows of a batch and their caches.

        Args:
            index_R: Indices of the rows to take, int32 [R].

        Returns:
            A state of R rows; one row comes without a batch axis.
        """
        rows = jax.tree.map(lambda a: a[index_R], self.rows)
        # Caches are stacked layers first, [N, B, T, ...]: a layer scan then slices its
        # leading axis, and rows lie on axis 1.
        cache = jax.tree.map(lambda a: a[:, index_R], self.cache)
        chosen = DecodeState(rows, cache)
        return chosen.without_batch_axis() if index_R.shape == (1,) else chosen

    def take_shapes(self, count: int) -> "DecodeState":
        """Shapes and dtypes of `take` of so many rows, without computing it.

        Args:
            count: Rows to take, R.

        Returns:
            A state of `jax.ShapeDtypeStruct`s.
        """
        size = () if count == 1 else (count,)

        def shapes(tree: Any, axis: int) -> Any:
            def shape(a) -> jax.ShapeDtypeStruct:
                dims = (*a.shape[:axis], *size, *a.shape[axis + 1 :])
                return jax.ShapeDtypeStruct(dims, a.dtype)

            return jax.tree.map(shape, tree)

        return DecodeState(shapes(self.rows, 0), shapes(self.cache, 1))


def squeeze_axis(tree: Any, axis: int) -> Any:
    """Remove an axis of size one from every array of a pytree.

    Args:
        tree: A pytree of arrays.
        axis: The axis to remove, 0 for rows and 1 for caches.

    Returns:
        The same pytree without the axis.
    """
    return jax.tree.map(lambda a: jax.lax.squeeze(a, (axis,)), tree)


class RuntimeParams(NamedTuple):
    """What may differ between two runs of one compiled decode; the text never does.

    Attributes:
        max_num_drafts: How many drafts of a call may be used; 1 is the plain policy.
        max_calls: The loop ends after so many rounds.
        stop_at_rows: The loop ends when no more than so many rows are unfinished.
        error_bound: How far predictions may be off, under guarded numerics; infinite:
            every decision is evaluated again.
        seconds_Z: Seconds that a call of each draft length takes, float32 [Z].
        forced_index: Use this draft length whatever it takes, and go on after the rows'
            end (to time it); -1: choose.
    """

    max_num_drafts: jax.Array
    max_calls: jax.Array
    stop_at_rows: jax.Array
    error_bound: ErrorBound
    seconds_Z: jax.Array
    forced_index: jax.Array


class PromptBatch(NamedTuple):
    """The prompts of a decode, padded.

    Attributes:
        tokens_BT: Prompt tokens, then mask ids, int32 [B, T].
        begin_B: First generated position of each row, int32 [B].
        end_B: The position after the last one that is decoded, int32 [B].
        draft_text_BT: The users' draft texts, int32 [B, T]; -1 where there is none.
        seed_B: Noise seeds, uint32 [B].
        request_B: Request numbers, uint32 [B]; with the seed they key the noise.
        is_spare_B: True for rows that fill up a batch and have ended from the start,
            bool [B]; None: there are none.
    """

    tokens_BT: jax.Array
    begin_B: jax.Array
    end_B: jax.Array
    draft_text_BT: jax.Array
    seed_B: jax.Array
    request_B: jax.Array
    is_spare_B: jax.Array | None = None


def default_runtime_params(
    max_num_drafts: int, max_calls: int, num_lengths: int
) -> RuntimeParams:
    """Runtime parameters for exact predictions and calls that all cost the same.

    Args:
        max_num_drafts: How many drafts of a call may be used.
        max_calls: Rounds of the loop at most.
        num_lengths: Draft lengths that a call may have, Z.

    Returns:
        Parameters as host arrays (see `host_array`).
    """
    return RuntimeParams(
        max_num_drafts=host_array(np.int32(max_num_drafts)),
        max_calls=host_array(np.int32(max_calls)),
        stop_at_rows=host_array(np.int32(0)),
        error_bound=ErrorBound.uniform(host_array(np.float32(0))),
        seconds_Z=host_array(np.ones(num_lengths, np.float32)),
        forced_index=host_array(np.int32(-1)),
    )
