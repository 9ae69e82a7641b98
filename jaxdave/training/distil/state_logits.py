"""The network over states of answers: what it predicts at each of their tokens.

Axes: B rows, T positions of the text, N copies of each answer, A columns of answers, X
those of all copies, V rows of the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig, check_no_causal_context
from jaxdave.models.forward import source_columns
from jaxdave.training.distil.states import States, StateSampling, TextBatch
from jaxdave.training.objective import attention_masks
from jaxdave.training.objective.sequence_model import LayoutLogitsFn

StateLogitsFn = Callable[[Any, TextBatch, States], jax.Array]
"""(params, batch, states) -> logits [B, N, A, V] of the tokens of the states."""


def check_model(sampling: StateSampling, config: ModelConfig) -> None:
    """Check that a model decodes from block to block as states are drawn.

    Args:
        sampling: The settings.
        config: The model.

    Raises:
        ValueError: Their attention or their blocks differ, or no position of a masked
            answer predicts its first token.
    """
    check_no_causal_context(config, "distillation")
    is_causal = config.attention == "block_causal"
    if sampling.is_causal != is_causal:
        raise ValueError(
            f"is_causal={sampling.is_causal} but {config.name} has {config.attention} "
            f"attention; use is_causal={is_causal}"
        )
    if is_causal and sampling.block_length != config.block_length:
        raise ValueError(
            f"block_length={sampling.block_length} but {config.name} has block_length="
            f"{config.block_length}; take the model's"
        )
    if is_causal and config.logits_shift != "none":
        raise ValueError(
            f"logits_shift={config.logits_shift!r} of {config.name} with block-causal "
            "attention: copies of an answer have no position that predicts its first "
            "token; distil a model that predicts in place"
        )


def state_logits(
    sampling: StateSampling, network: LayoutLogitsFn, shift: bool = False
) -> StateLogitsFn:
    """The logits of a network over states.

    Args:
        sampling: How the states were drawn: attention, blocks, and where answers begin.
        network: The network (`sequence_model.transformer_logits`).
        shift: The output at i - 1 predicts token i; for full attention only.

    Returns:
        The function.
    """
    start = sampling.answer_start

    def in_copies(params, batch: TextBatch, states: States):
        tokens_BT = jnp.asarray(batch.tokens_BT)
        rows, copies, columns = states.noisy_BNA.shape
        text = attention_masks.block_causal(
            jnp.asarray(batch.sample_BT), sampling.block_length, start
        )
        layout = attention_masks.clean_first(text, start, copies)
        length = tokens_BT.shape[1]
        first_block = states.first_block_BNA.reshape(rows, -1)
        context_BQ = layout.context_BQ.at[:, length:].set(first_block)
        noisy = states.noisy_BNA.reshape(rows, -1)
        column_X = jnp.arange(copies * columns, dtype=jnp.int32)
        logits = network(
            params,
            jnp.concatenate([tokens_BT, noisy], axis=1),
            layout._replace(context_BQ=context_BQ),
            jnp.broadcast_to(length + column_X[None], noisy.shape),
        )
        return logits.reshape(rows, copies, columns, -1)

    def in_place(params, batch: TextBatch, states: States):
        rows, copies, columns = states.noisy_BNA.shape
        prompt_BT = jnp.asarray(batch.tokens_BT)[:, :start]
        noisy = states.noisy_BNA.reshape(-1, columns)
        tokens = jnp.concatenate([jnp.repeat(prompt_BT, copies, axis=0), noisy], axis=1)
        sample = jnp.repeat(jnp.asarray(batch.sample_BT), copies, axis=0)
        layout = attention_masks.full(sample)
        column_T = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        source = jnp.broadcast_to(column_T[None], tokens.shape)
        if shift:
            source = source_columns(layout.position_BQ)
        logits = network(params, tokens, layout, source[:, start:])
        return logits.reshape(rows, copies, columns, -1)

    return in_copies if sampling.is_causal else in_place
