"""Prefill and recheck of block-causal models: a canvas evaluated chunk by chunk.

A prompt could be evaluated in one pass, but then every prompt length would be a program
of its own, and its shape would show in the bits. Instead it is cut into chunks of one
fixed size, which a loop evaluates from left to right, each attending to the cache that
the chunks before it have filled. One compiled body serves prompts of all lengths, peak
memory does not grow with the prompt, and the result at a position does not depend on
how much follows it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.model_api import KVCache, PrefillFn, RecheckFn
from jaxdave.models.kv_cache import write_row

ChunkForwardFn = Callable[..., tuple[jax.Array, KVCache]]
"""`ModelFns.forward`, except that its hidden vectors are not aligned yet."""

AlignFn = Callable[[jax.Array], jax.Array]
"""Moves hidden vectors [..., L, E] to the positions that they predict."""

EmptyCacheFn = Callable[[Any, int], KVCache]
"""(params, capacity) -> a row's cache of zeros, in the dtypes of what is cached."""


class PrefillChunks(NamedTuple):
    """How a block-causal network evaluates a canvas.

    Attributes:
        forward: Evaluates one chunk against the cache.
        size: Tokens of a chunk, a multiple of the block length.
        hidden_struct: params -> shape and dtype of one hidden vector. Known without
            tracing the network, as the loop needs it for its carry.
        align: Moves vectors to the positions that they predict. It runs over all chunks
            at once, as the first position of a chunk is predicted by the chunk before.
        may_shrink: A prompt shorter than a chunk need not be padded to one.
    """

    forward: ChunkForwardFn
    size: int
    hidden_struct: Callable[[Any], jax.ShapeDtypeStruct]
    align: AlignFn = lambda hidden: hidden
    may_shrink: bool = True


def chunked_prefill(chunks: PrefillChunks, empty_cache: EmptyCacheFn) -> PrefillFn:
    """`ModelFns.prefill` of a block-causal network.

    Args:
        chunks: How the canvas is evaluated.
        empty_cache: Makes the cache to fill.

    Returns:
        The prefill function.
    """

    def prefill(
        params, tokens_T, begin, start, end, window_length: int, prompt_length: int
    ):
        del begin
        size = min(chunks.size, prompt_length) if chunks.may_shrink else chunks.size
        sized = chunks._replace(size=size)
        cache = empty_cache(params, tokens_T.shape[0])
        return _run_chunks(
            sized, params, tokens_T, jnp.int32(0), start, end, window_length, cache
        )

    return prefill


def chunked_recheck(chunks: PrefillChunks) -> RecheckFn:
    """`ModelFns.recheck` of a block-causal network.

    It evaluates the chunks again, from the first one that is not verified yet up to the
    window.

    Args:
        chunks: How the canvas is evaluated, in the trusted shape.

    Returns:
        The recheck function.
    """

    def recheck(
        params, tokens_T, verified_until, start, end, window_length: int, cache
    ):
        # Where logits shift, the vector before the window predicts its first position,
        # so that the chunk of start - 1 is needed even if it is verified.
        # Whole chunks are redone, so that their shape and their place on the grid are
        # those of the prefill; redoing verified positions gives the same bits again.
        first = jnp.maximum(jnp.minimum(verified_until, start - 1), 0) // chunks.size
        return _run_chunks(
            chunks, params, tokens_T, first, start, end, window_length, cache
        )

    return recheck


def _run_chunks(
    chunks: PrefillChunks,
    params,
    tokens_T,
    first,
    start,
    end,
    window_length: int,
    cache,
):
    """Chunks from `first` to the one of the window's end: (hidden_LE, cache).

    Only vectors of the window are returned, so the carry holds those of the chunks from
    that of position start - 1 on: at most one more than the window covers. Vectors of
    earlier chunks are written to the buffer's front, and overwritten.
    """
    # 1. Which chunks: up to the one of the window's last position. The bounds are known
    # at run time only, so that one program serves all prompts of a bucket.
    size = chunks.size
    num_chunks = (start + window_length + size - 1) // size
    buffer_chunk = jnp.maximum(start - 1, 0) // size

    # 2. Evaluate a chunk against the cache of those before it, and
    # append its keys. The cache has room for whole chunks: a slice
    # past its end would be moved back in silence.
    def run_chunk(index, carry):
        cache, hidden_QE = carry
        at = index * size
        tokens = jax.lax.dynamic_slice(tokens_T, (at,), (size,))
        hidden, added = chunks.forward(params, tokens[None], at, end, cache)
        offset = jnp.maximum(index - buffer_chunk, 0) * size
        hidden_QE = jax.lax.dynamic_update_slice(hidden_QE, hidden[0], (offset, 0))
        return write_row(cache, jax.tree.map(lambda a: a[:, 0], added), at), hidden_QE

    struct = chunks.hidden_struct(params)
    max_chunks = (window_length + size - 1) // size + 1
    hidden_QE = jnp.zeros((max_chunks * size, *struct.shape), struct.dtype)
    cache, hidden_QE = jax.lax.fori_loop(
        first, num_chunks, run_chunk, (cache, hidden_QE)
    )
    # 3. Align all chunks together, then cut the window out of them.
    aligned_QE = chunks.align(hidden_QE)
    window_offset = start - buffer_chunk * size
    hidden_LE = jax.lax.dynamic_slice_in_dim(aligned_QE, window_offset, window_length)
    return hidden_LE, cache


def shift_right(hidden: jax.Array) -> jax.Array:
    """Move vectors to the positions that they predict, one to the right.

    Args:
        hidden: Vectors [..., L, E] of a model whose output at i - 1 predicts token i.

    Returns:
        Vectors [..., L, E]. The first position keeps its own, as in Dream's sampler,
        whose aligned logits repeat the first row.
    """
    return jnp.concatenate([hidden[..., :1, :], hidden[..., :-1, :]], axis=-2)
