"""Certainty forcing (dParallel): be sure at once of what is right already.

On states of the trajectory the loss is the cross entropy of the masked tokens plus the
entropy, sharpened by a temperature, of those predictions that are right:

    mean over masked of CE + weight * mean over masked and right of H(softmax(z / T))

Axes: B rows, N copies of each answer, A columns of answers, V rows of the vocabulary.

Source: dParallel, arXiv 2509.26488; czg1225/dParallel LLaDA/llada_train.py: T = 0.5,
weight 2, masks of half of the active block and their complement. Its texts are the
model's own answers. LLaDA2.0's confidence-aware parallel training (CAP) is the same
loss. Deviations: the mean over the copies, of which dParallel has two and adds them up;
optionally, blocks after the active one are trained too (`later_weight`), since a
decoder drafts them from the same call, and an order loss is added (`order_weight`;
`order.order_nats`), for decoders that commit a fixed number of tokens a step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.training.distil.order import order_nats
from jaxdave.training.distil.state_logits import (
    StateLogitsFn,
    check_model,
    state_logits,
)
from jaxdave.training.distil.states import (
    States,
    StateSampling,
    TextBatch,
    draw_states,
    recorded_lateness,
)
from jaxdave.training.objective.sequence_model import cross_entropy, transformer_logits

Metrics = dict[str, jax.Array]
"""What a loss is made of, scalars by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertaintyForcing:
    """The settings of certainty forcing.

    Attributes:
        sampling: How states are drawn; dParallel's are `complementary` halves.
        temperature: Of the softmax whose entropy is lowered; below 1 it is sharper.
        weight: Of the entropies, beside cross entropies of weight 1.
        later_weight: Of a token in a block after the active one, beside 1; 0 in the
            paper.
        order_weight: Of the order loss; 0 in the paper. With it batches are of
            `states.RecordedBatch`.

    Raises:
        ValueError: A number is out of range.
    """

    sampling: StateSampling
    temperature: float = 0.5
    weight: float = 2.0
    later_weight: float = 0.0
    order_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be above 0; dParallel's is 0.5"
            )
        for name in ("weight", "later_weight", "order_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be 0 or more; use e.g. 1"
                )


def make_certainty_loss(
    config: ModelConfig, settings: CertaintyForcing
) -> Callable[[Params, TextBatch, jax.Array], tuple[jax.Array, Metrics]]:
    """Make the loss of a model.

    Args:
        config: The model.
        settings: The settings.

    Returns:
        A pure function (params, batch, key) -> (loss in nats, its parts). The key draws
        the states.

    Raises:
        ValueError: The model does not decode as states are drawn.

    Example:
        >>> from jaxdave.models import transformer
        >>> from jaxdave.models.presets import preset
        >>> from jaxdave.training.distil.aligned_batch import align_blocks
        >>> config = preset("sdar-1m", num_layers=1)
        >>> sampling = StateSampling(
        ...     answer_start=4, block_length=4, is_causal=True, complementary=True
        ... )
        >>> batch = align_blocks(
        ...     [([1, 2], [3, 4])],
        ...     prompt_columns=4,
        ...     answer_columns=4,
        ...     block_length=4,
        ...     pad_id=0,
        ... )
        >>> loss = make_certainty_loss(config, CertaintyForcing(sampling=sampling))
        >>> value, _ = loss(transformer.init(config, 0), batch, jax.random.key(0))
        >>> bool(value > 0)
        True
    """
    check_model(settings.sampling, config)
    logits_fn = state_logits(
        settings.sampling, transformer_logits(config), config.logits_shift != "none"
    )

    def loss(params: Params, batch: TextBatch, key: jax.Array):
        states = draw_states(key, settings.sampling, batch, mask_id=config.mask_id)
        return certainty_loss(settings, logits_fn, params, batch, states)

    return loss


def certainty_loss(
    settings: CertaintyForcing,
    logits_fn: StateLogitsFn,
    params: Any,
    batch: TextBatch,
    states: States,
) -> tuple[jax.Array, Metrics]:
    """The loss over states that are drawn already.

    Args:
        settings: The settings.
        logits_fn: The network.
        params: Its parameters.
        batch: Clean text.
        states: The states.

    Returns:
        The loss, and its parts: "cross_entropy", "entropy", "right", the share of the
        trained tokens that is predicted right, and, where it counts, "order".

    Raises:
        ValueError: An order loss is asked for and the batch has no steps.
    """
    logits_BNAV = logits_fn(params, batch, states)
    start = settings.sampling.answer_start
    tokens_BA = jnp.asarray(batch.tokens_BT)[:, start:]
    tokens_BNA = jnp.broadcast_to(tokens_BA[:, None], states.noisy_BNA.shape)
    weight_BNA = state_weights(states, settings.later_weight, logits_BNAV.dtype)
    # Which predictions are right is a constant of the step.
    predicted_BNA = jnp.argmax(logits_BNAV, axis=-1).astype(tokens_BNA.dtype)
    is_right_BNA = predicted_BNA == tokens_BNA
    right_BNA = is_right_BNA.astype(weight_BNA.dtype)
    nats = mean_of_copies(cross_entropy(logits_BNAV, tokens_BNA), weight_BNA)
    entropy = mean_of_copies(
        softmax_entropy(logits_BNAV / settings.temperature), weight_BNA * right_BNA
    )
    share = mean_of_copies(right_BNA, weight_BNA)
    parts = {"cross_entropy": nats, "entropy": entropy, "right": share}
    value = nats + settings.weight * entropy
    if settings.order_weight:
        lateness_BA, _ = recorded_lateness(settings.sampling, batch)
        block_length = settings.sampling.block_length
        order_BNA, is_ranked_BNA = order_nats(
            logits_BNAV, states, lateness_BA, block_length
        )
        order = mean_of_copies(order_BNA, is_ranked_BNA.astype(order_BNA.dtype))
        value, parts["order"] = value + settings.order_weight * order, order
    return value, parts


def softmax_entropy(logits_BNAV: jax.Array) -> jax.Array:
    """The entropy of the softmax of logits.

    Args:
        logits_BNAV: Logits [..., V]; none of minus infinity.

    Returns:
        Nats [...].
    """
    log_p = jax.nn.log_softmax(logits_BNAV, axis=-1)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def state_weights(states: States, later_weight: float, dtype: Any) -> jax.Array:
    """What each token of states counts.

    Args:
        states: The states.
        later_weight: Of those after the active block.
        dtype: Of the result.

    Returns:
        [B, N, A]: 1 where masked in an active block, 0 where not masked.
    """
    weight_BNA = jnp.where(states.is_later_BNA, later_weight, 1.0)
    return jnp.where(states.is_masked_BNA, weight_BNA, 0.0).astype(dtype)


def mean_of_copies(value_BNA: jax.Array, weight_BNA: jax.Array) -> jax.Array:
    """The weighted mean over the tokens of each copy, then the mean over copies.

    Args:
        value_BNA: Numbers [B, N, A]; any at all where nothing counts.
        weight_BNA: What each counts, 0 or more.

    Returns:
        A scalar; a copy without anything that counts has the mean 0.
    """
    value_BNA = jnp.where(weight_BNA > 0, value_BNA, 0)
    total_N = jnp.sum(value_BNA * weight_BNA, axis=(0, 2))
    count_N = jnp.sum(weight_BNA, axis=(0, 2))
    return jnp.mean(total_N / jnp.where(count_N > 0, count_N, 1))
