"""The log-likelihood of a text after a context, under a masked diffusion model.

Such a model gives no single number. What is computed is a lower bound, or the
likelihood of one order of decoding (`masks.py`). Full attention sees the context, what
follows the target (as a rule nothing) and the unmasked part of the target, which is
scored as one stretch; the target of a block-causal model is scored block by block,
after the clean text before each. Ids that a decoder never predicts, the mask id among
them, take no share of the probabilities. `batching.py` is the host side.

Axes: B rows of a batch, T the whole text with padding, S samples, L the scored window,
P positions of one block, R rows of the output head, E features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.config import (
    ModelConfig,
    Numerics,
    SamplingConfig,
    check_guidance,
    check_no_causal_context,
)
from jaxdave.core.model_api import ModelFns
from jaxdave.core.prediction import Prediction
from jaxdave.core.shards import WHOLE_MODEL, model_shards
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.full_attention import uncached_model
from jaxdave.models.guidance import with_guidance
from jaxdave.runtime.mesh_shape import MODEL_AXIS
from jaxdave.sampling.chunked_head import (
    head_at,
    sample_and_score,
    token_log_odds,
)

TOKENS_PER_PASS = 512
"""Tokens of one row's blocks that are evaluated side by side."""


class ScoringRow(NamedTuple):
    """Samples of one question that are evaluated together, after one prefill.

    Attributes:
        tokens_T: int32 [T], context, target and suffix, padded with the mask id.
        start: int32, first position of the window of L positions that holds the target.
        stop: int32, position after the target.
        end: int32, position after the suffix.
        hidden_SL: bool [S, L], as in `masks.Masks`.
        weight_SL: float32 [S, L], as in `masks.Masks`.
    """

    tokens_T: Any
    start: Any
    stop: Any
    end: Any
    hidden_SL: Any
    weight_SL: Any


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The model as questions are scored with it; `make_scorer` makes one.

    Attributes:
        model: Functions of the model; under guidance its head reads both canvases'
            vectors, side by side.
        block_length: Block length of a block-causal model; None for full attention.
        first_from_previous: True if the first token of a block is predicted by the last
            position of the block before (shifted logits).
        mask_id: Id of the mask token.
        max_positions: Largest number of tokens of a text as a whole.
        one_canvas: Under guidance, the functions that evaluate one canvas; else None.
        on_parts: num_parts -> the same scorer of a model that is split over so many
            devices; None: it cannot be split.
    """

    model: ModelFns
    block_length: int | None
    first_from_previous: bool
    mask_id: int
    max_positions: int
    one_canvas: ModelFns | None = None
    on_parts: Callable[..., "Scorer"] | None = None


@functools.cache
def make_scorer(
    config: ModelConfig,
    *,
    numerics: Numerics | str = Numerics.GUARDED,
    block_length: int | None = None,
    guidance: float = 0.0,
    num_parts: int = 1,
) -> Scorer:
    """Return the scorer of a model; equal arguments give the same object.

    Args:
        config: Configuration of the model.
        numerics: "guarded" computes in float32, others in the dtype of the weights.
        block_length: Block length of a block-causal model; None for its own.
        guidance: Scale of classifier-free guidance of a full-attention model; 0 is off.
            Logits are u + (guidance + 1)(c - u), with u of a canvas on which all but
            the target is masked (LLaDA's cfg_scale, Dream's classifier_free_guidance
            less 1).
        num_parts: Devices that the model is split over.

    Returns:
        The scorer.

    Raises:
        ValueError: The guidance is out of range, or the model is block-causal.
    """
    check_no_causal_context(config, "scoring")
    is_causal = config.attention == "block_causal"
    length = block_length or config.block_length
    check_guidance(guidance, config)
    one_canvas = None
    shards = WHOLE_MODEL
    if num_parts > 1:
        shards = model_shards(config, num_parts, MODEL_AXIS)
    settings = {"numerics": numerics, "shards": shards}

    if is_causal:
        model = block_causal_model(config, block_length=length, **settings)
    else:
        model = uncached_model(config, **settings)
        if guidance:
            one_canvas = model
            model = with_guidance(model, guidance, config.mask_id)
    return Scorer(
        one_canvas=one_canvas,
        model=model,
        block_length=length if is_causal else None,
        first_from_previous=is_causal and config.logits_shift != "none",
        mask_id=config.mask_id,
        max_positions=config.max_positions,
        on_parts=functools.partial(
            make_scorer,
            config,
            numerics=numerics,
            block_length=block_length,
            guidance=guidance,
        ),
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

    def score_block(block: _Block):
        hidden_SPE = block.evaluate(block.hidden_SP)
        ids_SP = jnp.broadcast_to(block.clean_P, block.hidden_SP.shape)
        log_prob_SP = log_probabilities(scorer.model, params, hidden_SPE, ids_SP)
        weight_SP = block.weight_SP
        # Where, not a product alone: 0 * -inf would be NaN.
        return jnp.sum(jnp.where(weight_SP > 0, weight_SP * log_prob_SP, 0.0))

    return _sum_over_blocks(scorer, params, rows, score_block)


def score_by_confidence(scorer: Scorer, params, rows: ScoringRow) -> jax.Array:
    """Return the log-likelihoods of one order, the most confident position first.

    Of the positions that are masked still, the one whose best token has the highest
    probability is revealed, with the text's own token. What the model says up to there
    decides which one comes next, so that all texts together have probability 1, as
    under every fixed order.

    Source: the order of LLaDA's decoding (low-confidence remasking, one token a step),
    in which its evaluation checks if a text is greedy (eval_llada.py,
    suffix_greedy_prediction).

    Args:
        scorer: Model to score with.
        params: Parameters of the model.
        rows: Rows with a leading batch axis B on every field, of one sample each, in
            which all positions of the target are masked and have a weight.

    Returns:
        float32 [B], in nats.
    """

    def log_probability(hidden_PE, clean_P, pred: Prediction):
        return log_probabilities(scorer.model, params, hidden_PE, clean_P)

    return _reveal_by_confidence(scorer, params, rows, log_probability)


def count_not_greedy(scorer: Scorer, params, rows: ScoringRow) -> jax.Array:
    """Return how many tokens are not the model's best one, in the order of confidence.

    It is 0 for the text that greedy decoding writes, one token a step, in a room of
    just its length (LLaDA's suffix_greedy_prediction).

    Args:
        scorer: Model to score with.
        params: Parameters of the model.
        rows: As for `score_by_confidence`.

    Returns:
        float32 [B].
    """

    def is_other(hidden_PE, clean_P, pred: Prediction):
        return (pred.token != clean_P).astype(jnp.float32)

    return _reveal_by_confidence(scorer, params, rows, is_other)


def _reveal_by_confidence(
    scorer: Scorer,
    params,
    rows: ScoringRow,
    value_of: Callable[[jax.Array, jax.Array, Prediction], jax.Array],
) -> jax.Array:
    """The sums of what `value_of` says of each position as it is revealed, [B].

    value_of: (hidden_PE, clean_P, prediction of the positions) -> float32 [P].
    """
    model = scorer.model

    def score_block(block: _Block):
        size = block.clean_P.shape[0]
        no_keys = jnp.zeros((size, 2), jnp.uint32)

        def reveal(state):
            left_P, total = state
            hidden_PE = block.evaluate(left_P[None])[0]
            pred = sample_and_score(
                head_at(model, params, hidden_PE), SamplingConfig(), no_keys
            )
            # The leftmost one of equals.
            best = jnp.argmax(jnp.where(left_P, pred.score, -jnp.inf))
            value_P = value_of(hidden_PE, block.clean_P, pred)
            return left_P & (jnp.arange(size) != best), total + value_P[best]

        start = block.weight_SP[0] > 0, jnp.float32(0)
        return jax.lax.while_loop(lambda state: jnp.any(state[0]), reveal, start)[1]

    return _sum_over_blocks(scorer, params, rows, score_block)


class _Block(NamedTuple):
    """A block of a row, as it is scored.

    Attributes:
        clean_P: Its tokens, int32 [P].
        hidden_SP: Which of them each sample masks, bool [S, P].
        weight_SP: float32 [S, P], as in `masks.Masks`.
        evaluate: Masked positions, bool [S, P] of any S -> vectors [S, P, E].
    """

    clean_P: jax.Array
    hidden_SP: jax.Array
    weight_SP: jax.Array
    evaluate: Callable[[jax.Array], jax.Array]


def _sum_over_blocks(
    scorer: Scorer,
    params,
    rows: ScoringRow,
    score_block: Callable[[_Block], jax.Array],
) -> jax.Array:
    """The sum of a number of every block of every row, float32 [B]."""

    def score_row(row: ScoringRow) -> jax.Array:
        samples, size = row.hidden_SL.shape
        length = scorer.block_length or size
        block_at = _block_reader(scorer, params, row, length)
        offset_J = jnp.arange(size // length, dtype=jnp.int32) * length
        per_pass = max(1, TOKENS_PER_PASS // (samples * length))
        values_J = jax.lax.map(
            lambda offset: score_block(block_at(offset)), offset_J, batch_size=per_pass
        )
        return jnp.sum(values_J)

    return jax.vmap(score_row)(rows)


def _block_reader(
    scorer: Scorer, params, row: ScoringRow, length: int
) -> Callable[[jax.Array], _Block]:
    """A function from the offset of a block in the window to the block."""
    size = row.hidden_SL.shape[1]
    model = scorer.one_canvas or scorer.model
    mask_id = jnp.int32(scorer.mask_id)
    canvases = [row.tokens_T]
    if scorer.one_canvas is not None:
        # The unconditional canvas has nothing but the target.
        position_T = jnp.arange(row.tokens_T.shape[0], dtype=jnp.int32)
        is_target_T = (position_T >= row.start) & (position_T < row.stop)
        canvases.append(jnp.where(is_target_T, row.tokens_T, mask_id))
    # One prefill serves all samples: of a block-causal model it caches the clean text,
    # and of the window it gives the vectors that shifted logits are read from.
    capacity = row.tokens_T.shape[0]
    prefills = [
        model.prefill(params, tokens_T, row.start, row.start, row.end, size, capacity)
        for tokens_T in canvases
    ]
    clean_LE = prefills[0][0]

    def block_at(offset) -> _Block:
        def cut(array_SL):
            return jax.lax.dynamic_slice_in_dim(array_SL, offset, length, axis=1)

        start = row.start + offset
        tokens = [jax.lax.dynamic_slice(a, (start,), (length,)) for a in canvases]

        def evaluate(hidden_SP):
            vectors = [
                model.forward(
                    params,
                    jnp.where(hidden_SP, mask_id, tokens_P[None]),
                    start,
                    row.end,
                    cache,
                )[0]
                for tokens_P, (_, cache) in zip(tokens, prefills, strict=True)
            ]
            hidden_SPE = jnp.concatenate(vectors, axis=-1)
            if not scorer.first_from_previous:
                return hidden_SPE
            # The block before is clean in every sample, so its vector comes from the
            # prefill. The text's first block has none before it and uses its own.
            own_SE = hidden_SPE[:, 0]
            before_SE = jnp.broadcast_to(clean_LE[offset][None], own_SE.shape)
            return hidden_SPE.at[:, 0].set(jnp.where(start > 0, before_SE, own_SE))

        return _Block(tokens[0], cut(row.hidden_SL), cut(row.weight_SL), evaluate)

    return block_at


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
    head = head_at(model, params, hidden_RE)
    log_odds_R = token_log_odds(head, 1.0, ids.reshape(-1))
    return jax.nn.log_sigmoid(log_odds_R).reshape(ids.shape)
