"""Predictions of hidden vectors, in the two ways that the decode loop needs them.

`predict_active_blocks` reads the active block of every evaluated state. Decisions are
made of it, so it always has the same shapes and depends on nothing else in the call.
`predict_window` reads the whole window of the one state that a call ends at, at the
noise of the steps to come. The next drafts are made of it, and it may be wrong. Where
reading the head is what costs, `predict_vectors` reads it once for both.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import Numerics, confidence_scale
from jaxdave.core.policy_api import ModelQueries
from jaxdave.core.prediction import NEG_INF, Prediction
from jaxdave.core.state import RowState
from jaxdave.sampling.chunked_head import (
    head_at,
    kl_divergence,
    sample_and_score,
    token_log_odds,
)
from jaxdave.sampling.noise import position_keys

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec


def predict_active_blocks(
    spec: "DecodeSpec", params, hidden_SWE, block_S, depth_S, row: RowState
) -> Prediction:
    """Predict the active block of every evaluated state.

    Args:
        spec: The decode.
        params: The model's parameters.
        hidden_SWE: Vectors of each state's active block, [S, W, E].
        block_S: That block's index in the window, int32 [S].
        depth_S: Policy steps from the row's state to each state, int32 [S]; they
            choose the noise.
        row: The row.

    Returns:
        Arrays [S, W].
    """
    layout = spec.layout
    position_SW = row.start + (
        block_S[:, None] * layout.block_length
        + jnp.arange(layout.block_length, dtype=jnp.int32)[None]
    )
    step_SW = jnp.broadcast_to((row.n + depth_S)[:, None], position_SW.shape)
    return predict(spec, params, hidden_SWE, row.key, step_SW, position_SW)


def predict_window(spec: "DecodeSpec", params, hidden_LE, row: RowState) -> Prediction:
    """Predict the window at the noise of the steps to come, to make drafts of.

    Args:
        spec: The decode.
        params: The model's parameters.
        hidden_LE: Vectors of the window, [L, E].
        row: The row, at the state that they are of.

    Returns:
        Arrays [D, L], D depths of noise. Positions beyond those that calls of this
        size look at have no prediction (token -1); plain decoding needs none at all.
    """
    if max(spec.draft_steps) == 1 and spec.numerics is not Numerics.GUARDED:
        return empty_prediction(spec)
    # All positions at every depth of noise, [D, L]: a draft at depth k reads entry k.
    depths, used = num_noise_depths(spec), spec.used_length
    position_L, hidden_LE = spec.layout.positions(row)[:used], hidden_LE[:used]
    shape = (depths, *position_L.shape)
    step_DL = jnp.broadcast_to(
        (row.n + jnp.arange(depths, dtype=jnp.int32))[:, None], shape
    )
    position_DL = jnp.broadcast_to(position_L[None], shape)
    hidden_DLE = jnp.broadcast_to(hidden_LE[None], (*shape, hidden_LE.shape[-1]))
    pred = predict(spec, params, hidden_DLE, row.key, step_DL, position_DL)
    rest = jax.tree.map(lambda a: a[:, used:], empty_prediction(spec))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), pred, rest)


def reads_head_once(spec: "DecodeSpec") -> bool:
    """Tell if verify calls read the head once, for decisions and for drafts.

    That takes predictions that do not depend on the step, i.e. no noise, and windows
    whose vectors are no more than those that decide. Under exact numerics decisions
    always have the same shapes, and are read apart.

    Args:
        spec: The decode.

    Returns:
        True where the model wants it so (`ModelFns.saves_launches`) and it can be.
    """
    model, layout = spec.model, spec.layout
    has_few_vectors = model.evaluate_blocks is not None
    has_few_vectors |= layout.window_length == layout.block_length
    return (
        model.saves_launches
        and has_few_vectors
        and not spec.sampling.noisy
        and spec.numerics is not Numerics.EXACT
    )


def predict_vectors(spec: "DecodeSpec", params, hidden_RE) -> Prediction:
    """Predict tokens of all vectors of a call, where there is no noise.

    Args:
        spec: The decode.
        params: The model's parameters.
        hidden_RE: Vectors [R, E].

    Returns:
        Arrays [R].
    """
    no_step_R = jnp.zeros(hidden_RE.shape[:1], jnp.int32)
    no_key = jnp.zeros((2,), jnp.uint32)
    return predict(spec, params, hidden_RE, no_key, no_step_R, no_step_R)


def predict(spec: "DecodeSpec", params, hidden, key, step, position) -> Prediction:
    """Predict tokens of hidden vectors.

    Args:
        spec: The decode: its model and sampling.
        params: The model's parameters.
        hidden: Vectors [..., E].
        key: The request's key, uint32 [2].
        step: Policy-step indices, int32 [...].
        position: Positions in the canvas, int32 [...].

    Returns:
        Arrays [...].
    """
    model = spec.model
    # One product with each chunk of the head for all rows of all states.
    hidden_RE = hidden.reshape(-1, hidden.shape[-1])
    key_R = jnp.zeros((hidden_RE.shape[0], 2), jnp.uint32)
    if spec.sampling.noisy:
        key_R = position_keys(key, step.reshape(-1), position.reshape(-1))
    pred = sample_and_score(
        head_at(model, params, hidden_RE),
        spec.sampling,
        key_R,
        model.unscored_ids,
    )
    return Prediction(*(part.reshape(step.shape) for part in pred))


def model_queries(spec: "DecodeSpec", params, hidden_WE) -> ModelQueries:
    """The questions that a policy can ask of the model beyond a `Prediction`.

    Args:
        spec: The decode: its model and sampling.
        params: The model's parameters.
        hidden_WE: Vectors of the stretch that the policy looks at, [W, E].

    Returns:
        Functions that evaluate the head when they are called.
    """
    scale, model = confidence_scale(spec.sampling), spec.model

    def logits_at(ids_WM):
        return model.logits_at(params, hidden_WE, ids_WM) * scale

    def divergence(earlier_WE):
        # A policy's memory may hold bfloat16 vectors as float32: the cast back is
        # exact.
        both = jnp.concatenate([hidden_WE, earlier_WE.astype(hidden_WE.dtype)])
        return kl_divergence(head_at(model, params, both), scale)

    def shadow_at(ids_W):
        shadow = model.shadow
        assert shadow is not None, "the policy did not ask for a shadow"
        return token_log_odds(head_at(model, params, shadow(hidden_WE)), scale, ids_W)

    return ModelQueries(hidden_WE, logits_at, divergence, shadow_at)


def num_noise_depths(spec: "DecodeSpec") -> int:
    """The number of future steps whose noise drafts need.

    Args:
        spec: The decode.

    Returns:
        D; 1 without noise, as all steps are alike then.
    """
    return max(max(spec.draft_steps) - 1, 1) if spec.sampling.noisy else 1


def pad_prediction(spec: "DecodeSpec", pred_R: Prediction) -> Prediction:
    """A prediction of the front of the window as one of all of it.

    Args:
        spec: The decode.
        pred_R: Arrays [R], without noise.

    Returns:
        Arrays [L], without a prediction behind the front.
    """
    size = pred_R.token.shape[0]
    rest = jax.tree.map(lambda part_DL: part_DL[0, size:], empty_prediction(spec))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pred_R, rest)


def empty_prediction(spec: "DecodeSpec") -> Prediction:
    """The absence of predictions for a window.

    Args:
        spec: The decode.

    Returns:
        Arrays [D, L] with a token of -1 everywhere.
    """
    shape = (num_noise_depths(spec), spec.layout.window_length)
    low: Any = jnp.full(shape, NEG_INF)
    no_token: Any = jnp.full(shape, -1, jnp.int32)
    return Prediction(
        token=no_token,
        score=low,
        gap=low,
        margin=low,
        entropy=low,
        runner_up=no_token,
        lead=low,
    )
