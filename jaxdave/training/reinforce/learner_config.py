"""The settings of a learner, and which samplers it can learn from."""

import dataclasses
import math
from typing import Literal

from jaxdave.core.config import check_no_causal_context
from jaxdave.engine.sampler import Sampler
from jaxdave.training.reinforce.estimates import EstimateConfig, check_loss
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig
from jaxdave.training.reinforce.selection import POLICY


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """What a step of reinforcement does.

    Attributes:
        group_size: Answers to each prompt, at least 2.
        prompts_per_batch: Prompts that are decoded together.
        advantages: "std" (GRPO), "none" (REINFORCE with the mean as baseline), or
            "decoupled": the reward and the speed (confirmed tokens a call), normalised
            each by itself (LightningRL).
        speed_weight: Of the speed, where it is rewarded.
        estimate: Which log-probabilities.
        loss: The clipped loss. A divergence needs the learner's `reference`.
        epochs: Times that the answers of a step are gone through.
        minibatches: Updates of each time.
        rows_per_call: Answers whose gradient is computed at once; gradients of an
            update are added up.

    Raises:
        ValueError: A value is out of its range, or two do not go together.
    """

    group_size: int = 8
    prompts_per_batch: int = 16
    advantages: Literal["std", "none", "decoupled"] = "std"
    speed_weight: float = 1.0
    estimate: EstimateConfig = EstimateConfig()
    loss: PolicyLossConfig = PolicyLossConfig(kl_weight=0.0)
    epochs: int = 1
    minibatches: int = 1
    rows_per_call: int = 32

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size} must be at least 2: answers are "
                "compared with others to the same prompt"
            )
        for name in ("prompts_per_batch", "epochs", "minibatches", "rows_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.advantages not in ("std", "none", "decoupled"):
            raise ValueError(
                f"advantages={self.advantages!r} must be 'std', 'none' or 'decoupled'"
            )
        if not 0 <= self.speed_weight < math.inf:
            raise ValueError(f"speed_weight={self.speed_weight} must be at least 0")
        check_loss(self.estimate, self.loss)


def check_sampler(sampler: Sampler, settings: ReinforceConfig) -> None:
    """Check that a sampler draws from the distribution that is trained, and records it.

    Args:
        sampler: The sampler.
        settings: The learner's.

    Raises:
        ValueError: It does not, in one line.
    """
    config, model = sampler.config, sampler.model.config
    sampling = config.sampling()
    if not sampling.temperature > 0:
        raise ValueError(
            f"temperature={sampling.temperature} draws the same answer every time; "
            "sample above 0, e.g. at temperature=1.0"
        )
    if not config.record_steps:
        raise ValueError(
            "record_steps=False: training needs the steps of answers; make the sampler "
            "with record_steps=True"
        )
    if sampler.model.quantize is not None:
        raise ValueError(
            f"quantize={sampler.model.quantize!r}: weights of 8 bits cannot be "
            "trained; load the model without it"
        )
    changed = {
        "top_k": sampling.top_k > 0,
        "top_p": sampling.top_p < 1,
        "guidance": config.guidance > 0,
        "suppressed_ids": bool(config.suppressed_ids),
        "no_stop": config.no_stop,
        "logits_eos_inf": config.logits_eos_inf,
    }
    for name, is_set in changed.items():
        if is_set:
            raise ValueError(
                f"{name}={getattr(config, name)!r} draws from another distribution "
                "than the one that is trained; leave it out"
            )
    policy = sampler.decoder.spec.policy
    if policy.revises or policy.edits:
        raise ValueError(
            f"policy {policy.name} takes tokens back or replaces them, and what "
            "stood there before is not recorded; choose another policy"
        )
    if settings.estimate.method == "selection" and (
        sampler.decoder.spec.policy.name != POLICY
        or model.attention != "block_causal"
        or config.confidence == "plain"
    ):
        raise ValueError(
            f"method='selection' knows the choices of {POLICY} of a block-causal model "
            f"with tempered confidences, not of {sampler.decoder.spec.policy.name} of "
            f"{model.name}; use method='trajectory'"
        )
    check_no_causal_context(model, "training")
    if model.attention == "full" and config.cache != "none":
        raise ValueError(
            f"cache={config.cache or 'dual'!r} reads keys of older states, which "
            "training cannot repeat; use cache='none'"
        )
    if model.attention != "full" and config.block_length not in (
        None,
        model.block_length,
    ):
        raise ValueError(
            f"block_length={config.block_length} but {model.name} has blocks of "
            f"{model.block_length}; load it with that block_length"
        )
