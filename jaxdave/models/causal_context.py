"""Models whose finished blocks are causal and whose open block sees itself (Nemotron).

The prompt and every finished block are evaluated causally, and only those keys are
kept. A block with masks sees all of itself, over that cache. Its first token is
predicted by the position before it, so by the causal evaluation of the block to its
left: the public loop spends a call on it, which also makes the keys.

To the decode loop that call is the evaluation of one more state: the finished block
with nothing but masks behind it. As any other state it can be a draft, so the border
between two blocks costs no call of its own where the drafts in front of it hold.

Source: Nemotron-Labs-Diffusion, arXiv 2607.05722, as mlx-vlm and NeMo decode it.
"""

import functools

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig, Numerics
from jaxdave.core.model_api import (
    BlockStates,
    EvaluateBlocksFn,
    KVCache,
    ModelFns,
    PrefillFn,
    RecheckFn,
)
from jaxdave.core.shards import WHOLE_MODEL, ModelShards
from jaxdave.models.attention import TILE, MaskFn
from jaxdave.models.block_causal import (
    chain_min,
    chain_windows,
    empty_cache_fn,
    fast_chunk,
)
from jaxdave.models.decode_model import DecodeModel, draft_and_trusted_models
from jaxdave.models.prefill import (
    PrefillChunks,
    chunked_prefill,
    chunked_recheck,
    shift_right,
)
from jaxdave.runtime.machine import Machine


def causal_context_model(
    config: ModelConfig,
    *,
    numerics: Numerics | str = Numerics.EXACT,
    block_length: int | None = None,
    machine: Machine | None = None,
    shards: ModelShards = WHOLE_MODEL,
) -> ModelFns:
    """Build the functions by which the decode loop sees a model with causal context.

    Args:
        config: The model's shape.
        numerics: As of `block_causal_model`.
        block_length: Tokens of a block; None: the config's.
        machine: What programs are compiled for; None: this machine.
        shards: The devices that the model is split over.

    Returns:
        The record for the decode loop.
    """
    draft_model, trusted_model = draft_and_trusted_models(
        config, numerics, machine, shards
    )
    length = block_length or config.block_length

    def forward(params, tokens_KL, start, end, cache: KVCache):
        del end
        return _evaluate_window(draft_model, length, params, tokens_KL, start, cache)

    is_guarded = numerics == Numerics.GUARDED
    return draft_model.model_fns(
        forward,
        _prefill_fn(trusted_model, length),
        evaluate_blocks=_evaluate_blocks_fn(draft_model, length),
        recheck=_recheck_fn(trusted_model, length),
        fast_prefill=_prefill_fn(draft_model, length) if is_guarded else None,
    )


def _see_until(last_KL: jax.Array) -> MaskFn:
    """The mask of queries that see all keys up to one, int32 [K, L]."""
    return lambda position_S: position_S[None, None] <= last_KL[..., None]


def _causal_chunks(model: DecodeModel, length: int) -> PrefillChunks:
    """How a canvas is evaluated causally; chunks may cut blocks then."""

    def run_chunk(params, tokens_KL, start, end, cache: KVCache):
        del end
        size = tokens_KL.shape[1]
        position_KL = (start + jnp.arange(size, dtype=jnp.int32))[None]
        return model.evaluate_window(
            params, tokens_KL, start, cache, _see_until(position_KL), start + size
        )

    return PrefillChunks(
        forward=run_chunk,
        size=TILE if model.exact else fast_chunk(length, model.machine),
        hidden_struct=model.hidden_struct,
        align=shift_right,
    )


def _prefill_fn(model: DecodeModel, length: int) -> PrefillFn:
    """`ModelFns.prefill`: what is left of the window causally, then the window."""
    causal = chunked_prefill(_causal_chunks(model, length), empty_cache_fn(model))

    def prefill(
        params, tokens_T, begin, start, end, window_length: int, prompt_length: int
    ):
        # Of the causal evaluation only the vector that predicts the window's first
        # token is wanted, and the cache.
        first_1E, cache = causal(params, tokens_T, begin, start, end, 1, prompt_length)
        hidden_LE = _window_after(
            model, length, params, tokens_T, start, window_length, first_1E, cache
        )
        return hidden_LE, cache

    return prefill


def _recheck_fn(model: DecodeModel, length: int) -> RecheckFn:
    """`ModelFns.recheck`, in the same two parts."""
    causal = chunked_recheck(_causal_chunks(model, length))

    def recheck(
        params, tokens_T, verified_until, start, end, window_length: int, cache
    ):
        first_1E, cache = causal(params, tokens_T, verified_until, start, end, 1, cache)
        hidden_LE = _window_after(
            model, length, params, tokens_T, start, window_length, first_1E, cache
        )
        return hidden_LE, cache

    return recheck


def _window_after(
    model: DecodeModel,
    length: int,
    params,
    tokens_T: jax.Array,
    start,
    window_length: int,
    first_1E: jax.Array,
    cache: KVCache,
) -> jax.Array:
    """Vectors [L, E] of a window whose left is in the cache.

    first_1E: the vector that predicts the window's first token.
    """
    tokens_L = jax.lax.dynamic_slice_in_dim(tokens_T, start, window_length)
    hidden_KLE, _ = _evaluate_window(
        model, length, params, tokens_L[None], start, cache
    )
    is_masked = tokens_L[0] == model.config.mask_id
    own_1E = hidden_KLE[0, :1]
    return jnp.concatenate([jnp.where(is_masked, first_1E, own_1E), hidden_KLE[0, 1:]])


def _evaluate_window(
    model: DecodeModel, length: int, params, tokens_KL, start, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """Drafts of a whole window: aligned vectors [K, L, E], keys and values."""
    drafts, size = tokens_KL.shape
    blocks = size // length
    tokens_KJP = tokens_KL.reshape(drafts, blocks, length)
    is_open_KJ = jnp.any(tokens_KJP == model.config.mask_id, axis=2)
    index_L = jnp.arange(size, dtype=jnp.int32)
    block_end_L = (index_L // length + 1) * length
    is_open_KL = jnp.repeat(is_open_KJ, length, axis=1)
    last_KL = start + jnp.where(is_open_KL, block_end_L[None] - 1, index_L[None])
    hidden_KLE, kv = model.evaluate_window(
        params, tokens_KL, start, cache, _see_until(last_KL), start + size
    )
    # Of the first block in the window the predictor lies outside.
    is_first_L = (index_L % length == 0) & (index_L > 0)
    is_left_open_KL = jnp.concatenate([is_open_KL[:, :1], is_open_KL[:, :-1]], axis=1)
    is_masked_KL = tokens_KL == model.config.mask_id
    takes_left_KL = is_first_L[None] & is_masked_KL & ~is_left_open_KL
    shifted_KLE = shift_right(hidden_KLE)
    return jnp.where(takes_left_KL[..., None], shifted_KLE, hidden_KLE), kv


def _evaluate_blocks_fn(model: DecodeModel, length: int) -> EvaluateBlocksFn:
    """`ModelFns.evaluate_blocks`; see that of `block_causal`.

    Blocks to the left of a state's own are finished: they are states of this call that
    are evaluated causally, as their keys have to be.
    """

    def evaluate_blocks(params, states: BlockStates, start, end, cache: KVCache):
        del end
        in_block_P = jnp.arange(length, dtype=jnp.int32)
        first_M1 = start + states.block_M[:, None] * length
        position_MP = first_M1 + in_block_P[None]
        is_masked_MP = states.tokens_MP == model.config.mask_id
        is_open_M = jnp.any(is_masked_MP, axis=1)
        last_MP = jnp.where(is_open_M[:, None], first_M1 + length - 1, position_MP)

        hidden_MPE, kv = model.evaluate_parts(
            params,
            states.tokens_MP,
            position_MP,
            start,
            cache,
            _see_until(last_MP),
            keys_end=start + states.chain_MJ.shape[1] * length,
            window_of=functools.partial(chain_windows, states),
        )
        hidden_MPE = model.share_margins(
            hidden_MPE, lambda number_MP: chain_min(number_MP, states)
        )
        # A block that is not begun is begun by the end of the one before it, once that
        # is finished. Until then its own vector stands there, for drafts alone: no
        # policy looks at a block to the right of one with masks.
        before_M1 = jnp.maximum(states.block_M - 1, 0)[:, None]
        left_M = jnp.take_along_axis(states.chain_MJ, before_M1, axis=1)[:, 0]
        takes_left_M = (states.block_M > 0) & is_masked_MP[:, 0] & ~is_open_M[left_M]
        first_ME = jnp.where(
            takes_left_M[:, None], hidden_MPE[left_M, -1], hidden_MPE[:, 0]
        )
        return jnp.concatenate([first_ME[:, None], hidden_MPE[:, 1:]], axis=1), kv

    return evaluate_blocks
