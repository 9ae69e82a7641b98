"""Coupled views: log-probabilities of an answer from three maskings of it.

Reinforcement needs the log-probability of each token of a sampled answer, which a
masked-diffusion model does not have. DiffuCoder estimates it from one view in which the
whole answer is masked, and from a random view and its complement, in which every token
is masked exactly once. Drawn with one key, the estimates under two sets of parameters
come from the same masks, so that their difference is one of the parameters.

Axes: B rows, T positions.

Source: Coupled-GRPO of DiffuCoder, arXiv 2506.20639 (src/open_r1/coupled_grpo.py).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.training.masking import Corruption, Masking
from jaxdave.training.objective_loss import (
    LayoutLogitsFn,
    corrupt,
    maskable,
    token_nats,
)
from jaxdave.training.objectives import Objective
from jaxdave.training.token_batch import TokenBatch


def diffucoder(shift: bool = True) -> Objective:
    """The settings of DiffuCoder's views: a ratio in (.2, .8), and its complement.

    Args:
        shift: True for DiffuCoder and Dream, False for LLaDA.
    """
    masking = Masking(low=0.2, high=0.8, complementary=True)
    return Objective(masking=masking, shift=shift)


def coupled_views(
    objective: Objective, batch: TokenBatch, key: jax.Array, *, mask_id: int
) -> tuple[Corruption, jax.Array]:
    """Mask a batch in three ways.

    Args:
        objective: `diffucoder()`, or another one with complementary masks.
        batch: Clean text.
        key: Of the draw.
        mask_id: The id that stands for a masked token.

    Returns:
        The corrupted batch, 3 B rows: all answers masked, the random view, its
        complement; and the weight of each token in each view, float32 [3 B, T]: 1, 1 /
        p, 1 / (1 - p) where it is masked and 0 elsewhere.

    Raises:
        ValueError: The objective's masks are not complementary, or not alone.
    """
    if not objective.masking.complementary or objective.editing is not None:
        raise ValueError(
            f"complementary={objective.masking.complementary} with editing="
            f"{objective.editing}: coupled views need complementary masks and no "
            "replaced tokens; use coupled_views.diffucoder()"
        )
    pair = corrupt(objective, batch, key, vocab_size=mask_id + 1, mask_id=mask_id)
    maskable_BT = maskable(objective, batch)
    full = Corruption(
        noisy_BT=jnp.where(maskable_BT, mask_id, jnp.asarray(batch.tokens_BT)),
        is_masked_BT=maskable_BT,
        is_replaced_BT=jnp.zeros_like(maskable_BT),
        ratio_BT=jnp.ones(maskable_BT.shape, jnp.float32),
    )
    views = Corruption(*map(jnp.concatenate, zip(full, pair, strict=True)))
    ratio_BT = jnp.where(views.is_masked_BT, views.ratio_BT, 1)
    return views, jnp.where(views.is_masked_BT, 1 / ratio_BT, 0)


def coupled_log_probs(
    objective: Objective,
    logits_fn: LayoutLogitsFn,
    params: Any,
    batch: TokenBatch,
    key: jax.Array,
    *,
    mask_id: int,
) -> jax.Array:
    """Estimate the log-probability of each token of the answers.

    The estimate is (log p of the full view + weighted log p of the view in which the
    token is masked) / 2. The weights of a token add up to 3 / 2 on average, not to 1:
    the published estimate is that much larger than a log-probability.

    Args:
        objective: `diffucoder()`, or another one with complementary masks.
        logits_fn: The network (`objective_loss.transformer_logits`).
        params: Its parameters.
        batch: Clean text.
        key: Of the masks; the same one under old and new parameters.
        mask_id: The id that stands for a masked token.

    Returns:
        Nats [B, T] in the dtype of the logits, at most 0; 0 outside answers.
    """
    views, weight_BT = coupled_views(objective, batch, key, mask_id=mask_id)
    nats_BT = token_nats(
        objective,
        logits_fn,
        params,
        jnp.tile(jnp.asarray(batch.tokens_BT), (3, 1)),
        jnp.tile(jnp.asarray(batch.sample_BT), (3, 1)),
        views.noisy_BT,
    )
    weighted_BT = jnp.where(weight_BT > 0, nats_BT * weight_BT.astype(nats_BT.dtype), 0)
    full_BT, random_BT, complement_BT = jnp.split(weighted_BT, 3)
    return -(full_BT + random_BT + complement_BT) / 2
