"""States of the decoding trajectory, drawn at random (semi-autoregressive masking).

A decoder that goes from block to block meets states of one kind: some blocks are
decoded, the active one is partly masked, all later ones are masked wholly. A state here
is that, of a text that is known: decoded blocks hold its tokens.

Under full attention a state is the text with its masks. Block-causal attention lets one
copy of an answer hold several states: each begins with its active block, which sees the
clean text before it, and goes on for some wholly masked blocks, those that a decoder
drafts ahead. dParallel and CD4LM are published for full attention and for the active
block alone; the blocks after it are trained here too if a loss wants that.

Axes: B rows, N copies of each answer, A columns of answers.

Source: dParallel, arXiv 2509.26488 (`forward_process_semi_ar` of its llada_train.py).
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.training.data.token_batch import PADDING, TokenBatch


class RecordedBatch(NamedTuple):
    """Texts that a decoder has written, with the steps at which it did.

    Attributes:
        tokens_BT: As in `TokenBatch`.
        is_answer_BT: As in `TokenBatch`: tokens that the decoder committed.
        sample_BT: As in `TokenBatch`; positions behind an answer that the decoder has
            left masked belong to the sample, too.
        step_BT: int32, the policy step that committed each token of an answer.
    """

    tokens_BT: jax.Array | np.ndarray
    is_answer_BT: jax.Array | np.ndarray
    sample_BT: jax.Array | np.ndarray
    step_BT: jax.Array | np.ndarray


TextBatch = TokenBatch | RecordedBatch
"""What states are drawn from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateSampling:
    """How states are drawn.

    Attributes:
        answer_start: The column at which blocks of answers begin, as in
            `aligned_batch.align_blocks`.
        block_length: Tokens of a block.
        is_causal: Attention is block-causal; otherwise it is full.
        copies: States (under block-causal attention: rows of states) of each answer.
        low: The lowest mask ratio of an active block, at least 0.
        high: The highest, at most 1.
        complementary: Every second copy masks in its active blocks what the copy before
            it shows, and has its active blocks in the same places.
        lookahead: Wholly masked blocks after an active one, under block-causal
            attention; under full attention they are all that follow.
        order: Which tokens of an active block are masked: "random" ones, as published,
            or those that the decoder committed last ("recorded"; then batches are of
            `RecordedBatch`).

    Raises:
        ValueError: Settings do not go together.
    """

    answer_start: int
    block_length: int
    is_causal: bool
    copies: int = 2
    low: float = 0.5
    high: float = 0.5
    complementary: bool = False
    lookahead: int = 0
    order: Literal["random", "recorded"] = "random"

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"mask ratios from low={self.low} to high={self.high} must satisfy "
                "0 <= low <= high <= 1; use e.g. 0.5 for both"
            )
        if self.order not in ("random", "recorded"):
            raise ValueError(f"order={self.order!r} must be 'random' or 'recorded'")
        if self.complementary and self.copies % 2:
            raise ValueError(
                f"copies={self.copies} with complementary masks come in pairs; use "
                f"{self.copies + 1}"
            )
        for name in ("answer_start", "lookahead"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("copies", "block_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class States(NamedTuple):
    """States of the answers of a batch.

    Attributes:
        noisy_BNA: int32, tokens of the answers' columns, some of them masked. So is
            what lies behind the answer in its sample.
        is_masked_BNA: bool, which tokens of the answer are.
        is_later_BNA: bool, those of them that are in a block after the active one.
        first_block_BNA: int32, the active block that each token's state begins with,
            counted from `StateSampling.answer_start`.
        chance_BNA: float32 in [0, 1), one number for each token: masked in an active
            block are those below the ratio, so that a lower ratio gives a subset.
        ratio_BN: float32, the mask ratios.
    """

    noisy_BNA: jax.Array
    is_masked_BNA: jax.Array
    is_later_BNA: jax.Array
    first_block_BNA: jax.Array
    chance_BNA: jax.Array
    ratio_BN: jax.Array


def draw_states(
    key: jax.Array, sampling: StateSampling, batch: TextBatch, *, mask_id: int
) -> States:
    """Draw states of the answers of a batch.

    Under full attention the active block is any of the blocks with tokens of the
    answer, all equally likely. Under block-causal attention each block is in one state
    of each copy; states begin at the answer's first block and, from one of the
    `lookahead` + 1 next blocks on, at every (`lookahead` + 1)-th.

    Args:
        key: Of the draw.
        sampling: The settings.
        batch: Clean text.
        mask_id: The id that stands for a masked token.

    Returns:
        The states.

    Raises:
        ValueError: The order is "recorded" and the batch has no steps.
    """
    is_answer_BA = jnp.asarray(batch.is_answer_BT)[:, sampling.answer_start :]
    rows, columns = is_answer_BA.shape
    block_A = jnp.arange(columns, dtype=jnp.int32) // sampling.block_length
    first_B = jnp.min(jnp.where(is_answer_BA, block_A, jnp.int32(columns)), axis=1)
    last_B = jnp.max(jnp.where(is_answer_BA, block_A, -1), axis=1)
    place_key, ratio_key, mask_key = jax.random.split(key, 3)
    pairs = sampling.copies // 2 if sampling.complementary else sampling.copies
    shape = (rows, pairs)
    blocks_B = last_B - first_B + 1
    run_B = jnp.full_like(blocks_B, sampling.lookahead + 1)
    choices_B = run_B if sampling.is_causal else blocks_B
    choice_BN = jax.random.randint(
        place_key, shape, 0, choices_B[:, None], dtype=jnp.int32
    )
    # Counted from the block in which the answer begins.
    offset_BNA = (block_A[None] - first_B[:, None])[:, None]
    if sampling.is_causal:
        is_turn_BNA = (offset_BNA - choice_BN[..., None]) % run_B[:, None, None] == 0
        is_active_BNA = (offset_BNA == 0) | (is_turn_BNA & (offset_BNA > 0))
        block_BNA = jnp.broadcast_to(block_A, is_active_BNA.shape)
        first_block_BNA = jax.lax.cummax(
            jnp.where(is_active_BNA, block_BNA, 0), axis=block_BNA.ndim - 1
        )
        is_later_BNA = ~is_active_BNA
    else:
        is_active_BNA = offset_BNA == choice_BN[..., None]
        is_later_BNA = offset_BNA > choice_BN[..., None]
        first_block_BNA = jnp.broadcast_to(
            (first_B[:, None] + choice_BN)[..., None], is_active_BNA.shape
        )
    span = sampling.high - sampling.low
    ratio_BN = sampling.low + span * jax.random.uniform(ratio_key, shape, jnp.float32)
    if sampling.order == "random":
        chance_BNA = jax.random.uniform(mask_key, (*shape, columns), jnp.float32)
    else:
        lateness_BA, count_BA = recorded_lateness(sampling, batch)
        uniform_BN1 = jax.random.uniform(mask_key, (*shape, 1), jnp.float32)
        chance_BNA = (lateness_BA[:, None] + uniform_BN1) / count_BA[:, None]
    is_below_BNA = chance_BNA < ratio_BN[..., None]
    if sampling.complementary:
        is_below_BNA = _interleave(is_below_BNA, ~is_below_BNA)
        chance_BNA = _interleave(chance_BNA, 1 - chance_BNA)
        ratio_BN = _interleave(ratio_BN, 1 - ratio_BN)
        is_active_BNA, is_later_BNA, first_block_BNA = (
            _interleave(a, a) for a in (is_active_BNA, is_later_BNA, first_block_BNA)
        )
    is_answer_B1A = is_answer_BA[:, None]
    is_masked_BNA = is_answer_B1A & ((is_active_BNA & is_below_BNA) | is_later_BNA)
    tokens_B1A = jnp.asarray(batch.tokens_BT)[:, None, sampling.answer_start :]
    sample_BA = jnp.asarray(batch.sample_BT)[:, sampling.answer_start :]
    is_after_BA = jax.lax.cummax(is_answer_BA.astype(jnp.int32), axis=1) > 0
    is_behind_BA = is_after_BA & ~is_answer_BA & (sample_BA != PADDING)
    return States(
        noisy_BNA=jnp.where(is_masked_BNA | is_behind_BA[:, None], mask_id, tokens_B1A),
        is_masked_BNA=is_masked_BNA,
        is_later_BNA=is_masked_BNA & is_later_BNA,
        first_block_BNA=first_block_BNA,
        chance_BNA=chance_BNA,
        ratio_BN=ratio_BN,
    )


def recorded_lateness(
    sampling: StateSampling, batch: TextBatch
) -> tuple[jax.Array, jax.Array]:
    """Tell how late in its block each token of the answers was committed.

    Args:
        sampling: The settings.
        batch: Texts with the steps at which they were decoded.

    Returns:
        How many tokens of each one's block were committed after it, those of one step
        from the left, and how many the block has, at least 1: float32 [B, A] both.

    Raises:
        ValueError: The batch has no steps, or its answers are no whole blocks.
    """
    if not isinstance(batch, RecordedBatch):
        raise ValueError(
            "order='recorded' and an order loss need the steps at which tokens were "
            "committed; give a RecordedBatch, or use order='random' and no order loss"
        )
    is_answer_BA = jnp.asarray(batch.is_answer_BT)[:, sampling.answer_start :]
    length = sampling.block_length
    rows, columns = is_answer_BA.shape
    if columns % length:
        raise ValueError(
            f"{columns} columns of answers are no whole blocks of {length}; fill "
            "them up"
        )
    step_BA = jnp.asarray(batch.step_BT)[:, sampling.answer_start :]
    # [B, blocks, W, W]: at [i, j], token j of the block was committed after token i;
    # those of one step from the left.
    step_BJW = step_BA.reshape(rows, -1, length)
    is_answer_BJW = is_answer_BA.reshape(rows, -1, length)
    index_W = jnp.arange(length, dtype=jnp.int32)
    is_tie_BJWW = step_BJW[..., None, :] == step_BJW[..., None]
    is_later_BJWW = step_BJW[..., None, :] > step_BJW[..., None]
    is_right_WW = index_W[None, :] > index_W[:, None]
    is_later_BJWW |= is_tie_BJWW & is_right_WW[None, None]
    is_later_BJWW &= is_answer_BJW[..., None, :]
    later_BJW = jnp.sum(is_later_BJWW, axis=-1, dtype=jnp.float32)
    count_BJ1 = jnp.sum(is_answer_BJW, axis=-1, keepdims=True, dtype=jnp.float32)
    count_BJW = jnp.broadcast_to(jnp.maximum(count_BJ1, 1.0), later_BJW.shape)
    return later_BJW.reshape(rows, columns), count_BJW.reshape(rows, columns)


def _interleave(even_BN: jax.Array, odd_BN: jax.Array) -> jax.Array:
    """Two arrays [B, N, ...] as one [B, 2 N, ...], in turn."""
    pair = jnp.stack([even_BN, odd_BN], axis=2)
    return pair.reshape(len(even_BN), -1, *even_BN.shape[2:])
