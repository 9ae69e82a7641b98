"""Which log-probability of an answer is reinforced, and the loss that goes with it.

    method       | of                               | ratio              | source
    -------------|----------------------------------|--------------------|----------
    `trajectory` | tokens, in the recorded states   | of tokens          | TraceRL
    `selection`  | the same, and which came first   | of tokens          | `selection`
    `chain`      | tokens, each given those left    | of tokens          | JustGRPO
    `gdpo`       | bound by quadrature, per token   | of answers         | GDPO
    `bgpo`       | bound by drawn masks             | bounded, no clip   | BGPO

`trajectory` is what the decoder has recorded, on policy. It is exact for what was
sampled where the order does not depend on the tokens drawn (`left_to_right`); for the
static rule at a temperature `selection` is, which knows the rule. A diffusion model has
no likelihood of a text that does not depend on the order; the others are the likelihood
in one order, and bounds of the mean over all orders.

Axes: B answers, R positions of their windows, X what an estimate has of each answer:
positions of the window, or masks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.training.reinforce import elbo
from jaxdave.training.reinforce.answer_batch import AnswerBatch
from jaxdave.training.reinforce.answer_logits import answer_logits
from jaxdave.training.reinforce.log_probs import trajectory_log_probs
from jaxdave.training.reinforce.policy_loss import (
    PolicyLoss,
    PolicyLossConfig,
    k3_divergence,
    policy_loss,
    reduce_terms,
)
from jaxdave.training.reinforce.ratio_bounds import bgpo_objective
from jaxdave.training.reinforce.selection import selection_log_probs

Method = Literal["trajectory", "selection", "chain", "gdpo", "bgpo"]
METHODS = ("trajectory", "selection", "chain", "gdpo", "bgpo")
EstimateFn = Callable[[Params, AnswerBatch, int], jax.Array]
"""(params, answers, number of states) -> float32 [B, X]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """How log-probabilities are estimated.

    Attributes:
        method: Which estimate (see this module).
        num_masks: Masks of a bound: the nodes of GDPO, the draws of BGPO.
        shrink: So many recorded steps are scored as one, in the state before the first:
            cheaper for full attention, and no longer what was recorded.
        states_per_call: States of an answer that are in memory at once
            (`log_probs.token_log_probs`); None: all.

    Raises:
        ValueError: A value is out of its range.
    """

    method: Method = "trajectory"
    num_masks: int = 2
    shrink: int = 1
    states_per_call: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} must be one of {METHODS}")
        for name in ("num_masks", "shrink", "states_per_call"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.shrink > 1 and self.method != "trajectory":
            raise ValueError(
                f"shrink={self.shrink} merges recorded steps, which method="
                f"{self.method!r} does not look at; leave it out"
            )

    @property
    def is_of_tokens(self) -> bool:
        """An estimate has one number for each token."""
        return self.method in ("trajectory", "selection", "chain")

    @property
    def is_recorded(self) -> bool:
        """The decoder has recorded it of the policy that it sampled from."""
        return self.method == "trajectory" and self.shrink == 1


def check_loss(estimate: EstimateConfig, loss: PolicyLossConfig) -> None:
    """Check that a loss fits an estimate.

    Args:
        estimate: The estimate.
        loss: The loss.

    Raises:
        ValueError: Ratios of tokens are asked of an estimate that has none.
    """
    if not estimate.is_of_tokens and loss.ratio != "sequence":
        raise ValueError(
            f"ratio={loss.ratio!r} with method={estimate.method!r}: a bound is of a "
            "whole answer; use ratio='sequence'"
        )


def make_estimate(
    config: ModelConfig, estimate: EstimateConfig, temperature: float
) -> EstimateFn:
    """Make the function from parameters and answers to their log-probabilities.

    Args:
        config: The model.
        estimate: Which estimate.
        temperature: That tokens were drawn at.

    Returns:
        The function: of tokens float32 [B, R], 0 where nothing counts; of bounds what
        each mask says, float32 [B, num_masks] (`elbo.elbo_terms`). Its number of states
        must be known when it is compiled.
    """
    logits_with = answer_logits(config)
    options = {
        "mask_id": config.mask_id,
        "temperature": temperature,
        "states_per_call": estimate.states_per_call,
    }

    def of_batch(params: Params, answers: AnswerBatch, states: int) -> jax.Array:
        size = answers.steps_BR.shape[1]

        def of_answer(answer: Any) -> jax.Array:  # an `AnswerBatch` without axis B
            tokens_T, start = jnp.asarray(answer.tokens_BT), answer.start_B
            window_R = jax.lax.dynamic_slice_in_dim(tokens_T, start, size)
            logits_of = logits_with(params, tokens_T, answer.valid_BT, start, size)
            if estimate.method == "selection":
                log_probs_R = selection_log_probs(
                    logits_of,
                    window_R,
                    answer.steps_BR,
                    config.block_length,
                    mask_id=config.mask_id,
                    temperature=temperature,
                )
                return jnp.where(answer.is_counted_BR, log_probs_R, 0.0)
            if estimate.is_of_tokens:
                log_probs_R = trajectory_log_probs(
                    logits_of, window_R, answer.steps_BR, states, **options
                )
                return jnp.where(answer.is_counted_BR, log_probs_R, 0.0)
            masks = _draw_masks(estimate, answer.key_B2, answer.is_counted_BR)
            return elbo.elbo_terms(logits_of, window_R, masks, **options)

        return jax.vmap(of_answer)(jax.tree.map(jnp.asarray, answers))

    return of_batch


def estimate_loss(
    estimate: EstimateConfig,
    loss: PolicyLossConfig,
    new_BX: jax.Array,
    old_BX: jax.Array,
    advantages_B: jax.Array,
    is_counted_BR: jax.Array,
    *,
    reference_BX: jax.Array | None = None,
) -> PolicyLoss:
    """Compute the loss of answers.

    Args:
        estimate: Which estimate.
        loss: How its ratios become a loss. BGPO's is not clipped: the bound itself
            grows less than the ratio.
        new_BX: Under the parameters that are trained, float32 [B, X].
        old_BX: Under those that have sampled, float32 [B, X].
        advantages_B: Of the answers, float32 [B].
        is_counted_BR: True at tokens that count, bool [B, R].
        reference_BX: Under the reference, float32 [B, X]; None: no divergence.

    Returns:
        The loss and its parts. Divergences of bounds are of their means per token.
    """
    if estimate.is_of_tokens:
        return policy_loss(
            new_BX,
            old_BX,
            advantages_B,
            is_counted_BR,
            loss,
            reference_BT=reference_BX,
        )
    share_N = _shares(estimate)
    length_B1 = jnp.sum(is_counted_BR.astype(jnp.float32), axis=1, keepdims=True)
    has_tokens_B1 = length_B1 > 0

    def per_token(terms_BN: jax.Array) -> jax.Array:
        bound_B1 = jnp.sum(share_N[None] * terms_BN, axis=1, keepdims=True)
        return bound_B1 / jnp.maximum(length_B1, 1.0)

    reference_B1 = None if reference_BX is None else per_token(reference_BX)
    if estimate.method == "gdpo":
        return policy_loss(
            per_token(new_BX),
            per_token(old_BX),
            advantages_B,
            has_tokens_B1,
            loss,
            reference_BT=reference_B1,
        )
    objective_B = jax.vmap(bgpo_objective, (0, 0, None, 0))(
        new_BX, old_BX, share_N, advantages_B
    )
    surrogate = -reduce_terms(objective_B[:, None], has_tokens_B1, loss.reduction)
    kl = jnp.zeros(())
    if reference_B1 is not None:
        kl_B1 = k3_divergence(per_token(new_BX), reference_B1)
        kl = reduce_terms(kl_B1, has_tokens_B1, loss.reduction)
    total = surrogate + loss.kl_weight * kl
    return PolicyLoss(loss=total, surrogate=surrogate, kl=kl, clipped=jnp.zeros(()))


def _draw_masks(
    estimate: EstimateConfig, key_2: jax.Array, is_answer_R: jax.Array
) -> elbo.MaskSamples:
    key = jax.random.wrap_key_data(key_2)
    if estimate.method == "gdpo":
        return elbo.quadrature_masks(key, is_answer_R, estimate.num_masks, 1)
    return elbo.random_masks(key, is_answer_R, estimate.num_masks)


def _shares(estimate: EstimateConfig) -> jax.Array:
    """How much each mask counts: the same for all answers."""
    nothing = jnp.zeros(1, bool)
    return _draw_masks(estimate, jnp.zeros(2, jnp.uint32), nothing).share_N
