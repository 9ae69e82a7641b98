"""Discrete-space consistency distillation (CD4LM's DSCD): predict now what comes later.

A student sees a state with many masks, its teacher one of the same text with a part of
those masks, a later state of the trajectory. The student learns the teacher's
distribution, softened by a temperature, and the text itself:

    share T^2 KL(softmax(z_teacher / T) || softmax(z_student / T)) + (1 - share) CE

as means over the tokens that the student has masked. The share of the teacher falls
while training goes on. A prediction that does not change along the trajectory is what a
draft needs to be confirmed.

The teacher's part is a function of its own (`make_consistency_targets`): a teacher may
be the model that training began with, or a moving average of the student.

Axes: B rows, N copies of each answer, A columns of answers, V rows of the vocabulary.

Source: CD4LM, arXiv 2601.02236; yihao-liang/CDLM src/training/consistency_loss.py and
src/data/collator.py: T = 2, share 0.9 falling to 0.5 by a cosine after a tenth of the
steps, student ratio U(0.4, 0.9), teacher ratio clip(student ratio U(0.3, 0.7), 0.1,
0.6). Deviations: masks are drawn token by token with these ratios, not as counts, and
short answers get no rule of their own; both terms are not cut off at 5 nats; under
block-causal attention the teacher sees clean text before each block, as a decoder does
(published for full attention, where what is masked is drawn over the whole answer).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.training.distil.certainty import Metrics, mean_of_copies, state_weights
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
)
from jaxdave.training.sequence_model import cross_entropy, transformer_logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation:
    """The settings of consistency distillation.

    Attributes:
        sampling: How the student's states are drawn; CD4LM's ratios are 0.4 to 0.9.
        temperature: Of both softmaxes, T.
        keep_low: The teacher's ratio is the student's times a number of at least this.
        keep_high: And of at most this.
        teacher_low: The teacher's ratio is never below this.
        teacher_high: Nor above this.
        teach_visible: The student learns the teacher's distribution also where the
            teacher sees the token, as CD4LM's code does. A model that was never trained
            there predicts nothing of use, and the token itself is learnt in any case.
        later_weight: Of a token in a block after the active one, beside 1.

    Raises:
        ValueError: A number is out of range.
    """

    sampling: StateSampling
    temperature: float = 2.0
    keep_low: float = 0.3
    keep_high: float = 0.7
    teacher_low: float = 0.1
    teacher_high: float = 0.6
    teach_visible: bool = False
    later_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be above 0; CD4LM's is 2"
            )
        for low, high in (
            ("keep_low", "keep_high"),
            ("teacher_low", "teacher_high"),
        ):
            if not 0 <= getattr(self, low) <= getattr(self, high) <= 1:
                raise ValueError(
                    f"{low}={getattr(self, low)} and {high}={getattr(self, high)} must "
                    f"satisfy 0 <= {low} <= {high} <= 1"
                )
        if not self.later_weight >= 0:
            raise ValueError(
                f"later_weight={self.later_weight} must be 0 or more; use e.g. 1"
            )


class ConsistencyBatch(NamedTuple):
    """A batch with what the teacher says of it.

    Attributes:
        text: Clean text.
        student: States that the student sees.
        is_taught_BNA: bool, tokens with a distribution of the teacher.
        teacher_BNAV: The teacher's logits.
        share: How much the teacher's distributions count, scalar in 0..1; the text
            itself counts the rest.
    """

    text: TextBatch
    student: States
    is_taught_BNA: jax.Array
    teacher_BNAV: jax.Array
    share: jax.Array | float


def teacher_share(
    step: int, steps: int, *, first: float = 0.9, last: float = 0.5, hold: float = 0.1
) -> float:
    """How much the teacher counts at a step of training.

    Args:
        step: The step, from 0.
        steps: Steps in all.
        first: The share at the beginning.
        last: The share at the end.
        hold: The part of the steps for which it stays what it was at the beginning.

    Returns:
        last + (first - last) (1 + cos(pi u)) / 2, u from 0 to 1 after the hold.

    Example:
        >>> teacher_share(0, 100), round(teacher_share(55, 100), 6)
        (0.9, 0.7)

    Source: CD4LM's `compute_lambda_cosine_schedule`.
    """
    done = (step / steps - hold) / (1 - hold) if hold < 1 else 0.0
    return last + (first - last) * (1 + np.cos(np.pi * max(done, 0.0)).item()) / 2


def later_states(
    key: jax.Array,
    settings: ConsistencyDistillation,
    batch: TextBatch,
    student: States,
) -> States:
    """The states that the teacher sees: with a part of the student's masks.

    Args:
        key: Of the draw of the teacher's ratios, one for each copy.
        settings: The settings.
        batch: Clean text.
        student: The student's states.

    Returns:
        The states. Under block-causal attention each block is the active one of its
        own, behind clean text.
    """
    keep_BN = jax.random.uniform(
        key,
        student.ratio_BN.shape,
        jnp.float32,
        minval=settings.keep_low,
        maxval=settings.keep_high,
    )
    ratio_BN = jnp.clip(
        student.ratio_BN * keep_BN, settings.teacher_low, settings.teacher_high
    )
    is_masked_BNA = student.is_masked_BNA & (student.chance_BNA < ratio_BN[..., None])
    is_shown_BNA = student.is_masked_BNA & ~is_masked_BNA
    start = settings.sampling.answer_start
    tokens_B1A = jnp.asarray(batch.tokens_BT)[:, None, start:]
    columns = student.noisy_BNA.shape[2]
    block_A = jnp.arange(columns, dtype=jnp.int32) // settings.sampling.block_length
    return student._replace(
        noisy_BNA=jnp.where(is_shown_BNA, tokens_B1A, student.noisy_BNA),
        is_masked_BNA=is_masked_BNA,
        is_later_BNA=jnp.zeros_like(is_masked_BNA),
        first_block_BNA=jnp.broadcast_to(block_A, is_masked_BNA.shape),
        ratio_BN=ratio_BN,
    )


def make_consistency_targets(
    config: ModelConfig, settings: ConsistencyDistillation
) -> Callable[[Params, TextBatch, jax.Array, Any], ConsistencyBatch]:
    """Make the function that asks the teacher.

    Args:
        config: The model.
        settings: The settings.

    Returns:
        A pure function (parameters of the teacher, batch, key, share) ->
        `ConsistencyBatch`. The key draws the states of both.

    Raises:
        ValueError: The model does not decode as states are drawn.
    """
    check_model(settings.sampling, config)
    logits_fn = _logits_fn(config, settings)

    def targets(teacher: Params, batch: TextBatch, key: jax.Array, share: Any):
        student_key, teacher_key = jax.random.split(key)
        student = draw_states(
            student_key, settings.sampling, batch, mask_id=config.mask_id
        )
        return ask_teacher(
            settings,
            logits_fn,
            teacher,
            batch,
            student,
            teacher_key,
            share,
        )

    return targets


def ask_teacher(
    settings: ConsistencyDistillation,
    logits_fn: StateLogitsFn,
    teacher: Any,
    batch: TextBatch,
    student: States,
    key: jax.Array,
    share: Any,
) -> ConsistencyBatch:
    """What the teacher says of later states than the student's.

    Args:
        settings: The settings.
        logits_fn: The network.
        teacher: The teacher's parameters.
        batch: Clean text.
        student: The student's states.
        key: Of the draw of the teacher's masks.
        share: How much the teacher is to count.

    Returns:
        The batch, constant under differentiation.
    """
    later = later_states(key, settings, batch, student)
    is_taught_BNA = student.is_masked_BNA
    if not settings.teach_visible:
        is_taught_BNA = later.is_masked_BNA
    teacher_BNAV = jax.lax.stop_gradient(logits_fn(teacher, batch, later))
    return ConsistencyBatch(batch, student, is_taught_BNA, teacher_BNAV, share)


def make_consistency_loss(
    config: ModelConfig, settings: ConsistencyDistillation
) -> Callable[[Params, ConsistencyBatch, jax.Array], tuple[jax.Array, Metrics]]:
    """Make the loss of the student.

    Args:
        config: The model.
        settings: The settings.

    Returns:
        A pure function (params, batch, key) -> (loss in nats, its parts). The key has
        no effect: states are drawn with the targets.

    Raises:
        ValueError: The model does not decode as states are drawn.
    """
    check_model(settings.sampling, config)
    logits_fn = _logits_fn(config, settings)

    def loss(params: Params, batch: ConsistencyBatch, key: jax.Array):
        del key
        return consistency_loss(settings, logits_fn, params, batch)

    return loss


def consistency_loss(
    settings: ConsistencyDistillation,
    logits_fn: StateLogitsFn,
    params: Any,
    batch: ConsistencyBatch,
) -> tuple[jax.Array, Metrics]:
    """The loss of the student beside what its teacher said.

    Args:
        settings: The settings.
        logits_fn: The network.
        params: The student's parameters.
        batch: The batch.

    Returns:
        The loss, and its parts: "consistency" (T^2 KL) and "cross_entropy".
    """
    states = batch.student
    logits_BNAV = logits_fn(params, batch.text, states)
    start = settings.sampling.answer_start
    tokens_BA = jnp.asarray(batch.text.tokens_BT)[:, start:]
    tokens_BNA = jnp.broadcast_to(tokens_BA[:, None], states.noisy_BNA.shape)
    weight_BNA = state_weights(states, settings.later_weight, logits_BNAV.dtype)
    nats = mean_of_copies(cross_entropy(logits_BNAV, tokens_BNA), weight_BNA)
    divergence_BNA = softened_divergence(
        batch.teacher_BNAV, logits_BNAV, settings.temperature
    )
    taught_BNA = weight_BNA * batch.is_taught_BNA.astype(weight_BNA.dtype)
    consistency = mean_of_copies(divergence_BNA, taught_BNA)
    value = batch.share * consistency + (1 - batch.share) * nats
    return value, {"consistency": consistency, "cross_entropy": nats}


def softened_divergence(
    teacher_BNAV: jax.Array, student_BNAV: jax.Array, temperature: float
) -> jax.Array:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)).

    Args:
        teacher_BNAV: Logits [..., V].
        student_BNAV: Logits of the same shape.
        temperature: T. The factor keeps gradients of the size that they have at T = 1.

    Returns:
        Nats [...].
    """
    teacher = jax.nn.log_softmax(teacher_BNAV / temperature, axis=-1)
    student = jax.nn.log_softmax(student_BNAV / temperature, axis=-1)
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def _logits_fn(config: ModelConfig, settings: ConsistencyDistillation) -> StateLogitsFn:
    return state_logits(
        settings.sampling, transformer_logits(config), config.logits_shift != "none"
    )
