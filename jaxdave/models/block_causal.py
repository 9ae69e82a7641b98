"""Block-causal models (SDAR, TraDo, Fast-dLLM v2), whose KV cache is exact.

The output at a block depends on nothing to its right. So the keys and values of a
committed block never change, and a call need not evaluate whole windows: it evaluates
each distinct state of a block once (`BlockStates`), however many drafts pass through
it, as in tree attention.
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
)
from jaxdave.core.shards import WHOLE_MODEL, ModelShards
from jaxdave.models.attention import TILE, block_causal_mask
from jaxdave.models.decode_model import DecodeModel, draft_and_trusted_models
from jaxdave.models.extra_branch import AttentionContext, ExtraBranch, no_extra_branch
from jaxdave.models.kv_cache import window_cache
from jaxdave.models.prefill import (
    EmptyCacheFn,
    PrefillChunks,
    chunked_prefill,
    chunked_recheck,
)
from jaxdave.runtime.machine import Machine

CPU_CHUNK, FAST_CHUNK = 32, 512
"""The largest number of tokens per chunk of a prefill, on a CPU and elsewhere."""


def block_causal_model(
    config: ModelConfig,
    *,
    numerics: Numerics | str = Numerics.EXACT,
    block_length: int | None = None,
    machine: Machine | None = None,
    extra_branch: ExtraBranch = no_extra_branch,
    shards: ModelShards = WHOLE_MODEL,
) -> ModelFns:
    """Build the functions by which the decode loop sees a block-causal model.

    Args:
        config: The model's shape.
        numerics: "exact" attends by tiles on an absolute grid, "fast" in two parts;
            "guarded" evaluates drafts as "fast" does, and as "exact" what it trusts.
        block_length: Tokens of a block; None: the config's.
        machine: What programs are compiled for; None: this machine.
        extra_branch: What else each call evaluates. It works on whole windows, so
            there is no `evaluate_blocks`, and no recheck, with one.
        shards: The devices that the model is split over.

    Returns:
        The record for the decode loop.

    Example:
        >>> from jaxdave.models.presets import preset
        >>> model = block_causal_model(preset("sdar-1m"), numerics="guarded")
        >>> model.recheck is not None
        True
    """
    draft_model, trusted_model = draft_and_trusted_models(
        config, numerics, machine, shards
    )
    length = block_length or config.block_length

    def mask_from(position_L):
        return block_causal_mask(position_L[None], length)

    # A window, or a chunk of a prefill, against the cache of what is left of it. Blocks
    # see nothing to their right, so that the row's end need not be known: positions
    # past it are never seen by those before it.
    def run_window(model: DecodeModel, params, tokens_KL, start, end, cache: KVCache):
        del end
        size = tokens_KL.shape[1]
        mask_fn = mask_from(start + jnp.arange(size, dtype=jnp.int32))
        return model.evaluate_window(
            params, tokens_KL, start, cache, mask_fn, start + size
        )

    def forward(params, tokens_KL, start, end, cache: KVCache):
        hidden, kv = run_window(draft_model, params, tokens_KL, start, end, cache)
        keys_end = start + tokens_KL.shape[1]
        context = AttentionContext(start, cache, kv, mask_from, keys_end)
        return extra_branch(draft_model, params, draft_model.align(hidden), context), kv

    # Chunks have one size for all prompts: under exact numerics that is the trusted
    # shape. `TILE` is a multiple of every block length, so that no chunk cuts a block.
    def chunks_of(model: DecodeModel) -> PrefillChunks:
        return PrefillChunks(
            forward=functools.partial(run_window, model),
            size=TILE if model.exact else fast_chunk(length, model.machine),
            hidden_struct=model.hidden_struct,
            align=model.align,
            # What a router chooses may hang on the last bits: a prompt must have those
            # that a recheck would compute, in whatever bucket it lies.
            may_shrink=not model.traces_router,
        )

    def prefill_of(model: DecodeModel) -> PrefillFn:
        chunked = chunked_prefill(chunks_of(model), empty_cache_fn(model))

        def prefill(
            params, tokens_T, begin, start, end, window_length: int, prompt_length: int
        ):
            hidden, cache = chunked(
                params, tokens_T, begin, start, end, window_length, prompt_length
            )
            # The extra branch needs what the window has attended to. Its keys have just
            # been written to the cache, and are cut out of it again.
            window = window_cache(cache, start, window_length)
            keys_end = start + window_length
            context = AttentionContext(start, cache, window, mask_from, keys_end)
            return extra_branch(model, params, hidden[None], context)[0], cache

        return prefill

    prefill = prefill_of(trusted_model)
    if extra_branch is not no_extra_branch:
        return draft_model.model_fns(forward, prefill)
    # A fast prefill is allowed only where its decisions are certified, and its cache
    # can be remade by `recheck` before it decides anything close.
    # Prompts of a mixture are long enough for some router's near tie, after which a
    # fast prefill would only be done again.
    is_fast = numerics == Numerics.GUARDED and not draft_model.traces_router
    return draft_model.model_fns(
        forward,
        prefill,
        evaluate_blocks=_evaluate_blocks_fn(draft_model, length),
        recheck=chunked_recheck(chunks_of(trusted_model)),
        fast_prefill=prefill_of(draft_model) if is_fast else None,
    )


def fast_chunk(length: int, machine: Machine) -> int:
    """Tokens per chunk of a prefill where any shape will do; a CPU is busy with few.

    Args:
        length: Tokens of a block, which no chunk may cut.
        machine: What programs are compiled for.

    Returns:
        The number of tokens.
    """
    return max(length, CPU_CHUNK) if machine.is_cpu else FAST_CHUNK


def _evaluate_blocks_fn(model: DecodeModel, length: int) -> EvaluateBlocksFn:
    """`ModelFns.evaluate_blocks`: block states are a batch axis that shares the cache.

    The keys that a block state sees in the window are those of its ancestors in the
    same call, which are gathered by `chain_MJ` in every layer.
    """

    def evaluate_blocks(params, states: BlockStates, start, end, cache: KVCache):
        del end
        in_block_P = jnp.arange(length, dtype=jnp.int32)
        position_MP = start + states.block_M[:, None] * length + in_block_P[None]
        # All queries of a block see the same keys: one mask row per state will do.
        mask_fn = block_causal_mask(position_MP[:, :1], length)

        # M block states take the place of K drafts: the cache is shared by all of them.
        hidden, kv = model.evaluate_parts(
            params,
            states.tokens_MP,
            position_MP,
            start,
            cache,
            mask_fn,
            keys_end=start + states.chain_MJ.shape[1] * length,
            window_of=functools.partial(chain_windows, states),
        )
        hidden = model.share_margins(hidden, lambda a_MP: chain_min(a_MP, states))
        return _align_block_states(hidden, states) if model.shift else hidden, kv

    return evaluate_blocks


def chain_windows(states: BlockStates, part_MPGD: jax.Array) -> jax.Array:
    """The window that each block state sees, put together from keys of its chain.

    Args:
        states: The block states.
        part_MPGD: Their own keys (or values).

    Returns:
        [M, L, G, D]. Entries right of a state's block are arbitrary, to be masked.
    """
    # [M, P, G, D] -> [M, J, P, G, D] -> [M, L, G, D]
    chain_MJPGD = part_MPGD[states.chain_MJ]
    return chain_MJPGD.reshape(chain_MJPGD.shape[0], -1, *chain_MJPGD.shape[3:])


def chain_min(number_MP: jax.Array, states: BlockStates) -> jax.Array:
    """The smallest number of a block state and its ancestors.

    Args:
        number_MP: A number of each position of each block state, [M, P].
        states: The block states.

    Returns:
        [M, 1].
    """
    smallest_M = jnp.min(number_MP, axis=1)
    block_J = jnp.arange(states.chain_MJ.shape[1])
    is_seen_MJ = block_J[None] <= states.block_M[:, None]
    seen_MJ = jnp.where(is_seen_MJ, smallest_M[states.chain_MJ], jnp.inf)
    return jnp.min(seen_MJ, axis=1, keepdims=True)


def _align_block_states(hidden_MPE: jax.Array, states: BlockStates) -> jax.Array:
    """Vectors at the positions that they predict, one to the right.

    A block's first position is predicted by the end of the block state before it; in
    the window's first block it keeps its own vector (as in `prefill.shift_right`).
    """
    # Output i predicts token i + 1: vectors move right by one, [M, P, E] -> [M, P, E],
    # and the first position of a block takes the last vector of its parent state.
    block_before_M = jnp.maximum(states.block_M - 1, 0)
    state_before_M = jnp.take_along_axis(
        states.chain_MJ, block_before_M[:, None], axis=1
    )[:, 0]
    end_before_ME = hidden_MPE[state_before_M, -1]
    has_before_M1 = (states.block_M > 0)[:, None]
    first_ME = jnp.where(has_before_M1, end_before_ME, hidden_MPE[:, 0])
    return jnp.concatenate([first_ME[:, None], hidden_MPE[:, :-1]], axis=1)


def empty_cache_fn(model: DecodeModel) -> EmptyCacheFn:
    """What makes the cache that a prefill fills.

    Args:
        model: Its config and dtype say what is cached.

    Returns:
        The function.
    """

    def empty_cache(params, capacity: int) -> KVCache:
        c = model.config
        shape = (c.num_layers, capacity, c.kv_heads, c.head_dim)
        empty = jnp.zeros(shape, model.hidden_struct(params).dtype)
        return KVCache(empty, empty)

    return empty_cache
