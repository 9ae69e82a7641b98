"""Parameters: what shapes they have, and how they become a module inside jit.

Nothing here imports Flax, so that a process which finds its compiled programs on disk
need not either: `denoiser` is what the shapes are of, and is imported when traced.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any
"""Dicts of dicts of arrays, those of the layers stacked [N, ...]; or what `placing` and
`quantize` make of them."""


class KVCache(NamedTuple):
    """Rotated keys and values of committed tokens, [N, (B,) T or L, G, D]."""

    k: jax.Array
    v: jax.Array


class BlockStates(NamedTuple):
    """The distinct states of a window's blocks that a call evaluates.

    tokens_MP: a block's tokens; block_M: which block of the window; chain_MJ: the
    pieces that stand in the blocks of the window as each piece sees it: those to its
    left, and itself.
    """

    tokens_MP: jax.Array
    block_M: jax.Array
    chain_MJ: jax.Array


class ModelFns(NamedTuple):
    """What the decode loop needs of a model; everything else about it stays outside.

    A row's cache is a pytree of arrays [N, T, ...]; what is in it is the network's own
    business: keys and values of what lies outside the window, or the tokens there.
    hidden vectors stand at the positions that they predict.

    forward(params, tokens_KL, start, end, cache of one row)
        -> (hidden_KLE, what a committed window adds to the cache [N, K, L, ...], or
        None where a cache stays as it was primed)
    prime(params, tokens_T, begin, start, end, window length, prompt length)
        -> (hidden_LE of the window, cache of one row): one call, from the tokens alone
    logits(params, hidden_RE, first id of the chunk) -> float32 [R, chunk]
    logits_at(params, hidden_RE, ids_RM) -> float32 [R, M]
    vocab_rows, vocab_size, banned: what may be predicted; chunk: ids per head chunk.
    shadow(hidden_RE) -> vectors that `logits` reads the shadow's say from, what the
    model would say were that position masked; None: the network has no shadow.
    pieces(params, Pieces, start, end, cache of one row) -> (hidden_MPE, what they add
        to the cache [N, M, P, ...]): `forward` where blocks see nothing to their right;
        None: the network only evaluates whole windows.
    recheck(params, tokens_T, solid, start, end, window length, cache of one row)
        -> (hidden_LE of the window, the cache): one call that evaluates the state of
        the window in the shape that guarded numerics trust; before `solid` the cache is
        made of such calls already. None: the network has no such shape.
    opening: `prefill` in whatever shapes are fastest, where guarded numerics may do so
        because `recheck` makes all of the cache anew; None: they use `prefill`.
    """

    forward: Callable[..., tuple[jax.Array, Any]]
    prefill: Callable[..., tuple[jax.Array, Any]]
    logits: Callable[[Any, jax.Array, jax.Array], jax.Array]
    logits_at: Callable[[Any, jax.Array, jax.Array], jax.Array]
    vocab_rows: int
    vocab_size: int
    suppressed_ids: tuple[int, ...]
    chunk: int
    shadow: Callable[[jax.Array], jax.Array] | None = None
    block_states: Callable[..., tuple[jax.Array, Any]] | None = None
    recheck: Callable[..., tuple[jax.Array, Any]] | None = None
    fast_prefill: Callable[..., tuple[jax.Array, Any]] | None = None
