"""The words that every module shares, and the one legend of axis letters.

Axes: B rows (requests), T the whole canvas of a row, L the window being decoded, W a
stretch of it, K drafts, D depths of future noise, V vocabulary, N layers, H heads,
G key/value heads, E features, X vocabulary chunk. The engine is written for one row;
rows are put side by side by a map (`decode.Program.over_rows`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class KVCache(NamedTuple):
    """Rotated keys and values of committed tokens, [N, (B,) T or L, G, D]."""

    k: jax.Array
    v: jax.Array


class Network(NamedTuple):
    """What the decode loop needs of a model; everything else about it stays outside.

    forward(params, tokens_KL, start, cache of one row, chunked prefill or not)
        -> (hidden_KLE, KVCache of the window [N, K, L, G, D])
    logits(params, hidden_RE, first id of the chunk) -> float32 [R, chunk]
    empty_cache(rows, capacity) -> KVCache
    vocab_rows, vocab_size, banned: what may be predicted; chunk: ids per head chunk.
    """

    forward: Callable[..., tuple[jax.Array, KVCache]]
    logits: Callable[[Any, jax.Array, jax.Array], jax.Array]
    empty_cache: Callable[[int, int], KVCache]
    vocab_rows: int
    vocab_size: int
    banned: tuple[int, ...]
    chunk: int


class Prediction(NamedTuple):
    """What the model says of each position: the token it would take, and how surely.

    score: float32, log of the odds of that token against all others. It orders as the
    probability does and never saturates. Token -1: no prediction at hand.
    """

    token: jax.Array
    score: jax.Array


class View(NamedTuple):
    """What a policy may look at: a stretch of the canvas and its prediction.

    open_W: True where a masked position may be committed now (its block is the first
    unfinished one).
    """

    tokens_W: jax.Array
    open_W: jax.Array
    token_W: jax.Array
    score_W: jax.Array


class Policy(NamedTuple):
    """The rule that says what one decoding step commits: a pure step(view) -> tokens_W.

    It must fill at least one open position whenever there is one.
    """

    name: str
    step: Callable[[View], jax.Array]


class Stats(NamedTuple):
    """Running totals of one row.

    call_T: the verify call that made a position known (0: the prefill; -1: not yet).
    accepted_C: policy steps that each verify call confirmed.
    """

    verify: jax.Array
    call_T: jax.Array
    accepted_C: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowState:
    """Where one request stands.

    tokens_T: int32 canvas: the prompt, what is known, mask ids. It already holds the
    policy's next state, which is certain but not evaluated yet.
    pred: Prediction [D, L] of the window from the last evaluated state, at the noise of
    the coming steps; good for drafts only, never for decisions.
    begin, end: the first generated position, and the one after the last.
    start: first position of the window, a multiple of the block length; everything
    before it is in the cache. n: policy-step index of the state in `tokens_T`.
    """

    tokens_T: jax.Array
    pred: Prediction
    begin: jax.Array
    end: jax.Array
    start: jax.Array
    n: jax.Array
    done: jax.Array
    key: jax.Array
    stats: Stats


class Drafts(NamedTuple):
    """Guesses of future states; the first is the policy's own next state.

    tokens_KL; depth_K: policy steps after the first draft; valid_K: worth evaluating.
    """

    tokens_KL: jax.Array
    depth_K: jax.Array
    valid_K: jax.Array
