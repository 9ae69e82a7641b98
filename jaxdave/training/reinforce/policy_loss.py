"""The clipped policy loss, with the KL divergence to a reference.

Pure functions of log-probability arrays, whichever estimate they come from. Tokens that
do not count (padding, tokens that a policy has filled in and that have no
log-probability) are masked, and may be NaN.

Axes: B answers, T positions.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

RatioLevel = Literal["token", "sequence", "sequence_mean"]
Reduction = Literal["token", "sequence", "sum"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """How the loss is formed.

    Attributes:
        ratio: What the ratio of new to old policy is of: "token" (PPO, GRPO, TraceRL),
            "sequence" (its product over the answer: the exact importance weight), or
            "sequence_mean" (the geometric mean, which GDPO and GSPO clip).
        reduction: How the terms of the tokens are averaged: "token" (all tokens of the
            batch count the same), "sequence" (all answers count the same), or "sum"
            (added within an answer, so that the gradient is that of the answers'
            probabilities).
        clip_low: The ratio is clipped at 1 - clip_low, in [0, 1].
        clip_high: The ratio is clipped at 1 + clip_high, at least 0.
        kl_weight: Weight of the divergence from the reference, at least 0.

    Source: PPO, arXiv 1707.06347; GRPO, arXiv 2402.03300; separate bounds and the
    mean over tokens: DAPO, arXiv 2503.14476; the defaults are TraceRL's (arXiv
    2509.06949, configs/rl_sdar.yaml: 0.2 and 0.01).
    """

    ratio: RatioLevel = "token"
    reduction: Reduction = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.01

    def __post_init__(self):
        """Refuse what is no loss."""
        levels = ("token", "sequence", "sequence_mean")
        if self.ratio not in levels:
            raise ValueError(f"ratio={self.ratio!r} must be one of {levels}")
        reductions = ("token", "sequence", "sum")
        if self.reduction not in reductions:
            raise ValueError(
                f"reduction={self.reduction!r} must be one of {reductions}"
            )
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low={self.clip_low} must be from 0 to 1")
        for name in ("clip_high", "kl_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")


class PolicyLoss(NamedTuple):
    """The loss and what it is made of, float32 scalars.

    Attributes:
        loss: To be minimised: surrogate and weighted divergence.
        surrogate: The clipped part, negated.
        kl: The divergence from the reference, 0 without one.
        clipped: The share of terms that the clip holds, of those that count.
    """

    loss: jax.Array
    surrogate: jax.Array
    kl: jax.Array
    clipped: jax.Array


def clipped_objective(
    log_ratio: jax.Array, advantage: jax.Array, clip_low: float, clip_high: float
) -> jax.Array:
    """Compute min(ratio A, clip(ratio) A), to be maximised.

    Args:
        log_ratio: log of new to old probability, float of any shape.
        advantage: Of the same shape.
        clip_low: As in `PolicyLossConfig`.
        clip_high: As in `PolicyLossConfig`.

    Returns:
        float of that shape.

    Example:
        >>> ratio, advantage = jnp.array([2.0, 2.0]), jnp.array([1.0, -1.0])
        >>> clipped_objective(jnp.log(ratio), advantage, 0.2, 0.2)
        Array([ 1.2, -2. ], dtype=float32)

    Source: PPO, arXiv 1707.06347, equation 7.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return jnp.minimum(ratio * advantage, clipped * advantage)


def k3_divergence(log_prob: jax.Array, reference: jax.Array) -> jax.Array:
    """Estimate the KL divergence from a reference, from samples of the policy.

    exp(d) - d - 1 with d = reference - log_prob: unbiased, and never negative. Unbiased
    as a value, for samples of the policy itself; its gradient is not that of the
    divergence.

    Args:
        log_prob: Log-probabilities of samples, float of any shape.
        reference: The reference's, of the same shape.

    Returns:
        float of that shape, at least 0.

    Source: J. Schulman, Approximating KL divergence (2020); GRPO, arXiv 2402.03300,
    equation 4.
    """
    difference = reference - log_prob
    return jnp.expm1(difference) - difference


def policy_loss(
    log_probs_BT: jax.Array,
    old_BT: jax.Array,
    advantages_B: jax.Array,
    mask_BT: jax.Array,
    config: PolicyLossConfig,
    *,
    reference_BT: jax.Array | None = None,
) -> PolicyLoss:
    """Compute the clipped loss of a batch of answers.

    Sequence-level estimates (an ELBO) come as arrays with one column; "sequence_mean"
    needs their lengths, so divide both by them first.

    Args:
        log_probs_BT: Under the parameters that are trained, float32 [B, T].
        old_BT: Under those that have sampled, as the decoder has recorded them, float32
            [B, T].
        advantages_B: Of the answers, float32 [B].
        mask_BT: True where a token counts, bool [B, T].
        config: How the loss is formed.
        reference_BT: Under the reference, float32 [B, T]; None: there is none, and no
            divergence.

    Returns:
        The loss and its parts. An answer without a token that counts adds nothing.
    """
    log_probs_BT = jnp.where(mask_BT, log_probs_BT, 0.0)
    log_ratio_BT = log_probs_BT - jnp.where(mask_BT, old_BT, 0.0)
    if config.ratio == "token":
        term_mask = mask_BT
        log_ratio = log_ratio_BT
    else:
        term_mask = jnp.any(mask_BT, axis=1, keepdims=True)
        log_ratio = jnp.sum(log_ratio_BT, axis=1, keepdims=True)
        if config.ratio == "sequence_mean":
            log_ratio = log_ratio / jnp.maximum(_count(mask_BT, 1), 1.0)
    advantage = jnp.broadcast_to(advantages_B[:, None], log_ratio.shape)
    objective = clipped_objective(
        log_ratio, advantage, config.clip_low, config.clip_high
    )
    ratio = jnp.exp(log_ratio)
    is_high = (advantage > 0) & (ratio > 1.0 + config.clip_high)
    is_low = (advantage < 0) & (ratio < 1.0 - config.clip_low)
    surrogate = -reduce_terms(objective, term_mask, config.reduction)
    kl = jnp.zeros(())
    if reference_BT is not None:
        reference_BT = jnp.where(mask_BT, reference_BT, 0.0)
        kl_BT = k3_divergence(log_probs_BT, reference_BT)
        kl = reduce_terms(kl_BT, mask_BT, config.reduction)
    return PolicyLoss(
        loss=surrogate + config.kl_weight * kl,
        surrogate=surrogate,
        kl=kl,
        clipped=reduce_terms(
            (is_high | is_low).astype(jnp.float32), term_mask, "token"
        ),
    )


def reduce_terms(
    terms_BT: jax.Array, mask_BT: jax.Array, reduction: Reduction
) -> jax.Array:
    """Average terms over a batch.

    Args:
        terms_BT: Terms, finite where they count, float32 [B, T].
        mask_BT: True where a term counts, bool [B, T].
        reduction: As in `PolicyLossConfig`.

    Returns:
        float32 scalar; 0 if nothing counts. "sequence" and "sum" are means over all B
        answers, those without a term that counts included.
    """
    terms_BT = jnp.where(mask_BT, terms_BT, 0.0)
    if reduction == "token":
        return jnp.sum(terms_BT) / jnp.maximum(jnp.sum(_count(mask_BT, 1)), 1.0)
    sums_B1 = jnp.sum(terms_BT, axis=1, keepdims=True)
    if reduction == "sequence":
        sums_B1 = sums_B1 / jnp.maximum(_count(mask_BT, 1), 1.0)
    return jnp.mean(sums_B1)


def correct_nll(
    log_probs_BT: jax.Array, is_correct_B: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """Compute the mean negative log-likelihood of the tokens of right answers.

    It keeps the policy near answers that were right while speed is rewarded.

    Args:
        log_probs_BT: Under the parameters that are trained, float32 [B, T].
        is_correct_B: True where an answer is right, bool [B].
        mask_BT: True where a token counts, bool [B, T].

    Returns:
        Nats per token, float32 scalar; 0 if no answer is right.

    Source: LightningRL, arXiv 2603.13319 (its weight there: 0.1).
    """
    return -reduce_terms(log_probs_BT, mask_BT & is_correct_B[:, None], "token")


def _count(mask_BT: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(mask_BT.astype(jnp.float32), axis=axis, keepdims=True)
