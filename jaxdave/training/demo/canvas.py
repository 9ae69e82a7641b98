"""Batches and loss for full attention: one masked canvas behind each prompt.

A canvas is the fixed number of positions that an answer, with the end tokens behind it,
is generated in. The loss is LLaDA's (arXiv 2502.09992, GUIDELINES.md of its repository:
the prompt is never masked, the end tokens that pad an answer are trained), with two
changes: half of the canvases are masked as a semi-autoregressive decoder meets them
(blocks to the left clean, one block partly hidden, blocks to the right wholly), and
masked tokens weigh the same whatever the mask ratio.

Axes: B sequences, S positions of a sequence, C positions of its canvas.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.models.attention import dense_attention
from jaxdave.models.param_shapes import Binder
from jaxdave.models.rope import rope_table
from jaxdave.training.demo.block_batches import TokenPair, grouped_pairs
from jaxdave.training.demo.block_loss import MAX_POSITIONS
from jaxdave.training.demo.recipes import CANVAS_LENGTH, Recipe
from jaxdave.training.demo.tokenizer import pad_and_mask_ids

PADDING_WEIGHT = 0.1
"""Loss weight of the end tokens that pad an answer, of which there are many."""
MAX_PROMPT_LENGTHS = {"short": 48, "words3": 56, "words4": 64, "lists": 44}
"""By length group: tokens of its longest prompt."""


class CanvasBatch(NamedTuple):
    """Sequences of one length group, for full attention.

    Attributes:
        noisy_BS: int32, the prompt and the partly masked canvas, padded with the end
            token.
        begin_B: int32, first position of the canvas.
        answer_BC: int32, the clean tokens of the canvas.
        weight_BC: float32, loss weight; 0 where nothing is hidden.
    """

    noisy_BS: jax.Array | np.ndarray
    begin_B: jax.Array | np.ndarray
    answer_BC: jax.Array | np.ndarray
    weight_BC: jax.Array | np.ndarray


def make_canvas_batches(
    recipe: Recipe, tokenizer: Tokenizer, step: int
) -> dict[str, CanvasBatch]:
    """Make the batches of one optimiser step: a pure function of its arguments.

    Args:
        recipe: The training run; its seed and batch size choose the problems.
        tokenizer: The demo's tokenizer.
        step: Index of the step, from 0.

    Returns:
        One batch for each length group.

    Raises:
        ValueError: If a problem does not fit the shape of its group.
    """
    # The last number tells the noise of these batches from that of other kinds.
    rng = np.random.default_rng((recipe.seed, step, 2))
    block_length = recipe.config.block_length
    groups = grouped_pairs(recipe, tokenizer, step)
    return {
        name: _pack(
            pairs,
            MAX_PROMPT_LENGTHS[name] + CANVAS_LENGTH,
            block_length,
            tokenizer,
            rng,
        )
        for name, pairs in groups.items()
    }


def _pack(
    pairs: list[TokenPair],
    size: int,
    block_length: int,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
) -> CanvasBatch:
    """One batch of the problems of a length group, `size` positions each."""
    pad, mask = pad_and_mask_ids(tokenizer)
    rows = len(pairs)
    noisy = np.full((rows, size), pad, np.int32)
    begin = np.array([len(prompt) for prompt, _ in pairs], np.int32)
    clean = np.full((rows, CANVAS_LENGTH), pad, np.int32)
    weight = np.zeros((rows, CANVAS_LENGTH), np.float32)
    for row, (prompt, answer) in enumerate(pairs):
        if len(prompt) + CANVAS_LENGTH > size or len(answer) > CANVAS_LENGTH:
            raise ValueError(
                f"a problem of {len(prompt)} and {len(answer)} tokens does not fit "
                f"{size}"
            )
        clean[row, : len(answer)] = answer
        hidden_C = _corrupt(rng, len(answer), block_length)
        noisy[row, : len(prompt)] = prompt
        noisy[row, len(prompt) : len(prompt) + CANVAS_LENGTH] = np.where(
            hidden_C, mask, clean[row]
        )
        # The first padding token tells that the answer is over; it counts in full.
        base_weight_C = np.where(
            np.arange(CANVAS_LENGTH) <= len(answer), 1.0, PADDING_WEIGHT
        )
        weight[row] = hidden_C * base_weight_C
    return CanvasBatch(noisy_BS=noisy, begin_B=begin, answer_BC=clean, weight_BC=weight)


def _corrupt(
    rng: np.random.Generator, answer_length: int, block_length: int
) -> np.ndarray:
    """Choose the canvas positions to hide: bool [C].

    With equal chances either uniformly, or as a semi-autoregressive decoder meets a
    canvas. At least one position of the answer is hidden.
    """
    position_C = np.arange(CANVAS_LENGTH)
    mask_ratio = rng.random()
    if rng.random() < 0.5:
        hidden_C = rng.random(CANVAS_LENGTH) < mask_ratio
        hidden_C[rng.integers(answer_length)] = True
        return hidden_C
    num_blocks = -(-answer_length // block_length)
    block_start = rng.integers(num_blocks) * block_length
    block_end = block_start + block_length
    in_block_C = (position_C >= block_start) & (position_C < block_end)
    hidden_C = in_block_C & (rng.random(CANVAS_LENGTH) < mask_ratio)
    answer_in_block = min(block_length, answer_length - block_start)
    hidden_C[block_start + rng.integers(answer_in_block)] = True
    return hidden_C | (position_C >= block_end)


def make_canvas_loss(
    config: ModelConfig,
) -> Callable[[Params, CanvasBatch], tuple[jax.Array, jax.Array]]:
    """Make the loss of a full-attention model.

    Args:
        config: The model.

    Returns:
        A function (params, batch) -> (sum of weighted cross entropies in nats, sum of
        weights), both float32 scalars. Sums and not the mean, so that batches of
        different shapes can be added before the division.
    """
    bind = Binder(config)
    cos, sin = rope_table(config, MAX_POSITIONS)
    # A model with shifted logits predicts at one position the token of the next.
    shift = 0 if config.logits_shift == "none" else 1

    def loss(params: Params, batch: CanvasBatch):
        rows, size = batch.noisy_BS.shape
        position_S = jnp.arange(size)
        end_B = batch.begin_B + CANVAS_LENGTH
        # Everything sees everything up to the end of the canvas, so that what the
        # batch is padded with has no effect.
        visible_B1S = (position_S[None] < end_B[:, None])[:, None]

        def attend(_, q, k, v):
            return dense_attention(q, k, v, visible_B1S)

        model = bind(params)
        hidden, _ = model.hidden(
            batch.noisy_BS,
            (jnp.asarray(cos)[position_S], jnp.asarray(sin)[position_S]),
            attend,
            jnp.zeros((config.num_layers,)),
        )
        position_BC = batch.begin_B[:, None] + jnp.arange(CANVAS_LENGTH)[None] - shift
        hidden_BCE = jnp.take_along_axis(hidden, position_BC[..., None], axis=1)
        logits = model.logits(hidden_BCE)
        target_logits = jnp.take_along_axis(logits, batch.answer_BC[..., None], axis=-1)
        cross_entropy = jax.nn.logsumexp(logits, axis=-1) - target_logits[..., 0]
        return jnp.sum(cross_entropy * batch.weight_BC), jnp.sum(batch.weight_BC)

    return loss
