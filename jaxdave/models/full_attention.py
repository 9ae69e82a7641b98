"""Full-attention models (Dream, LLaDA), whose caches are rules and not exact.

In a full-attention model every token changes every key, so a KV cache can only be an
approximation that is part of the decoding rule: keys outside the window stay as they
were at the start of the block. There are three such rules ("prefix" and "dual" of
Fast-dLLM, arXiv 2505.22618, and "none", which recomputes the whole canvas in every
call). The decode loop is that of block-causal models; only the functions differ.
"""

import jax

from jaxdave.core.config import ModelConfig, Numerics
from jaxdave.core.model_api import (
    ForwardFn,
    KVCache,
    ModelFns,
    PrefillFn,
    RecheckFn,
)
from jaxdave.core.shards import WHOLE_MODEL, ModelShards
from jaxdave.models.attention import mask_before
from jaxdave.models.decode_model import DecodeModel, draft_and_trusted_models
from jaxdave.models.extra_branch import AttentionContext, ExtraBranch, no_extra_branch
from jaxdave.models.kv_cache import window_cache
from jaxdave.runtime.machine import Machine


def cached_model(
    config: ModelConfig,
    *,
    numerics: Numerics | str = Numerics.EXACT,
    machine: Machine | None = None,
    extra_branch: ExtraBranch = no_extra_branch,
    shards: ModelShards = WHOLE_MODEL,
) -> ModelFns:
    """Build a full-attention model whose cache is frozen at each block's start.

    Whether the rule is "prefix" or "dual" is a matter of the window alone: one that
    reaches to the row's end leaves nothing but the prefix to the cache.

    Args:
        config: The model's shape.
        numerics: "guarded", "exact" or "fast", see `Numerics`.
        machine: What programs are compiled for; None: this machine.
        extra_branch: What else each call evaluates.
        shards: The devices that the model is split over.

    Returns:
        The record for the decode loop.
    """
    draft_model, trusted_model = draft_and_trusted_models(
        config, numerics, machine, shards
    )

    def prefill(
        params, tokens_T, begin, start, end, window_length: int, prompt_length: int
    ):
        # Every token changes every key: there is no part that could be evaluated alone,
        # and the canvas is evaluated as a whole, masks of the answer included.
        del begin, prompt_length
        return _evaluate_canvas(
            trusted_model, extra_branch, params, tokens_T, start, end, window_length
        )

    def forward_of(model: DecodeModel) -> ForwardFn:
        def forward(params, tokens_KL, start, end, cache: KVCache):
            mask_fn = mask_before(end)
            hidden, kv = model.evaluate_window(
                params, tokens_KL, start, cache, mask_fn, end
            )
            # All queries see the same keys, wherever they are. None in place of keys:
            # under the frozen rule nothing that a call computes enters the cache.
            context = AttentionContext(start, cache, kv, lambda _: mask_fn, end)
            return extra_branch(model, params, model.align(hidden), context), None

        return forward

    recheck = _recheck_with_frozen_cache(forward_of(trusted_model))
    return draft_model.model_fns(forward_of(draft_model), prefill, recheck=recheck)


def uncached_model(
    config: ModelConfig,
    *,
    numerics: Numerics | str = Numerics.EXACT,
    machine: Machine | None = None,
    extra_branch: ExtraBranch = no_extra_branch,
    shards: ModelShards = WHOLE_MODEL,
) -> ModelFns:
    """Build a full-attention model without a cache: every call evaluates all tokens.

    In place of keys and values its "cache" holds the tokens of the canvas, [1, T].

    Args:
        config: The model's shape.
        numerics: "guarded", "exact" or "fast", see `Numerics`.
        machine: What programs are compiled for; None: this machine.
        extra_branch: What else each call evaluates.
        shards: The devices that the model is split over.

    Returns:
        The record for the decode loop.
    """
    draft_model, trusted_model = draft_and_trusted_models(
        config, numerics, machine, shards
    )

    def forward_of(model: DecodeModel) -> ForwardFn:
        def forward(params, tokens_KL, start, end, cache):
            # The window of the draft over the canvas
            # of the row, which the "cache" holds.
            def evaluate_draft(tokens_L):
                canvas_T = jax.lax.dynamic_update_slice(cache[0], tokens_L, (start,))
                size = tokens_L.shape[0]
                return _evaluate_canvas(
                    model, extra_branch, params, canvas_T, start, end, size
                )[0]

            return jax.vmap(evaluate_draft)(tokens_KL), None

        return forward

    # Without a cache, prefill, refresh and recheck are one: the
    # window of the canvas in the trusted shape.
    recheck = _recheck_with_frozen_cache(forward_of(trusted_model))
    # What no cache remembers may be computed in any shape, as every call is.
    fast_call = _recheck_with_frozen_cache(forward_of(draft_model))
    is_guarded = numerics == Numerics.GUARDED
    return draft_model.model_fns(
        forward_of(draft_model),
        _prefill_of(recheck),
        recheck=recheck,
        fast_prefill=_prefill_of(fast_call) if is_guarded else None,
        is_cached=False,
    )


def _prefill_of(call: RecheckFn) -> PrefillFn:
    """The prefill of a model without a cache, which is a call like any other."""

    def prefill(
        params, tokens_T, begin, start, end, window_length: int, prompt_length: int
    ):
        del begin, prompt_length
        cache = tokens_T[None]
        return call(params, tokens_T, None, start, end, window_length, cache)

    return prefill


def _recheck_with_frozen_cache(forward: ForwardFn) -> RecheckFn:
    """`ModelFns.recheck` where the cache stays as the prefill made it.

    forward: in the trusted shape.
    """

    def recheck(
        params, tokens_T, verified_until, start, end, window_length: int, cache
    ):
        del verified_until
        tokens_L = jax.lax.dynamic_slice_in_dim(tokens_T, start, window_length)
        hidden_KLE, _ = forward(params, tokens_L[None], start, end, cache)
        return hidden_KLE[0], cache

    return recheck


def _evaluate_canvas(
    model: DecodeModel,
    extra_branch: ExtraBranch,
    params,
    tokens_T,
    start,
    end,
    window_length: int,
):
    """The window of a canvas that sees itself: hidden [L, E], and the canvas's K/V."""
    hidden_TE, canvas_kv = model.evaluate_canvas(params, tokens_T, end)
    hidden_LE = jax.lax.dynamic_slice_in_dim(hidden_TE, start, window_length)
    window = window_cache(canvas_kv, start, window_length)
    mask_fn = mask_before(end)
    context = AttentionContext(start, canvas_kv, window, lambda _: mask_fn, end)
    return extra_branch(model, params, hidden_LE[None], context)[0], canvas_kv
