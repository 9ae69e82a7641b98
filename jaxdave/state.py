"""Where requests stand, and guesses of where they will (letters: see `types.py`)."""

import dataclasses
from typing import NamedTuple

import jax

from jaxdave.types import Doubt, Memory, Prediction


class Stand(NamedTuple):
    """A point of a decoding path: window tokens, the policy's memory, step index n.

    tokens_L: the policy's next state, to be evaluated; of a branching policy the state
    that it has last gone to, its candidates being in the memory.
    """

    tokens_L: jax.Array
    memory: Memory
    n: jax.Array


class Stats(NamedTuple):
    """Running totals of one row.

    verify, refresh, guard: calls by kind. call_T: the call after the prefill (0: that;
    -1: no call yet) that made a position known. accepted_C: policy steps that each
    confirmed. size_Z: verify calls of each size. error: the largest difference that a
    guard call has found to what it checked.
    """

    verify: jax.Array
    refresh: jax.Array
    guard: jax.Array
    size_Z: jax.Array
    error: Doubt
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
    guard. solid: before it the cache holds what guard calls have made. luck: drafts
    that were right, and wrong, of late.
    """

    tokens_T: jax.Array
    hidden_LE: jax.Array
    pred: Prediction
    begin: jax.Array
    end: jax.Array
    told_T: jax.Array
    start: jax.Array
    stale: jax.Array
    n: jax.Array
    memory: Memory
    done: jax.Array
    key: jax.Array
    doubted: jax.Array
    solid: jax.Array
    luck: jax.Array
    stats: Stats


class Guess(NamedTuple):
    """A stand that the policy may reach, the states to be evaluated to go on from
    there, and whether that is worth a slot."""

    stand: Stand
    tokens_NL: jax.Array
    valid: jax.Array


class Drafts(NamedTuple):
    """Guesses of future states; the first is the policy's own next state.

    tokens_KNL: the N states that one step weighs, 1 for most policies; depth_K: policy
    steps after the first draft; valid_K: worth evaluating. worth_K: float32, about how
    likely the walk is to get there, never likelier than to a draft on the way.
    """

    tokens_KNL: jax.Array
    depth_K: jax.Array
    valid_K: jax.Array
    worth_K: jax.Array
