"""Where requests stand, and guesses of where they will (letters: see `types.py`)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Memory
from jaxdave.core.prediction import ErrorBound, Prediction


class Stats(NamedTuple):
    """Running totals of one row.

    Attributes:
        verify: Verify calls, int32.
        refresh: Calls that made the cache anew (cache rules of full attention), int32.
        recheck: Calls that decided again what was too close to call, int32.
        size_Z: Verify calls by draft length, int32 [Z].
        error: The largest difference that a recheck call has found to what it checked.
        call_T: The call that committed each position, int32 [T]; 0 is the prefill, -1
            none yet.
        accepted_C: Policy steps that each call after the prefill confirmed, int32 [C].
    """

    verify: jax.Array
    refresh: jax.Array
    recheck: jax.Array
    size_Z: jax.Array
    error: ErrorBound
    call_T: jax.Array
    accepted_C: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowState:
    """Where one request stands.

    tokens_T: int32 canvas: the prompt, what is known, mask ids. It already holds the
    policy's next state, which is certain but not evaluated yet (see `Stand`).
    hidden_LE, pred: vectors of the window from the last evaluated state, and their
    Prediction [D, L] at the noise of the coming steps; good for drafts only, never for
    decisions. begin, end: the first generated position, and the one after the last.
    told_T: the user's draft text; -1: none. start: first position of the window. stale:
    the window has moved to where no cache reaches, so the next call must be a refresh.
    n: policy-step index of the state in `tokens_T`; memory: the policy's there.
    doubted: what follows that state was too close to call, so the next call must be a
    recheck. solid: before it the cache holds what recheck calls have made. luck: drafts
    that were right, and wrong, of late.
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
    done: jax.Array
    key: jax.Array
    needs_recheck: jax.Array
    verified_until: jax.Array
    acceptance_counts: jax.Array
    stats: Stats


class DecodeState(NamedTuple):
    """All rows [B, ...] and their cache [N, B, T, ...]; or one, without that axis."""

    rows: RowState
    cache: Any

    @property
    def is_one(self) -> bool:
        """Whether it is one row without an axis."""
        return self.rows.done.ndim == 0

    def alone(self) -> "DecodeState":
        """The only row of a batch of one."""
        return DecodeState(squeeze_axis(self.rows, 0), squeeze_axis(self.cache, 1))

    def as_batch(self) -> "DecodeState":
        """A batch of the one row."""
        put = lambda tree, at: jax.tree.map(lambda a: jnp.expand_dims(a, at), tree)  # noqa: E731
        return DecodeState(put(self.rows, 0), put(self.cache, 1))


def squeeze_axis(tree: Any, axis: int) -> Any:
    """Arrays without an axis of one."""
    return jax.tree.map(lambda a: jax.lax.squeeze(a, (axis,)), tree)


class PolicyState(NamedTuple):
    """A point of a decoding path: window tokens, the policy's memory, step index n.

    tokens_L: the policy's next state, to be evaluated; of a branching policy the state
    that it has last gone to, its candidates being in the memory.
    """

    tokens_L: jax.Array
    memory: Memory
    n: jax.Array


class RuntimeParams(NamedTuple):
    """What a compiled decode may be told anew at every run; the text is the same.

    Attributes:
        max_num_drafts: How many drafts of a call may be used; 1 is the plain policy.
        max_calls: The loop ends after so many rounds.
        stop_at_rows: The loop ends when no more than so many rows are unfinished.
        error_bound: How far predictions may be off, under guarded numerics; infinite:
            every decision is evaluated again.
        seconds_Z: Seconds that a call of each draft length takes.
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
    """What a decode starts from: canvases, where rows begin and end, the users' draft
    texts (-1 where there is none), noise ids."""

    tokens_BT: jax.Array
    begin_B: jax.Array
    end_B: jax.Array
    draft_text_BT: jax.Array
    seed_B: jax.Array
    request_B: jax.Array


def default_runtime_params(cap: int, calls: int, sizes: int) -> RuntimeParams:
    """Terms by which nothing is doubted and all `sizes` cost the same."""
    whole = lambda value: host_array(np.int32(value))  # noqa: E731
    none = ErrorBound.uniform(host_array(np.float32(0)))
    same = host_array(np.ones(sizes, np.float32))
    return RuntimeParams(whole(cap), whole(calls), whole(0), none, same, whole(-1))


def host_array(value: np.ndarray | np.generic) -> jax.Array:
    """An array that a compiled program fetches itself.

    All of a call's go together then: putting each on the device first costs a third of
    a millisecond, and `jnp.asarray` would compile a program for its shape.
    """
    return value  # pyright: ignore[reportReturnType]
