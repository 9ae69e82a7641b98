"""The loss of an objective: mask, predict, weigh, divide.

Axes: B rows, T positions of the text, C those of them whose tokens are predicted, Q
positions of the sequence that the network sees. Where a batch is masked in
complementary ways, B counts both views of a row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.models.forward import source_columns
from jaxdave.training.data.token_batch import (
    PADDING,
    TokenBatch,
    run_starts,
    sum_over_runs,
)
from jaxdave.training.objective import attention_masks
from jaxdave.training.objective.attention_masks import Layout
from jaxdave.training.objective.editing import replace_tokens
from jaxdave.training.objective.masking import Corruption, mask_tokens, maskable_tokens
from jaxdave.training.objective.objectives import Objective, check_model
from jaxdave.training.objective.sequence_model import NatsFn, transformer_nats


class LossSums(NamedTuple):
    """A loss before its division, so that batches can be added up first.

    Attributes:
        total: Weighted cross entropies in nats, a scalar.
        divisor: What they are divided by, a scalar; 0 where nothing is trained.
    """

    total: jax.Array
    divisor: jax.Array

    def mean(self) -> jax.Array:
        """The loss; 0 where nothing is trained."""
        return self.total / jnp.maximum(
            self.divisor, jnp.finfo(self.divisor.dtype).tiny
        )


def make_objective_loss(
    config: ModelConfig,
    objective: Objective,
    columns_at_once: int | None = None,
    *,
    remat: bool = False,
    expert_balance: float = 0.0,
) -> Callable[[Params, TokenBatch, jax.Array], LossSums]:
    """Make the loss of a model.

    Args:
        config: The model.
        objective: What it is trained for.
        columns_at_once: Of so many columns of each row logits are in memory
            (`sequence_model.transformer_nats`); None: all.
        remat: Compute the insides of layers again for the gradient.
        expert_balance: What the balance of a mixture's experts counts beside the loss
            (`trained_experts.balanced`); 0: nothing.

    Returns:
        A pure function (params, batch, key) -> `LossSums`. The key draws the masks.

    Raises:
        ValueError: The model does not decode as the objective trains it.

    Example:
        >>> from jaxdave.models import transformer
        >>> from jaxdave.models.presets import preset
        >>> from jaxdave.training.objective.objectives import sdar
        >>> from jaxdave.training.data.token_batch import pack_samples
        >>> config = preset("sdar-1m", num_layers=1)
        >>> batch = pack_samples([[([1, 2], [3, 4])]], length=4, pad_id=0)
        >>> loss = make_objective_loss(config, sdar(block_length=4))
        >>> sums = loss(transformer.init(config, 0), batch, jax.random.key(0))
        >>> float(sums.divisor)
        2.0
    """
    check_model(objective, config)
    nats_fn = transformer_nats(
        config, columns_at_once, remat=remat, expert_balance=expert_balance
    )

    def loss(params: Params, batch: TokenBatch, key: jax.Array) -> LossSums:
        corruption = corrupt(
            objective,
            batch,
            key,
            vocab_size=config.vocab_size,
            mask_id=config.mask_id,
        )
        return corrupted_loss(objective, nats_fn, params, batch, corruption)

    return loss


def corrupt(
    objective: Objective,
    batch: TokenBatch,
    key: jax.Array,
    *,
    vocab_size: int,
    mask_id: int,
) -> Corruption:
    """Mask, and perhaps replace, the tokens of a batch.

    Args:
        objective: The objective.
        batch: Clean text.
        key: Of the draw.
        vocab_size: Ids that replaced tokens are drawn from.
        mask_id: The id that stands for a masked token.

    Returns:
        The corrupted batch; its complement follows it if the objective wants that.
    """
    masking = objective.masking
    sample_BT = jnp.asarray(batch.sample_BT)
    maskable_BT = maskable(objective, batch)
    mask_key, edit_key = jax.random.split(key)
    corruption = mask_tokens(
        mask_key,
        masking,
        jnp.asarray(batch.tokens_BT),
        maskable_BT,
        sample_BT,
        _text_layout(objective, sample_BT).block_BQ,
        mask_id=mask_id,
    )
    if objective.editing is None:
        return corruption
    return replace_tokens(
        edit_key,
        objective.editing,
        corruption,
        _repeat(maskable_BT, corruption),
        vocab_size=vocab_size,
        mask_id=mask_id,
    )


def maskable(objective: Objective, batch: TokenBatch) -> jax.Array:
    """Tokens that an objective may mask.

    Args:
        objective: The objective.
        batch: Clean text.

    Returns:
        bool [B, T].
    """
    return maskable_tokens(
        jnp.asarray(batch.is_answer_BT),
        jnp.asarray(batch.sample_BT),
        keep_first=objective.masking.keep_first or objective.shift,
    )


def corrupted_loss(
    objective: Objective,
    nats_fn: NatsFn,
    params: Any,
    batch: TokenBatch,
    corruption: Corruption,
) -> LossSums:
    """The loss of a batch that is masked already.

    Args:
        objective: The objective.
        nats_fn: The network.
        params: Its parameters.
        batch: Clean text.
        corruption: As the network sees it, from `corrupt`.

    Returns:
        The sums.
    """
    tokens_BT = _repeat(jnp.asarray(batch.tokens_BT), corruption)
    sample_BT = _repeat(jnp.asarray(batch.sample_BT), corruption)
    maskable_BT = _repeat(maskable(objective, batch), corruption)
    nats_BT = token_nats(
        objective, nats_fn, params, tokens_BT, sample_BT, corruption.noisy_BT
    )
    weight_BT = token_weights(objective, corruption, maskable_BT, sample_BT)
    return divide(objective, nats_BT, weight_BT, maskable_BT, sample_BT)


def token_nats(
    objective: Objective,
    nats_fn: NatsFn,
    params: Any,
    tokens_BT: jax.Array,
    sample_BT: jax.Array,
    noisy_BT: jax.Array,
) -> jax.Array:
    """The cross entropy of each token of the text, seen through its masked copy.

    Args:
        objective: The objective: its layout, blocks and shift.
        nats_fn: The network.
        params: Its parameters.
        tokens_BT: Clean tokens, int32 [B, T].
        sample_BT: The sample of each token, int32 [B, T].
        noisy_BT: Tokens of the masked copy, int32 [B, T].

    Returns:
        Nats [B, T] in the network's dtype; 0 before `Objective.answer_start`.
    """
    text = _text_layout(objective, sample_BT)
    length = tokens_BT.shape[1]
    start = objective.answer_start or 0
    source_BC = jnp.broadcast_to(
        jnp.arange(length, dtype=jnp.int32)[None], tokens_BT.shape
    )
    if objective.shift:
        source_BC = source_columns(text.position_BQ)
    if objective.layout == "in_place":
        seen_BQ, layout = noisy_BT, text
    elif objective.layout == "noisy_first":
        seen_BQ = jnp.concatenate([noisy_BT, tokens_BT], axis=1)
        layout = attention_masks.noisy_first(text)
    else:
        seen_BQ = jnp.concatenate([tokens_BT, noisy_BT[:, start:]], axis=1)
        layout = attention_masks.clean_first(text, start)
        source_BC = source_BC[:, start:] - start + length
    nats_BC = nats_fn(params, seen_BQ, layout, source_BC, tokens_BT[:, start:])
    return jnp.pad(nats_BC, ((0, 0), (start, 0)))


def token_weights(
    objective: Objective,
    corruption: Corruption,
    maskable_BT: jax.Array,
    sample_BT: jax.Array,
) -> jax.Array:
    """What the cross entropy of each token counts.

    Args:
        objective: The objective.
        corruption: The batch as the network sees it.
        maskable_BT: Tokens that may be masked, bool [B, T].
        sample_BT: The sample of each token, int32 [B, T].

    Returns:
        float32 [B, T], 0 where nothing is trained.
    """
    is_masked_BT = corruption.is_masked_BT
    weight_BT = is_masked_BT.astype(jnp.float32)
    if objective.weight == "inverse_ratio":
        # Of a complement the ratio may be 0, where nothing is masked.
        ratio_BT = jnp.where(is_masked_BT, corruption.ratio_BT, 1)
        weight_BT = weight_BT / ratio_BT
    elif objective.weight == "cart":
        weight_BT = cart_weights(is_masked_BT, sample_BT, objective.cart_p)
    if (editing := objective.editing) is not None:
        is_replaced_BT = corruption.is_replaced_BT
        is_kept_BT = maskable_BT & ~is_masked_BT & ~is_replaced_BT
        weight_BT = jnp.where(is_replaced_BT, editing.weight, weight_BT)
        weight_BT = jnp.where(is_kept_BT, editing.keep_weight, weight_BT)
    return weight_BT


def divide(
    objective: Objective,
    nats_BT: jax.Array,
    weight_BT: jax.Array,
    maskable_BT: jax.Array,
    sample_BT: jax.Array,
) -> LossSums:
    """Weigh cross entropies, and say what their sum is to be divided by.

    Args:
        objective: The objective.
        nats_BT: Cross entropies [B, T].
        weight_BT: What each counts, [B, T].
        maskable_BT: Tokens that may be masked, bool [B, T].
        sample_BT: The sample of each token, int32 [B, T].

    Returns:
        The sums, in the dtype of `nats_BT`.
    """
    dtype = nats_BT.dtype
    # What has no weight may be anything, even infinite.
    nats_BT = jnp.where(weight_BT > 0, nats_BT, 0) * weight_BT.astype(dtype)
    count_BT = {
        "tokens": sample_BT != PADDING,
        "answer_tokens": maskable_BT,
        "trained": weight_BT > 0,
    }.get(objective.normalise)
    if count_BT is not None:
        return LossSums(jnp.sum(nats_BT), jnp.sum(count_BT.astype(dtype)))
    # A token is one part in the length of its answer, so that samples count alike.
    length_BT = sum_over_runs(maskable_BT.astype(dtype), run_starts(sample_BT))
    length_BT = jnp.maximum(length_BT, 1)
    samples = jnp.sum(maskable_BT.astype(dtype) / length_BT)
    if objective.normalise == "answer_columns":
        columns = nats_BT.shape[1] - (objective.answer_start or 0)
        return LossSums(jnp.sum(nats_BT) / columns, samples)
    return LossSums(jnp.sum(nats_BT / length_BT), samples)


def cart_weights(is_masked_BT: jax.Array, sample_BT: jax.Array, p: float) -> jax.Array:
    """Weigh masked tokens by the text that is near them.

    w_i = 1/2 sum over tokens j of its sample that are not masked, j != i, of
    p (1 - p)^(|i - j| - 1).

    Args:
        is_masked_BT: bool [B, T].
        sample_BT: The sample of each token, int32 [B, T].
        p: Parameter of the geometric distribution, in (0, 1].

    Returns:
        float32 [B, T], 0 where nothing is masked.

    Example:
        >>> masked = jnp.array([[False, True, True]])
        >>> cart_weights(masked, jnp.zeros((1, 3), jnp.int32), 0.5).tolist()
        [[0.0, 0.25, 0.125]]

    Source: CART of Dream, arXiv 2508.15487 (`context_adaptive_reweight` in
    src/trainer/fsdp_sft_trainer.py). dllm's `cart_weight` counts distances from 2, so
    that neighbours weigh nothing there.
    """
    visible_BT = (~is_masked_BT).astype(jnp.float32)

    def from_the_left(visible_BT, sample_BT):
        # s_i = (1 - p) s_{i-1} + p visible_{i-1}, from 0 in each sample: affine maps,
        # which compose in any grouping.
        column_T = jnp.arange(sample_BT.shape[1], dtype=jnp.int32)
        is_first_BT = run_starts(sample_BT) == column_T[None]
        before_BT = jnp.pad(visible_BT, ((0, 0), (1, 0)))[:, :-1]
        factor_BT = jnp.where(is_first_BT, 0, jnp.float32(1 - p))
        added_BT = jnp.where(is_first_BT, 0, p * before_BT)

        def compose(first, second):
            return first[0] * second[0], second[0] * first[1] + second[1]

        return jax.lax.associative_scan(compose, (factor_BT, added_BT), axis=1)[1]

    left_BT = from_the_left(visible_BT, sample_BT)
    right_BT = from_the_left(visible_BT[:, ::-1], sample_BT[:, ::-1])[:, ::-1]
    return jnp.where(is_masked_BT, (left_BT + right_BT) / 2, 0)


def _text_layout(objective: Objective, sample_BT: jax.Array) -> Layout:
    """The layout of the text by itself."""
    if objective.block_length is None:
        return attention_masks.full(sample_BT)
    return attention_masks.block_causal(
        sample_BT, objective.block_length, objective.answer_start
    )


def _repeat(array_BT: jax.Array, corruption: Corruption) -> jax.Array:
    """Repeat the rows of a batch for each of its views."""
    return jnp.tile(array_BT, (len(corruption.noisy_BT) // len(array_BT), 1))
