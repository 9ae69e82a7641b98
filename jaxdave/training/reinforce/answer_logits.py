"""The logits of an answer's states, as estimators take them: differentiable, batched.

A block-causal decoder sees the state of a block behind finished text. So the states of
an answer are copies of its window beside the whole text, [x_0 ; x_t ; x_t' ; ...], and
one sequence holds a step of every block in each copy: for blocks of 4 and one token a
step, 4 copies in the place of a whole text for each token.

Axes: S states, T positions of the text, R of the window, Q of the sequence that the
network sees, T + S R; X keys that a copy sees, T + R; V rows of the vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.models.attention import dense_attention
from jaxdave.models.forward import forward
from jaxdave.models.param_shapes import Binder
from jaxdave.models.rope import rope_table
from jaxdave.training.reinforce.log_probs import LogitsFn
from jaxdave.training.reinforce.network_logits import is_predicted

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
    bind = Binder(config)
    allowed_V = is_predicted(config)
    length = config.block_length

    def of_answer(params, tokens_T, valid_T, start, size):
        del valid_T
        text_T = jnp.arange(tokens_T.shape[0], dtype=jnp.int32)
        window_R = start + jnp.arange(size, dtype=jnp.int32)
        block_T, block_R = text_T // length, window_R // length
        sees_TT = block_T[None, :] <= block_T[:, None]
        # A block of a copy sees the text before it, and itself.
        sees_RX = jnp.concatenate(
            [
                block_T[None, :] < block_R[:, None],
                block_R[None, :] == block_R[:, None],
            ],
            axis=1,
        )
        model = bind(params)

        def logits_of(states_SR):
            count, text = states_SR.shape[0], tokens_T.shape[0]
            position_Q = jnp.concatenate([text_T, jnp.tile(window_R, count)])
            # The window may reach past the text, where nothing counts.
            cos, sin = rope_table(config, text + size)
            rope = (
                jnp.asarray(cos)[position_Q][None],
                jnp.asarray(sin)[position_Q][None],
            )

            def attend(_, q, k, v):
                def beside(array):
                    """Keys or values [S, T + R, ...] that the copies see."""
                    copies = array[0, text:].reshape(count, size, *array.shape[2:])
                    shape = (count, text, *array.shape[2:])
                    return jnp.concatenate(
                        [jnp.broadcast_to(array[:, :text], shape), copies], axis=1
                    )

                q_SR = q[0, text:].reshape(count, size, *q.shape[2:])
                of_text = dense_attention(
                    q[:, :text], k[:, :text], v[:, :text], sees_TT[None]
                )
                of_copies = dense_attention(q_SR, beside(k), beside(v), sees_RX[None])
                of_copies = of_copies.reshape(1, count * size, *q.shape[2:])
                return jnp.concatenate([of_text, of_copies], axis=1)

            sequence_Q = jnp.concatenate([tokens_T, states_SR.reshape(-1)])
            layers = jnp.zeros((config.num_layers,))
            hidden_1QE, _ = model.hidden(sequence_Q[None], rope, attend, layers)
            hidden_SRE = hidden_1QE[0, text:].reshape(count, size, -1)
            if config.logits_shift != "none":
                # A block's first token is read off the finished text before it, others
                # off the token before them.
                left_SRE = jnp.pad(hidden_SRE, ((0, 0), (1, 0), (0, 0)))[:, :-1]
                before_RE = hidden_1QE[0, jnp.maximum(window_R - 1, 0)]
                is_first_R = window_R % length == 0
                hidden_SRE = jnp.where(
                    is_first_R[None, :, None], before_RE[None], left_SRE
                )
            logits_SRV = model.logits(hidden_SRE)[..., : config.vocab_rows]
            return jnp.where(allowed_V[None, None, :], logits_SRV, -jnp.inf)

        return logits_of

    return of_answer
