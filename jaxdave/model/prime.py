"""The call that evaluates a state from its tokens alone and makes the cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.cache import put_row
from jaxdave.types import KVCache

Forward = Callable[..., tuple[jax.Array, KVCache]]
Align = Callable[[jax.Array], jax.Array]


def in_chunks(forward: Forward, empty_cache, chunk: int, align: Align = lambda h: h):
    """The prefill of a block-causal network, at most `chunk` tokens per pass.

    forward: as `Network.forward`, its vectors not aligned yet.
    """

    def prime(params, tokens_T, begin, start, end, window: int, prompt: int):
        del begin
        size = min(chunk, prompt)
        chunks = (start + window + size - 1) // size

        def one(index, held):
            cache, hidden_TE = held
            at = index * size
            tokens = jax.lax.dynamic_slice(tokens_T, (at,), (size,))
            hidden, new = forward(params, tokens[None], at, end, cache)
            hidden_TE = jax.lax.dynamic_update_slice(hidden_TE, hidden[0], (at, 0))
            return put_row(cache, jax.tree.map(lambda a: a[:, 0], new), at), hidden_TE

        cache = jax.tree.map(lambda a: a[:, 0], empty_cache(1, tokens_T.shape[0]))
        hidden, kv = jax.eval_shape(
            forward, params, tokens_T[None, :size], jnp.int32(0), end, cache
        )
        # Keys and values are kept in the dtype that the network makes them in.
        cache = jax.tree.map(lambda a, new: a.astype(new.dtype), cache, kv)
        hidden_TE = jnp.zeros((prompt, hidden.shape[-1]), hidden.dtype)
        cache, hidden_TE = jax.lax.fori_loop(0, chunks, one, (cache, hidden_TE))
        return jax.lax.dynamic_slice_in_dim(align(hidden_TE), start, window), cache

    return prime


def shifted(hidden: jax.Array) -> jax.Array:
    """Vectors [..., L, E] at the positions that they predict, one to the right.

    The first position keeps its own (Dream: aligned logits repeat the first row).
    """
    return jnp.concatenate([hidden[..., :1, :], hidden[..., :-1, :]], axis=-2)
