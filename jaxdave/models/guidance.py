"""Models derived from models: guidance, and ids that are suppressed or not scored."""

import jax.numpy as jnp

from jaxdave.core.model_api import LogitsFn, ModelFns


def with_guidance(model: ModelFns, scale: float, mask_id: int) -> ModelFns:
    """Add unsupervised classifier-free guidance.

    Every call evaluates two canvases, the row's own and one whose prompt is masked.
    With logits c of the first and u of the second the result is u + (scale + 1)(c - u).
    Hidden vectors are twice as wide: the conditional half, then the unconditional one.

    Args:
        model: A full-attention model, whose windows never hold any of the prompt.
        scale: The guidance scale; 0 is the model itself.
        mask_id: The id that the prompt is replaced by.

    Returns:
        The guided model. Its cache is the pair of both canvases' caches.

    Source:
        LLaDA, generate.py (cfg_scale); arXiv 2502.09992.
    """

    # The unconditional canvas is the row's with the
    # prompt masked, as in LLaDA's generate.py.
    def prefill(params, tokens_T, begin, *rest):
        is_prompt_T = jnp.arange(tokens_T.shape[0]) < begin
        masked_T = jnp.where(is_prompt_T, jnp.int32(mask_id), tokens_T)
        hidden, cache = model.prefill(params, tokens_T, begin, *rest)
        masked_hidden, masked_cache = model.prefill(params, masked_T, begin, *rest)
        both = jnp.concatenate([hidden, masked_hidden], axis=-1)
        return both, (cache, masked_cache)

    # Drafts are windows of the answer and hold no prompt: they are the same for both
    # canvases, which differ in their caches only.
    def forward(params, tokens_KL, start, end, cache):
        halves = [
            model.forward(params, tokens_KL, start, end, part)[0] for part in cache
        ]
        return jnp.concatenate(halves, axis=-1), None

    def guided(logits_fn: LogitsFn) -> LogitsFn:
        def logits(params, hidden_RE, ids):
            halves = jnp.split(hidden_RE, 2, axis=-1)
            conditional, unconditional = (
                logits_fn(params, half, ids) for half in halves
            )
            # LLaDA's formula with cfg_scale; both halves
            # of a vector go through the same head.
            return unconditional + (scale + 1.0) * (conditional - unconditional)

        return logits

    def shadow(hidden_RE):
        assert model.shadow is not None
        halves = [model.shadow(half) for half in jnp.split(hidden_RE, 2, axis=-1)]
        return jnp.concatenate(halves, axis=-1)

    return model._replace(
        prefill=prefill,
        forward=forward,
        logits=guided(model.logits),
        logits_at=guided(model.logits_at),
        summarize_head=None,
        shadow=shadow if model.shadow else None,
        # The inner model's would be given the pair of caches.
        recheck=None,
        fast_prefill=None,
    )


def with_suppressed_ids(model: ModelFns, ids: tuple[int, ...]) -> ModelFns:
    """Forbid more ids.

    Args:
        model: Any model.
        ids: Ids that must never be predicted.

    Returns:
        The model with these ids among its `suppressed_ids`.
    """
    return model._replace(suppressed_ids=tuple(sorted({*model.suppressed_ids, *ids})))


def with_unscored_ids(model: ModelFns, ids: tuple[int, ...]) -> ModelFns:
    """Leave ids out of the confidences (LLaDA's `confidence_eos_eot_inf`).

    Args:
        model: Any model.
        ids: Ids that may be predicted and do not count in any confidence.

    Returns:
        The model with these `unscored_ids`.
    """
    return model._replace(unscored_ids=tuple(sorted({*model.unscored_ids, *ids})))
