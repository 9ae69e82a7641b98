"""A network over a training sequence: what it predicts, and what that costs in nats.

Losses see a network as a `NatsFn`, so that no logits of the whole vocabulary need be in
memory at once: those of a vocabulary of 152,000 for 4,096 tokens are 2.5 GB.

Axes: B rows, Q positions of the sequence that the network sees, C columns whose tokens
are predicted, K of them at once, V rows of the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.models.param_shapes import Binder
from jaxdave.models.rope import rope_table
from jaxdave.training.objective.attention_masks import Layout, visibility
from jaxdave.training.objective.trained_attention import trained_attention
from jaxdave.training.objective.trained_matrix import with_written_gradients

MAX_SPELLED_OUT = 16
"""Layers that are compiled one by one; of deeper models one is, and is looped over,
because compiling takes as long as there are layers."""

LayoutLogitsFn = Callable[[Any, jax.Array, Layout, jax.Array], jax.Array]
"""(params, tokens_BQ, layout, source_BC) -> logits [B, C, V], those of column
source_BC[:, i] in row i."""

NatsFn = Callable[[Any, jax.Array, Layout, jax.Array, jax.Array], jax.Array]
"""(params, tokens_BQ, layout, source_BC, target_BC) -> nats [B, C], the cross entropy
of target_BC[:, i] under the output of column source_BC[:, i]."""


def transformer_logits(config: ModelConfig) -> LayoutLogitsFn:
    """The logits of a transformer over a training sequence.

    Args:
        config: The model. Its own attention and shift are not looked at: the layout and
            the columns say both.

    Returns:
        The function.
    """
    hidden, head = _hidden(config), _head(config)

    def logits(params, tokens_BQ, layout: Layout, source_BC):
        return head(params, hidden(params, tokens_BQ, layout, source_BC))

    return logits


def transformer_nats(
    config: ModelConfig,
    columns_at_once: int | None = None,
    *,
    remat: bool = False,
    expert_balance: float = 0.0,
) -> NatsFn:
    """The cross entropies of a transformer over a training sequence.

    Args:
        config: The model, as in `transformer_logits`.
        columns_at_once: Of so many columns of each row logits are in memory, and they
            are computed a second time for the gradient; None: all, once.
        remat: So are the insides of layers (rematerialisation), which saves the most
            memory.
        expert_balance: What the balance of a mixture's experts counts beside the loss
            (`trained_experts.balanced`); 0: nothing.

    Returns:
        The function.

    Raises:
        ValueError: `columns_at_once` is below 1.
    """
    if columns_at_once is not None and columns_at_once < 1:
        raise ValueError(
            f"columns_at_once={columns_at_once} must be at least 1, or None for all"
        )
    hidden, head = _hidden(config, remat, expert_balance), _head(config)

    def head_nats(params, hidden_BKE, target_BK):
        return cross_entropy(head(params, hidden_BKE), target_BK)

    def nats(params, tokens_BQ, layout: Layout, source_BC, target_BC):
        hidden_BCE = hidden(params, tokens_BQ, layout, source_BC)
        columns = target_BC.shape[1]
        if columns_at_once is None or columns_at_once >= columns:
            return head_nats(params, hidden_BCE, target_BC)

        def split(array):
            """[B, C, ...] as [chunks, B, K, ...], filled up with zeros."""
            chunks = -(-columns // columns_at_once)
            missing = chunks * columns_at_once - columns
            widths = [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2)
            shape = (len(array), chunks, columns_at_once, *array.shape[2:])
            return jnp.moveaxis(jnp.pad(array, widths).reshape(shape), 1, 0)

        chunk_nats = jax.checkpoint(head_nats)
        nats_NBK = jax.lax.map(
            lambda chunk: chunk_nats(params, *chunk),
            (split(hidden_BCE), split(target_BC)),
        )
        return jnp.moveaxis(nats_NBK, 0, 1).reshape(len(target_BC), -1)[:, :columns]

    return nats


def nats_from(logits_fn: LayoutLogitsFn) -> NatsFn:
    """Cross entropies from a function of logits.

    Args:
        logits_fn: The network.

    Returns:
        The function.
    """

    def nats(params, tokens_BQ, layout, source_BC, target_BC):
        return cross_entropy(logits_fn(params, tokens_BQ, layout, source_BC), target_BC)

    return nats


def cross_entropy(logits_BCV: jax.Array, target_BC: jax.Array) -> jax.Array:
    """Cross entropies of tokens.

    Args:
        logits_BCV: Logits [B, C, V].
        target_BC: Ids, int32 [B, C].

    Returns:
        Nats [B, C], in the dtype of the logits.
    """
    target_BC1 = jnp.take_along_axis(logits_BCV, target_BC[..., None], axis=-1)
    return jax.nn.logsumexp(logits_BCV, axis=-1) - target_BC1[..., 0]


def _hidden(config: ModelConfig, remat: bool = False, expert_balance: float = 0.0):
    """(params, tokens_BQ, layout, source_BC) -> hidden states of columns [B, C, E]."""
    bind = Binder(config)

    def hidden(params: Params, tokens_BQ, layout: Layout, source_BC):
        cos, sin = rope_table(config, tokens_BQ.shape[1])
        rope = (
            jnp.asarray(cos)[layout.position_BQ],
            jnp.asarray(sin)[layout.position_BQ],
        )
        visible_BQQ = visibility(layout)

        def attend(_, q, k, v):
            return trained_attention(q, k, v, visible_BQQ)

        layers = jnp.zeros((config.num_layers,))
        model = bind(with_written_gradients(params, expert_balance))
        hidden_BQE, _ = model.hidden(
            tokens_BQ,
            rope,
            attend,
            layers,
            remat=remat,
            # Only a loop makes XLA wait with what rematerialisation computes again.
            spell_out=not remat and config.num_layers <= MAX_SPELLED_OUT,
        )
        # Hidden states are moved rather than logits, which are far wider.
        return jnp.take_along_axis(hidden_BQE, source_BC[..., None], axis=1)

    return hidden


def _head(config: ModelConfig):
    """(params, hidden_BCE) -> logits [B, C, V]."""
    bind = Binder(config)
    # On a mesh the table may have rows of no id, so that it divides.
    return lambda params, hidden: bind(params).logits(hidden)[..., : config.vocab_rows]
