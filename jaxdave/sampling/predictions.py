"""Predictions: what the model says, asked for in the two ways the loop needs.

`decide` reads the active block of every draft, always in the same shapes: the text
depends on nothing else. `guess` reads the whole window of the one draft that was kept,
at the noise of the steps to come: drafts are made of it, and it may be wrong.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import logit_scale
from jaxdave.core.policy_api import ModelQueries
from jaxdave.core.prediction import NEG_INF, Prediction
from jaxdave.core.state import RowState
from jaxdave.sampling.chunked_head import (
    chunk_logits,
    kl_divergence,
    num_chunks,
    sample_and_score,
    token_log_odds,
)
from jaxdave.sampling.noise import position_keys

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec


def predict_active_blocks(
    spec: "DecodeSpec", params, hidden_SWE, block_S, depth_S, row: RowState
):
    """The prediction of every evaluated state's active block, [S, W]."""
    layout = spec.layout
    place_SW = row.start + (
        block_S[:, None] * layout.block_length
        + jnp.arange(layout.block_length, dtype=jnp.int32)[None]
    )
    step_SW = jnp.broadcast_to((row.n + depth_S)[:, None], place_SW.shape)
    return predict(spec, params, hidden_SWE, row.key, step_SW, place_SW)


def predict_window(spec: "DecodeSpec", params, hidden_LE, row: RowState) -> Prediction:
    """The prediction of the window at the noise of the steps to come, [D, L].

    Only as far as calls of this size look; beyond that there is none.
    """
    if spec.max_num_drafts == 1 and not spec.guarded:
        return empty_prediction(spec)
    depths, near = num_noise_depths(spec), spec.used_length
    place_L, hidden_LE = spec.layout.positions(row)[:near], hidden_LE[:near]
    shape = (depths, *place_L.shape)
    step_DL = jnp.broadcast_to(
        (row.n + jnp.arange(depths, dtype=jnp.int32))[:, None], shape
    )
    place_DL = jnp.broadcast_to(place_L[None], shape)
    hidden_DLE = jnp.broadcast_to(hidden_LE[None], (*shape, hidden_LE.shape[-1]))
    pred = predict(spec, params, hidden_DLE, row.key, step_DL, place_DL)
    rest = jax.tree.map(lambda a: a[:, near:], empty_prediction(spec))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), pred, rest)


def predict(spec: "DecodeSpec", params, hidden, key, step, place) -> Prediction:
    """Predictions of hidden states [..., E] at policy steps and positions [...]."""
    network = spec.model
    hidden_RE = hidden.reshape(-1, hidden.shape[-1])
    key_R = jnp.zeros((hidden_RE.shape[0], 2), jnp.uint32)
    if spec.sampling.noisy:
        key_R = position_keys(key, step.reshape(-1), place.reshape(-1))
    pred = sample_and_score(
        chunk_logits(network, params, hidden_RE),
        num_chunks(network),
        network.chunk,
        spec.sampling,
        key_R,
    )
    return Prediction(*(part.reshape(step.shape) for part in pred))


def model_queries(spec: "DecodeSpec", params, hidden_WE) -> ModelQueries:
    """The closer look at a stretch that some policies ask for."""
    scale, network = logit_scale(spec.sampling), spec.model

    def logits_at(ids_WM):
        return network.logits_at(params, hidden_WE, ids_WM) * scale

    def divergence(then_WE):
        # E.g. at float32 memory of bfloat16 vectors: the cast back is exact.
        both = jnp.concatenate([hidden_WE, then_WE.astype(hidden_WE.dtype)])
        logits = chunk_logits(network, params, both)
        return kl_divergence(logits, num_chunks(network), scale)

    def shadow_at(ids_W):
        shadow = network.shadow
        assert shadow is not None, "the policy did not ask for a shadow"
        logits = chunk_logits(network, params, shadow(hidden_WE))
        return token_log_odds(logits, num_chunks(network), scale, ids_W)

    return ModelQueries(hidden_WE, logits_at, divergence, shadow_at)


def num_noise_depths(spec: "DecodeSpec") -> int:
    """Depths of future noise that drafts need; without noise all depths are one."""
    return max(spec.max_num_drafts - 1, 1) if spec.sampling.noisy else 1


def empty_prediction(spec: "DecodeSpec") -> Prediction:
    """No prediction, [D, L]."""
    shape = (num_noise_depths(spec), spec.layout.window_length)
    low: Any = jnp.full(shape, NEG_INF)
    none: Any = jnp.full(shape, -1, jnp.int32)
    return Prediction(none, low, low, low, low, none, low)
