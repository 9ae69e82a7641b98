"""Networks made of networks: classifier-free guidance, and ids that never come out."""

import jax.numpy as jnp

from jaxdave.core.model_api import ModelFns


def with_guidance(network: ModelFns, scale: float, mask_id: int) -> ModelFns:
    """Logits u + (scale + 1) (c - u), with u those of a canvas whose prompt is masked.

    For full attention, where a window never holds any of the prompt. A call evaluates
    both canvases. Source: LLaDA, generate.py (cfg_scale); models.md section 3.
    """

    def prefill(params, tokens_T, begin, *rest):
        is_prompt_T = jnp.arange(tokens_T.shape[0]) < begin
        blank_T = jnp.where(is_prompt_T, jnp.int32(mask_id), tokens_T)
        made = [network.prefill(params, t, begin, *rest) for t in (tokens_T, blank_T)]
        (told, cache), (blind, blind_cache) = made
        return jnp.concatenate([told, blind], axis=-1), (cache, blind_cache)

    def forward(params, tokens_KL, start, end, cache):
        told, blind = (
            network.forward(params, tokens_KL, start, end, part)[0] for part in cache
        )
        return jnp.concatenate([told, blind], axis=-1), None

    def mixed(read):
        def logits(params, hidden_RE, ids):
            halves = jnp.split(hidden_RE, 2, axis=-1)
            told, blind = (read(params, half, ids) for half in halves)
            return blind + (scale + 1.0) * (told - blind)

        return logits

    def shadow(hidden_RE):
        assert network.shadow is not None
        told, blind = (network.shadow(a) for a in jnp.split(hidden_RE, 2, axis=-1))
        return jnp.concatenate([told, blind], axis=-1)

    return network._replace(
        prefill=prefill,
        forward=forward,
        logits=mixed(network.logits),
        logits_at=mixed(network.logits_at),
        shadow=shadow if network.shadow else None,
    )


def with_suppressed_ids(network: ModelFns, ids: tuple[int, ...]) -> ModelFns:
    """The network, never predicting some ids (LLaDA's `logits_eos_inf`)."""
    return network._replace(
        suppressed_ids=tuple(sorted({*network.suppressed_ids, *ids}))
    )
