"""How tokens are masked in training: mask ratios, and the tokens that are drawn.

A unit (a row, a sample, a block or a token) draws its mask ratio p uniformly from a
range, and each of its tokens that may be masked is, independently, with probability p.
All of it is a pure function of a key.

In the papers p is (1 - eps) t + eps with t ~ U(0, 1): that is p ~ U(eps, 1). With alpha
= 1 - t (log-linear noise) p is t itself, so that the weight 1 / t of the likelihood
bound is 1 / p.

Axes: B rows, T positions.

Source: LLaDA, arXiv 2502.09992 (GUIDELINES.md of its repository); MDLM, arXiv
2406.07524; BD3-LM, arXiv 2503.09573; Fast-dLLM v2, arXiv 2509.26328.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.training.data.token_batch import run_starts, sum_over_runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """How tokens are masked.

    Attributes:
        low: The lowest mask ratio, above 0.
        high: The highest, at most 1.
        per: What shares one mask ratio: "row", "sample", "block" or "token".
        antithetic: Units draw from strata of equal size, one each, so that the ratios
            of a batch are spread evenly. Each by itself is still uniform.
        at_least_one: A sample of which nothing would be masked gets one mask, at the
            token that would be the first to be masked at a higher ratio.
        complementary: Each row is trained twice: as drawn, and with the other tokens
            masked in the place of those that were drawn.
        keep_first: The first token of a sample is never masked (BD3-LM's ignore_bos).

    Raises:
        ValueError: The range is empty or not within (0, 1].
    """

    low: float = 1e-3
    high: float = 1.0
    per: Literal["row", "sample", "block", "token"] = "sample"
    antithetic: bool = False
    at_least_one: bool = False
    complementary: bool = False
    keep_first: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(
                f"mask ratios from low={self.low} to high={self.high} must satisfy "
                "0 < low <= high <= 1; use e.g. low=0.001, high=1"
            )
        if self.per not in ("row", "sample", "block", "token"):
            raise ValueError(
                f"per={self.per!r} must be 'row', 'sample', 'block' or 'token'"
            )


class Corruption(NamedTuple):
    """A batch as a network sees it.

    Attributes:
        noisy_BT: int32, its tokens, some of them masked.
        is_masked_BT: bool, which.
        is_replaced_BT: bool, tokens that are not masked but wrong (`editing`).
        ratio_BT: float32, the probability with which each token was to be masked.
    """

    noisy_BT: jax.Array
    is_masked_BT: jax.Array
    is_replaced_BT: jax.Array
    ratio_BT: jax.Array


def draw_ratios(
    key: jax.Array, masking: Masking, start_BT: jax.Array, maskable_BT: jax.Array
) -> jax.Array:
    """Draw the mask ratio of each token's unit.

    Args:
        key: Of the draw.
        masking: The settings.
        start_BT: The column at which each token's unit begins, int32 [B, T].
        maskable_BT: Tokens that may be masked; units without any take no stratum.

    Returns:
        float32 [B, T], equal within a unit.

    Source: MDLM's and BD3-LM's `_sample_t` take strata in the order of rows and blocks,
    so that early blocks always get low ratios in a batch of one row; here strata are
    dealt out at random.
    """
    draw_key, deal_key = jax.random.split(key)
    uniform_BT = jax.random.uniform(draw_key, start_BT.shape, jnp.float32)
    if masking.antithetic:
        column_T = jnp.arange(start_BT.shape[1], dtype=jnp.int32)
        is_used_BT = sum_over_runs(maskable_BT.astype(jnp.int32), start_BT) > 0
        is_unit_BT = (start_BT == column_T[None]) & is_used_BT
        # Ranks of random numbers, those of other columns behind: a permutation.
        order_BT = jnp.where(
            is_unit_BT, jax.random.uniform(deal_key, start_BT.shape, jnp.float32), 2
        )
        rank = jnp.argsort(jnp.argsort(order_BT.reshape(-1)))
        units = jnp.maximum(jnp.sum(is_unit_BT), 1).astype(jnp.float32)
        stratum_BT = rank.reshape(start_BT.shape).astype(jnp.float32)
        uniform_BT = jnp.where(is_unit_BT, (stratum_BT + uniform_BT) / units, 0)
    ratio_BT = masking.low + (masking.high - masking.low) * uniform_BT
    return jnp.take_along_axis(ratio_BT, start_BT, axis=1)


def draw_masks(
    key: jax.Array,
    masking: Masking,
    maskable_BT: jax.Array,
    sample_BT: jax.Array,
    block_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Draw which tokens are masked.

    Args:
        key: Of the draw.
        masking: The settings.
        maskable_BT: Tokens that may be masked, bool [B, T].
        sample_BT: The sample of each token, int32 [B, T].
        block_BT: The block of each token, int32 [B, T].

    Returns:
        Which are masked, bool [B, T], and the mask ratios, float32 [B, T].
    """
    ratio_key, mask_key = jax.random.split(key)
    column_T = jnp.arange(sample_BT.shape[1], dtype=jnp.int32)
    start_BT = {
        "row": jnp.zeros_like(sample_BT),
        "sample": run_starts(sample_BT),
        "block": run_starts(sample_BT, block_BT),
        "token": jnp.broadcast_to(column_T[None], sample_BT.shape),
    }[masking.per]
    ratio_BT = draw_ratios(ratio_key, masking, start_BT, maskable_BT)
    # Below 0, as a ratio of 1 masks everything, whatever the draw.
    excess_BT = jax.random.uniform(mask_key, sample_BT.shape, jnp.float32) - ratio_BT
    is_masked_BT = maskable_BT & (excess_BT < 0)
    if masking.at_least_one:
        # The token of the least excess is masked already where any of its sample is.
        excess_BT = jnp.where(maskable_BT, excess_BT, jnp.inf)
        is_least_BT = excess_BT == _least_of_runs(excess_BT, run_starts(sample_BT))
        is_masked_BT |= maskable_BT & is_least_BT
    return is_masked_BT, ratio_BT


def mask_tokens(
    key: jax.Array,
    masking: Masking,
    tokens_BT: jax.Array,
    maskable_BT: jax.Array,
    sample_BT: jax.Array,
    block_BT: jax.Array,
    *,
    mask_id: int,
) -> Corruption:
    """Mask tokens of a batch.

    Args:
        key: Of the draw.
        masking: The settings.
        tokens_BT: Clean tokens, int32 [B, T].
        maskable_BT: Tokens that may be masked, bool [B, T].
        sample_BT: The sample of each token, int32 [B, T].
        block_BT: The block of each token, int32 [B, T].
        mask_id: The id that stands for a masked token.

    Returns:
        The corrupted batch; with `Masking.complementary` its complement follows it, 2 B
        rows in all.

    Example:
        >>> zeros = jnp.zeros((1, 4), jnp.int32)
        >>> masking = Masking(low=1, high=1)
        >>> maskable = jnp.array([[False, False, True, True]])
        >>> args = jnp.array([[5, 6, 7, 8]]), maskable, zeros, zeros
        >>> mask_tokens(jax.random.key(0), masking, *args, mask_id=9).noisy_BT.tolist()
        [[5, 6, 9, 9]]
    """
    is_masked_BT, ratio_BT = draw_masks(key, masking, maskable_BT, sample_BT, block_BT)
    if masking.complementary:
        tokens_BT = jnp.concatenate([tokens_BT, tokens_BT])
        is_masked_BT = jnp.concatenate([is_masked_BT, maskable_BT & ~is_masked_BT])
        ratio_BT = jnp.concatenate([ratio_BT, 1 - ratio_BT])
    noisy_BT = jnp.where(is_masked_BT, mask_id, tokens_BT)
    return Corruption(noisy_BT, is_masked_BT, jnp.zeros_like(is_masked_BT), ratio_BT)


def maskable_tokens(
    is_answer_BT: jax.Array, sample_BT: jax.Array, *, keep_first: bool
) -> jax.Array:
    """Tokens that may be masked: those of answers, but perhaps a sample's first.

    Args:
        is_answer_BT: bool [B, T].
        sample_BT: The sample of each token, int32 [B, T].
        keep_first: The first token of a sample is never masked.

    Returns:
        bool [B, T].
    """
    if not keep_first:
        return is_answer_BT
    column_T = jnp.arange(sample_BT.shape[1], dtype=jnp.int32)
    return is_answer_BT & (run_starts(sample_BT) != column_T[None])


def _least_of_runs(values_BT: jax.Array, start_BT: jax.Array) -> jax.Array:
    """For each token the least number of its run."""

    def least(values_T, start_T):
        least_T = jnp.full_like(values_T, jnp.inf).at[start_T].min(values_T)
        return least_T[start_T]

    return jax.vmap(least)(values_BT, start_BT)
