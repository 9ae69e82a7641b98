"""Batches and loss for full attention: one masked canvas behind each prompt.

The loss is LLaDA's (its GUIDELINES: the prompt is never masked, padding end tokens are
trained), with two changes: half of the canvases are masked as a semi-autoregressive
decoder meets them (blocks to the left clean, one block partly hidden, blocks to the
right wholly), and masked tokens weigh the same whatever the mask ratio.
"""

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
from jaxdave.training.block_batches import grouped_pairs
from jaxdave.training.recipes import CANVAS, Recipe
from jaxdave.training.tokenizer import END, MASK

PADDING_WEIGHT = 0.1
# group -> the longest prompt of its problems, in tokens
PROMPTS = {"short": 48, "words3": 56, "words4": 64, "lists": 44}


class Canvases(NamedTuple):
    """Sequences of one length group.

    noisy_BS: prompt and masked canvas, padded. begin_B: first canvas position. Along
    the canvas: answer_BC the clean tokens, weight_BC the loss weight (0 where nothing
    is hidden).
    """

    noisy_BS: jax.Array | np.ndarray
    begin_B: jax.Array | np.ndarray
    answer_BC: jax.Array | np.ndarray
    weight_BC: jax.Array | np.ndarray


def step_canvases(
    recipe: Recipe, tokenizer: Tokenizer, step: int
) -> dict[str, Canvases]:
    """The batches of one optimiser step: a pure function of (recipe, step)."""
    rng = np.random.default_rng((recipe.seed, step, 2))
    block = recipe.config.block_length
    pairs = grouped_pairs(recipe, tokenizer, step)
    return {
        name: _pack(group, PROMPTS[name] + CANVAS, block, tokenizer, rng)
        for name, group in pairs.items()
    }


def _pack(pairs, size: int, block: int, tokenizer: Tokenizer, rng) -> Canvases:
    pad, mask = tokenizer.token_to_id(END), tokenizer.token_to_id(MASK)
    rows = len(pairs)
    noisy = np.full((rows, size), pad, np.int32)
    begin = np.array([len(prompt) for prompt, _ in pairs], np.int32)
    answer = np.full((rows, CANVAS), pad, np.int32)
    weight = np.zeros((rows, CANVAS), np.float32)
    for row, (prompt, told) in enumerate(pairs):
        if len(prompt) + CANVAS > size or len(told) > CANVAS:
            raise ValueError(
                f"a problem of {len(prompt)} and {len(told)} tokens does not fit {size}"
            )
        answer[row, : len(told)] = told
        hidden_C = _corrupt(rng, len(told), block)
        noisy[row, : len(prompt)] = prompt
        noisy[row, len(prompt) : len(prompt) + CANVAS] = np.where(
            hidden_C, mask, answer[row]
        )
        # The first padding token tells that the answer is over; it counts in full.
        share_C = np.where(np.arange(CANVAS) <= len(told), 1.0, PADDING_WEIGHT)
        weight[row] = hidden_C * share_C
    return Canvases(noisy, begin, answer, weight)


def _corrupt(rng, told: int, block: int) -> np.ndarray:
    """Which canvas positions to hide: uniformly, or as a decoder by blocks does."""
    place = np.arange(CANVAS)
    share = rng.random()
    if rng.random() < 0.5:
        hidden = rng.random(CANVAS) < share
        hidden[rng.integers(told)] = True
        return hidden
    first = rng.integers(-(-told // block)) * block
    inside = (place >= first) & (place < first + block)
    hidden = inside & (rng.random(CANVAS) < share)
    hidden[first + rng.integers(min(block, told - first))] = True
    return hidden | (place >= first + block)


def canvas_loss(config: ModelConfig):
    """loss(params, batch) -> (sum of weighted cross entropies, sum of weights)."""
    bind = Binder(config)
    cos, sin = rope_table(config, 256)
    # A model with shifted logits says at one position what stands at the next.
    back = 0 if config.logits_shift == "none" else 1

    def loss(params: Params, batch: Canvases):
        rows, size = batch.noisy_BS.shape
        place_S = jnp.arange(size)
        end_B = batch.begin_B + CANVAS
        see_B1S = (place_S[None] < end_B[:, None])[:, None]
        model = bind(params)
        hidden, _ = model.hidden(
            batch.noisy_BS,
            (jnp.asarray(cos)[place_S], jnp.asarray(sin)[place_S]),
            lambda _, q, k, v: dense_attention(q, k, v, see_B1S),
            jnp.zeros((config.num_layers,)),
        )
        place_BC = batch.begin_B[:, None] + jnp.arange(CANVAS)[None] - back
        read = jnp.take_along_axis(hidden, place_BC[..., None], axis=1)
        logits = model.logits(read)
        chosen = jnp.take_along_axis(logits, batch.answer_BC[..., None], axis=-1)
        losses = jax.nn.logsumexp(logits, axis=-1) - chosen[..., 0]
        return jnp.sum(losses * batch.weight_BC), jnp.sum(batch.weight_BC)

    return loss
