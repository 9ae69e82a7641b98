"""Log-probabilities of answers, from several maskings of them.

Reinforcement needs the log-probability of each token of a sampled answer. A
masked-diffusion model has none of its own; it has one for each way to mask the rest.
So an answer is masked in several ways, its views, and each token's log-probability is
a weighted sum over them:

* `trajectory_views`: the states in which the answer's tokens were committed. Their sum
  is the log-probability of what the decoder sampled, given the order (TraceRL).
* `coupled_views`: all masked, a random view, and its complement (DiffuCoder). Drawn
  with one key, the estimates under two sets of parameters come from the same masks.

Axes: B rows, T positions, N views of each row.

Source: TraceRL and dLLM-RL, arXiv 2509.06949 (train/rl_sdar.py; method "trace" of
train/sft_sdar.py); coupled-GRPO of DiffuCoder, arXiv 2506.20639
(src/open_r1/coupled_grpo.py).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.training.data.token_batch import TokenBatch
from jaxdave.training.objective.masking import Corruption, Masking
from jaxdave.training.objective.objective_loss import corrupt, maskable, token_nats
from jaxdave.training.objective.objectives import Objective
from jaxdave.training.objective.sequence_model import NatsFn


def view_log_probs(
    objective: Objective,
    nats_fn: NatsFn,
    params: Any,
    batch: TokenBatch,
    noisy_BT: jax.Array,
    weight_BT: jax.Array,
) -> jax.Array:
    """Add up log-probabilities over the views of a batch.

    Args:
        objective: Its layout, blocks and shift.
        nats_fn: The network (`sequence_model.transformer_nats`).
        params: Its parameters.
        batch: Clean text.
        noisy_BT: Tokens of the views, int32 [N B, T]: the first of all rows, then the
            second of all rows, and so on.
        weight_BT: What the log-probability of each token counts, float32 [N B, T].

    Returns:
        Nats [B, T] in the network's dtype, at most 0; 0 where nothing counts.
    """
    rows, length = batch.tokens_BT.shape
    views = len(noisy_BT) // rows
    nats_BT = token_nats(
        objective,
        nats_fn,
        params,
        jnp.tile(jnp.asarray(batch.tokens_BT), (views, 1)),
        jnp.tile(jnp.asarray(batch.sample_BT), (views, 1)),
        noisy_BT,
    )
    # What does not count may be anything, even infinite.
    weighted_BT = jnp.where(weight_BT > 0, nats_BT, 0) * weight_BT.astype(nats_BT.dtype)
    return -jnp.sum(weighted_BT.reshape(views, rows, length), axis=0)


def trajectory_views(
    objective: Objective,
    batch: TokenBatch,
    step_BT: jax.Array,
    *,
    steps: int,
    mask_id: int,
) -> tuple[jax.Array, jax.Array]:
    """The states in which the tokens of answers were committed.

    Args:
        objective: Its layout and blocks. With blocks beside clean text a view shows the
            same step of all blocks, as they do not see each other's masks.
        batch: Clean text.
        step_BT: The step at which each token was committed, int32 [B, T], from 0:
            counted within its block where the layout is "noisy_first" or "clean_first",
            otherwise within its sample.
        steps: How many there are at most, N. Tokens of later steps count nothing.
        mask_id: The id that stands for a masked token.

    Returns:
        Tokens of the views, int32 [N B, T]; and the weight of each token in each view,
        float32 [N B, T]: 1 in the one in which it was committed.

    Example:
        >>> from jaxdave.training.data.token_batch import pack_samples
        >>> batch = pack_samples([[([1], [2, 3])]], length=3, pad_id=0)
        >>> step = jnp.array([[0, 1, 0]])
        >>> views, weight = trajectory_views(
        ...     Objective(), batch, step, steps=2, mask_id=9
        ... )
        >>> views.tolist(), weight.tolist()
        ([[1, 9, 9], [1, 9, 3]], [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    """
    maskable_BT = maskable(objective, batch)
    tokens_BT = jnp.asarray(batch.tokens_BT)
    step_N11 = jnp.arange(steps, dtype=jnp.int32)[:, None, None]
    masked_NBT = maskable_BT[None] & (step_BT[None] >= step_N11)
    weight_NBT = (maskable_BT[None] & (step_BT[None] == step_N11)).astype(jnp.float32)
    noisy_NBT = jnp.where(masked_NBT, mask_id, tokens_BT[None])
    shape = (steps * len(tokens_BT), tokens_BT.shape[1])
    return noisy_NBT.reshape(shape), weight_NBT.reshape(shape)


def diffucoder(shift: bool = True) -> Objective:
    """The settings of DiffuCoder's views: a ratio in (.2, .8), and its complement.

    Args:
        shift: True for DiffuCoder and Dream, False for LLaDA.
    """
    masking = Masking(low=0.2, high=0.8, complementary=True)
    return Objective(masking=masking, shift=shift)


def coupled_views(
    objective: Objective, batch: TokenBatch, key: jax.Array, *, mask_id: int
) -> tuple[jax.Array, jax.Array]:
    """Mask answers in three ways: all of it, some of it, and the rest of it.

    The weights are 1, 1 / p and 1 / (1 - p), halved, where a token is masked. A token's
    weights add up to 3 / 2 on average, not to 1: the published estimate is that much
    larger than a log-probability.

    Args:
        objective: `diffucoder()`, or another one with complementary masks.
        batch: Clean text.
        key: Of the draw; the same one under old and new parameters.
        mask_id: The id that stands for a masked token.

    Returns:
        Tokens of the three views, int32 [3 B, T], and weights, float32 [3 B, T].

    Raises:
        ValueError: The objective's masks are not complementary, or not alone.
    """
    if not objective.masking.complementary or objective.editing is not None:
        raise ValueError(
            f"complementary={objective.masking.complementary} with editing="
            f"{objective.editing}: coupled views need complementary masks and no "
            "replaced tokens; use answer_views.diffucoder()"
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
    return views.noisy_BT, jnp.where(views.is_masked_BT, 0.5 / ratio_BT, 0)
