"""The call that evaluates a state from its tokens alone and makes the cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.model_api import KVCache
from jaxdave.models.kv_cache import write_row

ForwardFn = Callable[..., tuple[jax.Array, KVCache]]
AlignFn = Callable[[jax.Array], jax.Array]


class PrefillChunks(NamedTuple):
    """How a block-causal network evaluates a canvas: at most `size` tokens per pass.

    forward: as `Network.forward`, its vectors not aligned yet; like(params) -> shape
    and dtype of one vector, told without tracing what makes it.
    """

    forward: ForwardFn
    size: int
    like: Callable[[Any], jax.ShapeDtypeStruct]
    align: AlignFn = lambda hidden: hidden


def chunked_prefill(chunks: PrefillChunks, empty_cache):
    """`Network.prime`: the prefill of a block-causal network.

    empty_cache(params, capacity) -> cache of one row, in the dtypes of what is kept.
    """

    def prefill(params, tokens_T, begin, start, end, window: int, prompt: int):
        del begin
        own = chunks._replace(size=min(chunks.size, prompt))
        cache = empty_cache(params, tokens_T.shape[0])
        return _run_chunks(
            own, params, tokens_T, jnp.int32(0), start, end, window, cache
        )

    return prefill


def chunked_recheck(chunks: PrefillChunks):
    """`Network.recheck`: the chunks from the first that is not solid on, once more."""

    def recheck(params, tokens_T, solid, start, end, window: int, cache):
        # The vector before the window tells its first position where logits shift.
        first = jnp.maximum(jnp.minimum(solid, start - 1), 0) // chunks.size
        return _run_chunks(chunks, params, tokens_T, first, start, end, window, cache)

    return recheck


def _run_chunks(
    chunks: PrefillChunks, params, tokens_T, first, start, end, window: int, cache
):
    """Chunks from `first` to the one that holds the window's end: (hidden, cache).

    Vectors are kept from the chunk of the position before the window on.
    """
    size = chunks.size
    count = (start + window + size - 1) // size
    kept = jnp.maximum(start - 1, 0) // size

    def one(index, held):
        cache, hidden_QE = held
        at = index * size
        tokens = jax.lax.dynamic_slice(tokens_T, (at,), (size,))
        hidden, new = chunks.forward(params, tokens[None], at, end, cache)
        place = jnp.maximum(index - kept, 0) * size
        hidden_QE = jax.lax.dynamic_update_slice(hidden_QE, hidden[0], (place, 0))
        return write_row(cache, jax.tree.map(lambda a: a[:, 0], new), at), hidden_QE

    like = chunks.like(params)
    most = (window + size - 1) // size + 1
    hidden_QE = jnp.zeros((most * size, *like.shape), like.dtype)
    cache, hidden_QE = jax.lax.fori_loop(first, count, one, (cache, hidden_QE))
    told_QE = chunks.align(hidden_QE)
    return jax.lax.dynamic_slice_in_dim(told_QE, start - kept * size, window), cache


def shift_right(hidden: jax.Array) -> jax.Array:
    """Vectors [..., L, E] at the positions that they predict, one to the right.

    The first position keeps its own (Dream: aligned logits repeat the first row).
    """
    return jnp.concatenate([hidden[..., :1, :], hidden[..., :-1, :]], axis=-2)
