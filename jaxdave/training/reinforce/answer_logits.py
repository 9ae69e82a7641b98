"""The logits of an answer's states, as estimators take them: differentiable, batched.

A block-causal decoder sees the state of a block behind finished text. So the states of
an answer are copies of its window beside the whole text, [x_0 ; x_t ; x_t' ; ...], and
one sequence holds a step of every block in each copy: for blocks of 4 and one token a
step, 4 copies in the place of a whole text for each token.

Axes: S states, T positions of the text, R of the window, Q of the sequence that the
network sees, T + S R; V rows of the vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.models.forward import forward
from jaxdave.training.attention_masks import Layout
from jaxdave.training.reinforce.log_probs import LogitsFn
from jaxdave.training.reinforce.network_logits import is_predicted
from jaxdave.training.sequence_model import transformer_logits

AnswerLogitsFn = Callable[[Params, jax.Array, jax.Array, jax.Array, int], LogitsFn]
"""(params, tokens_T, valid_T, start, R) -> function from states of the window, int32
[S, R], to logits [S, R, V]. tokens_T: the finished text; valid_T: False at pads on the
left; start: the window's first position, a scalar."""


def answer_logits(config: ModelConfig) -> AnswerLogitsFn:
    """Make the logits of a model a function of parameters, an answer and its states.

    Of a full-attention model the window is the text, and a state is evaluated as a
    whole, as in `network_logits`.

    Args:
        config: The model.

    Returns:
        The function.

    Example:
        >>> from jaxdave.models import transformer
        >>> from jaxdave.models.presets import preset
        >>> config = preset("sdar-1m", num_layers=1)
        >>> text_T, is_valid_T = jnp.arange(8, dtype=jnp.int32), jnp.ones(8, bool)
        >>> params, start = transformer.init(config, seed=0), jnp.int32(4)
        >>> logits_of = answer_logits(config)(params, text_T, is_valid_T, start, 4)
        >>> logits_of(jnp.full((2, 4), config.mask_id)).shape
        (2, 4, 832)
    """
    if config.attention == "block_causal":
        return _beside_text(config)
    evaluate = forward(config)
    allowed_V = is_predicted(config)

    def of_answer(params, tokens_T, valid_T, start, size):
        del tokens_T, start, size

        def logits_of(states_ST):
            valid_ST = jnp.broadcast_to(valid_T[None], states_ST.shape)
            logits_STV = evaluate(params, states_ST, valid_ST)
            return jnp.where(allowed_V[None, None, :], logits_STV, -jnp.inf)

        return logits_of

    return of_answer


def _beside_text(config: ModelConfig) -> AnswerLogitsFn:
    """The logits of copies of a window beside its finished text."""
    evaluate = transformer_logits(config)
    allowed_V = is_predicted(config)
    length = config.block_length

    def of_answer(params, tokens_T, valid_T, start, size):
        del valid_T
        text_T = jnp.arange(tokens_T.shape[0], dtype=jnp.int32)
        window_R = start + jnp.arange(size, dtype=jnp.int32)

        def logits_of(states_SR):
            count = states_SR.shape[0]
            position_Q = jnp.concatenate([text_T, jnp.tile(window_R, count)])
            copy_S = 1 + jnp.arange(count, dtype=jnp.int32)
            copy_Q = jnp.concatenate([jnp.zeros_like(text_T), jnp.repeat(copy_S, size)])
            block_Q = position_Q // length
            layout = Layout(
                position_BQ=position_Q[None],
                block_BQ=block_Q[None],
                # The text sees its own block, a copy the text before it.
                context_BQ=jnp.where(copy_Q == 0, block_Q + 1, block_Q)[None],
                copy_BQ=copy_Q[None],
                sample_BQ=jnp.zeros_like(copy_Q)[None],
            )
            column_C = text_T.shape[0] + jnp.arange(count * size, dtype=jnp.int32)
            if config.logits_shift != "none":
                # A block's first token is read off the finished text before it.
                place_C = jnp.tile(window_R, count)
                last_C = jnp.maximum(place_C - 1, 0)
                column_C = jnp.where(place_C % length == 0, last_C, column_C - 1)
            sequence_Q = jnp.concatenate([tokens_T, states_SR.reshape(-1)])
            logits_1CV = evaluate(params, sequence_Q[None], layout, column_C[None])
            logits_SRV = logits_1CV.reshape(count, size, -1)
            return jnp.where(allowed_V[None, None, :], logits_SRV, -jnp.inf)

        return logits_of

    return of_answer
