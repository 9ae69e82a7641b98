"""The log-likelihood of a text after a context, under a masked diffusion model.

Such a model gives no single number. What is computed is a lower bound, or the
likelihood of one order of decoding (`masks.py`). Full attention sees the context and
the unmasked part of the target, which is scored as one stretch; the target of a
block-causal model is scored block by block, after the clean text before each. Nothing
follows the target. Ids that a decoder never predicts, the mask id among them, take no
share of the probabilities. `batching.py` is the host side.

Axes: B rows of a batch, T the whole text with padding, S samples, L the scored window,
P positions of one block, R rows of the output head, E features.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig, Numerics
from jaxdave.core.model_api import ModelFns
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.full_attention import uncached_model
from jaxdave.models.guidance import with_guidance
from jaxdave.sampling.chunked_head import chunk_logits, num_chunks, token_log_odds

TOKENS_PER_PASS = 512
"""Tokens of one row's blocks that are evaluated side by side."""


class ScoringRow(NamedTuple):
    """Samples of one question that are evaluated together, after one prefill.

    Attributes:
        tokens_T: int32 [T], context and target, padded with the mask id.
        start: int32, first position of the window of L positions that holds the target.
        end: int32, position after the target.
        hidden_SL: bool [S, L], as in `masks.Masks`.
        weight_SL: float32 [S, L], as in `masks.Masks`.
    """

    tokens_T: Any
    start: Any
    end: Any
    hidden_SL: Any
    weight_SL: Any


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The model as questions are scored with it; `make_scorer` makes one.

    Attributes:
        model: Functions of the model.
        block_length: Block length of a block-causal model; None for full attention.
        first_from_previous: True if the first token of a block is predicted by the last
            position of the block before (shifted logits).
        mask_id: Id of the mask token.
        max_positions: Largest number of tokens of context and target together.
    """

    model: ModelFns
    block_length: int | None
    first_from_previous: bool
    mask_id: int
    max_positions: int


@functools.cache
def make_scorer(
    config: ModelConfig,
    *,
    numerics: Numerics | str = Numerics.GUARDED,
    block_length: int | None = None,
    guidance: float = 0.0,
) -> Scorer:
    """Return the scorer of a model; equal arguments give the same object.

    Args:
        config: Configuration of the model.
        numerics: "guarded" computes in float32, others in the dtype of the weights.
        block_length: Block length of a block-causal model; None for its own.
        guidance: Scale of classifier-free guidance of a full-attention model; 0 is off.

    Returns:
        The scorer.
    """
    is_causal = config.attention == "block_causal"
    length = block_length or config.block_length

    if is_causal:
        model = block_causal_model(config, numerics=numerics, block_length=length)
    else:
        model = uncached_model(config, numerics=numerics)
        model = with_guidance(model, guidance, config.mask_id) if guidance else model
    return Scorer(
        model=model,
        block_length=length if is_causal else None,
        first_from_previous=is_causal and config.logits_shift != "none",
        mask_id=config.mask_id,
        max_positions=config.max_positions,
    )


def score(scorer: Scorer, params, rows: ScoringRow) -> jax.Array:
    """Return what the samples of every row add to the log-likelihood.

    Args:
        scorer: Model to score with.
        params: Parameters of the model.
        rows: Rows with a leading batch axis B on every field.

    Returns:
        float32 [B], in nats.
    """
    return jax.vmap(lambda row: _score_row(scorer, scorer.model, params, row))(rows)


def _score_row(scorer: Scorer, model: ModelFns, params, row: ScoringRow) -> jax.Array:
    samples, size = row.hidden_SL.shape
    length = scorer.block_length or size
    clean_L = jax.lax.dynamic_slice(row.tokens_T, (row.start,), (size,))
    # One prefill serves all samples: of a block-causal model it caches the clean text,
    # and of the window it gives the vectors that shifted logits are read from.
    clean_LE, cache = model.prefill(
        params, row.tokens_T, row.start, row.start, row.end, size, len(row.tokens_T)
    )

    def score_block(index):
        offset = index * length

        def block_of(array_SL):
            return _slice(array_SL, offset, length)

        hidden_SP, clean_P = block_of(row.hidden_SL), block_of(clean_L[None])
        masked_SP = jnp.where(hidden_SP, jnp.int32(scorer.mask_id), clean_P)
        hidden_SPE, _ = model.forward(
            params, masked_SP, row.start + offset, row.end, cache
        )
        if scorer.first_from_previous:
            # The block before is clean in every sample, so its vector comes from the
            # prefill. The text's first block has none before it and uses its own.
            own_SE = hidden_SPE[:, 0]
            before_SE = jnp.broadcast_to(clean_LE[offset][None], own_SE.shape)
            first_SE = jnp.where(row.start + offset > 0, before_SE, own_SE)
            hidden_SPE = hidden_SPE.at[:, 0].set(first_SE)
        ids_SP = jnp.broadcast_to(clean_P, hidden_SP.shape)
        log_prob_SP = log_probabilities(model, params, hidden_SPE, ids_SP)
        weight_SP = block_of(row.weight_SL)
        # Where, not a product alone: 0 * -inf would be NaN.
        return jnp.sum(jnp.where(weight_SP > 0, weight_SP * log_prob_SP, 0.0))

    index_J = jnp.arange(size // length, dtype=jnp.int32)
    blocks_per_pass = max(1, TOKENS_PER_PASS // (samples * length))
    return jnp.sum(jax.lax.map(score_block, index_J, batch_size=blocks_per_pass))


def log_probabilities(model: ModelFns, params, hidden: jax.Array, ids: jax.Array):
    """Return the log-probabilities of ids.

    The vocabulary is read in chunks, so that no logits of all of it are ever stored.

    Args:
        model: Model functions, of which the output head is used.
        params: Parameters of the model.
        hidden: Hidden vectors [..., E] that the ids are predicted from.
        ids: int32 [...], token ids.

    Returns:
        float32 [...], in nats. Neither end saturates: the value comes from the
        log-odds.
    """
    hidden_RE = hidden.reshape(-1, hidden.shape[-1])
    logits = chunk_logits(model, params, hidden_RE)
    log_odds_R = token_log_odds(logits, num_chunks(model), 1.0, ids.reshape(-1))
    return jax.nn.log_sigmoid(log_odds_R).reshape(ids.shape)


def _slice(array_SL: jax.Array, start, length: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array_SL, start, length, axis=1)
