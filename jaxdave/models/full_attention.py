"""The networks of full-attention models, whose caches are rules and not exact.

Three cache rules (models.md C2, C3 and no cache) are the same loop as the exact cache
of block-causal models (`causal.py`), with other functions.
"""

import jax

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import KVCache, ModelFns
from jaxdave.models.attention import mask_before
from jaxdave.models.decode_model import (
    AttentionContext,
    DecodeModel,
    ExtraBranch,
    NumericsName,
    draft_and_trusted_models,
    no_extra_branch,
    window_cache,
)


def cached_model(
    config: ModelConfig,
    *,
    numerics: NumericsName = "exact",
    positions: int = 4096,
    beside: ExtraBranch = no_extra_branch,
) -> ModelFns:
    """The network of a full-attention model under a cache frozen at each block's start.

    Whether the rule is Fast-dLLM's "prefix" or "dual" is a matter of the window alone:
    one that reaches to the row's end leaves nothing but the prefix to the cache.
    """
    model, trusted = draft_and_trusted_models(config, numerics, positions)

    def prefill(params, tokens_T, begin, start, end, window: int, prompt: int):
        del begin, prompt
        return _evaluate_canvas(trusted, beside, params, tokens_T, start, end, window)

    def forward_of(model: DecodeModel):
        def forward(params, tokens_KL, start, end, cache: KVCache):
            see = mask_before(end)
            hidden, kv = model.window(params, tokens_KL, start, cache, see, end)
            seen = AttentionContext(start, cache, kv, lambda place_L: see, end)
            return beside(model, params, model.align(hidden), seen), None

        return forward

    recheck = _recheck_with_frozen_cache(forward_of(trusted))
    return model.network(forward_of(model), prefill, recheck=recheck)


def uncached_model(
    config: ModelConfig,
    *,
    numerics: NumericsName = "exact",
    positions: int = 4096,
    beside: ExtraBranch = no_extra_branch,
) -> ModelFns:
    """The network of a full-attention model without a cache: every call sees it all."""
    model, trusted = draft_and_trusted_models(config, numerics, positions)

    def forward_of(model: DecodeModel):
        def forward(params, tokens_KL, start, end, cache):
            def one(tokens_L):
                put = jax.lax.dynamic_update_slice(cache[0], tokens_L, (start,))
                size = tokens_L.shape[0]
                return _evaluate_canvas(model, beside, params, put, start, end, size)[0]

            return jax.vmap(one)(tokens_KL), None

        return forward

    recheck = _recheck_with_frozen_cache(forward_of(trusted))

    def prefill(params, tokens_T, begin, start, end, window: int, prompt: int):
        del begin, prompt
        cache = tokens_T[None]
        return recheck(params, tokens_T, None, start, end, window, cache)

    return model.network(forward_of(model), prefill, recheck=recheck)


def _recheck_with_frozen_cache(forward):
    """`Network.recheck` where the cache stays as it was primed: one window alone."""

    def recheck(params, tokens_T, solid, start, end, window: int, cache):
        del solid
        tokens_L = jax.lax.dynamic_slice_in_dim(tokens_T, start, window)
        return forward(params, tokens_L[None], start, end, cache)[0][0], cache

    return recheck


def _evaluate_canvas(
    model: DecodeModel, beside: ExtraBranch, params, tokens_T, start, end, size: int
):
    """A window of a canvas that sees itself, hidden [L, E], and the canvas's K/V."""
    hidden_TE, stored = model.canvas(params, tokens_T, end)
    hidden_LE = jax.lax.dynamic_slice_in_dim(hidden_TE, start, size)
    window, see = window_cache(stored, start, size), mask_before(end)
    seen = AttentionContext(start, stored, window, lambda place_L: see, end)
    return beside(model, params, hidden_LE[None], seen)[0], stored
