"""The network of a block-causal model, whose cache is exact.

The output at a block depends on nothing to its right. So a call evaluates every
distinct state of a block once (`block_states`), however many drafts go through it.
"""

import functools

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import BlockStates, KVCache, ModelFns
from jaxdave.models.attention import TILE, block_causal_mask
from jaxdave.models.decode_model import (
    AttentionContext,
    DecodeModel,
    ExtraBranch,
    NumericsName,
    draft_and_trusted_models,
    no_extra_branch,
    window_cache,
)
from jaxdave.models.prefill import PrefillChunks, chunked_prefill, chunked_recheck
from jaxdave.runtime.platform import on_cpu

CPU_CHUNK, FAST_CHUNK = 32, 512
"""The most tokens per pass of a prefill, on a CPU and elsewhere."""


def block_causal_model(
    config: ModelConfig,
    *,
    numerics: NumericsName = "exact",
    positions: int = 4096,
    block_length: int | None = None,
    beside: ExtraBranch = no_extra_branch,
) -> ModelFns:
    """The network of a block-causal model.

    numerics: "exact" attends by tiles on the absolute grid, "fast" in two parts, and
    "guarded" computes drafts either way and what it trusts as "exact" does.
    positions: how many the rotation table covers. beside: what else a call evaluates;
    it looks at whole windows, so there are no pieces then.
    """
    model, trusted = draft_and_trusted_models(config, numerics, positions)
    length = block_length or config.block_length
    see_from = lambda place_L: block_causal_mask(place_L[None], length)  # noqa: E731

    def plain(model: DecodeModel, params, tokens_KL, start, end, cache: KVCache):
        del end
        size = tokens_KL.shape[1]
        see = see_from(start + jnp.arange(size, dtype=jnp.int32))
        return model.window(params, tokens_KL, start, cache, see, start + size)

    def forward(params, tokens_KL, start, end, cache: KVCache):
        hidden, kv = plain(model, params, tokens_KL, start, end, cache)
        seen = AttentionContext(start, cache, kv, see_from, start + tokens_KL.shape[1])
        return beside(model, params, model.align(hidden), seen), kv

    def chunks_of(model: DecodeModel) -> PrefillChunks:
        forward = functools.partial(plain, model)
        size = TILE if model.exact else _fast_chunk(length)
        return PrefillChunks(forward, size, model.vector, model.align)

    def prime_of(model: DecodeModel):
        chunked = chunked_prefill(chunks_of(model), _empty_cache_fn(model))

        def prefill(params, tokens_T, begin, start, end, window: int, prompt: int):
            hidden, cache = chunked(params, tokens_T, begin, start, end, window, prompt)
            held = window_cache(cache, start, window)
            seen = AttentionContext(start, cache, held, see_from, start + window)
            return beside(model, params, hidden[None], seen)[0], cache

        return prefill

    prime = prime_of(trusted)
    if beside is not no_extra_branch:
        return model.network(forward, prime)
    opening = prime_of(model) if numerics == "guarded" else None
    pieces, recheck = (
        _block_state_fn(model, length),
        chunked_recheck(chunks_of(trusted)),
    )
    return model.network(forward, prime, pieces, recheck, opening)


def _fast_chunk(length: int) -> int:
    """Tokens per pass of a prefill where any shape will do; a CPU is busy with few.

    length: of a block, which no pass may cut.
    """
    return max(length, CPU_CHUNK) if on_cpu() else FAST_CHUNK


def _block_state_fn(model: DecodeModel, length: int):
    """`Network.pieces` of a model: pieces are a batch axis that shares the cache."""

    def block_states(params, cut: BlockStates, start, end, cache: KVCache):
        del end
        in_block_P = jnp.arange(length, dtype=jnp.int32)
        place_MP = start + cut.block_M[:, None] * length + in_block_P[None]
        see = block_causal_mask(place_MP[:, :1], length)

        def window_of(part_MPGD):
            seen = part_MPGD[cut.chain_MJ]
            return seen.reshape(seen.shape[0], -1, *seen.shape[3:])

        reach = start + cut.chain_MJ.shape[1] * length
        hidden, kv = model.parts(
            params, cut.tokens_MP, place_MP, start, cache, see, reach, window_of
        )
        return _align_block_states(hidden, cut) if model.shift else hidden, kv

    return block_states


def _align_block_states(hidden_MPE: jax.Array, cut: BlockStates) -> jax.Array:
    """Vectors at the positions that they predict, one to the right.

    A piece's first position is told by the end of the piece before it; the window's
    keeps its own (`prime.shifted`).
    """
    at_M = jnp.maximum(cut.block_M - 1, 0)
    before_M = jnp.take_along_axis(cut.chain_MJ, at_M[:, None], axis=1)[:, 0]
    told_ME = hidden_MPE[before_M, -1]
    first_ME = jnp.where((cut.block_M > 0)[:, None], told_ME, hidden_MPE[:, 0])
    return jnp.concatenate([first_ME[:, None], hidden_MPE[:, :-1]], axis=1)


def _empty_cache_fn(model: DecodeModel):
    def empty_cache(params, capacity: int):
        c = model.config
        shape = (c.num_layers, capacity, c.kv_heads, c.head_dim)
        empty = jnp.zeros(shape, model.vector(params).dtype)
        return KVCache(empty, empty)

    return empty_cache
