"""The feed-forward layers of a mixture-of-experts model: sizes, and how experts are
chosen.
"""

import dataclasses
import math
from typing import Literal

_CHOICES = {
    "score": ("softmax", "sigmoid"),
    "bias": ("none", "choice", "weights"),
}
_LARGEST = {"count": 2**16, "per_token": 2**10, "inter": 2**22}
"""Sizes beyond those of any model, which are taken for a broken config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """How a mixture-of-experts layer chooses its experts, and how large they are.

    A token's router scores are a softmax over all experts, or a sigmoid of each. The
    best `per_token` experts are chosen, those of equal score by the lower index; their
    outputs are added up, each times its weight.

    Attributes:
        count: Experts of a layer.
        per_token: How many of them a token goes to.
        inter: Width inside one expert.
        shared_inter: Width of the expert that all tokens go to, beside the others; 0:
            there is none.
        score: What router logits become.
        bias: What a learned bias of each expert's score is for. "none": there is none.
            "choice": it decides the choice and is no part of the weight (LLaDA2).
            "weights": it is part of both (LLaDA-MoE).
        groups: Groups of consecutive experts, which are scored by the sum of their two
            best experts; 1: there are none.
        kept_groups: How many of the best groups experts are chosen from.
        renormalize: Whether a token's weights are divided by their sum.
        scale: What weights are multiplied by at the end.
        dense_layers: The first so many layers have a dense feed-forward layer instead,
            of the width `ModelConfig.inter`.

    Raises:
        ValueError: A value is out of its range, or two disagree.

    Source: Qwen3-MoE; LLaDA2's and LLaDA-MoE's published modules.

    Example:
        >>> ExpertsConfig(count=128, per_token=8, inter=768, renormalize=True).groups
        1
    """

    count: int
    per_token: int
    inter: int
    shared_inter: int = 0
    score: Literal["softmax", "sigmoid"] = "softmax"
    bias: Literal["none", "choice", "weights"] = "none"
    groups: int = 1
    kept_groups: int = 1
    renormalize: bool = False
    scale: float = 1.0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"experts: {field}={getattr(self, field)!r} must be one of "
                    f"{', '.join(choices)}; check the config"
                )
        for field, largest in _LARGEST.items():
            if not 1 <= getattr(self, field) <= largest:
                raise ValueError(
                    f"experts: {field}={getattr(self, field)} must be in 1..{largest}; "
                    "check the config"
                )
        if not 0 <= self.shared_inter <= _LARGEST["inter"]:
            raise ValueError(
                f"experts: shared_inter={self.shared_inter} must be in "
                f"0..{_LARGEST['inter']}; check the config"
            )
        if not 0 < self.scale < math.inf:
            raise ValueError(
                f"experts: scale={self.scale} must be above 0 and finite; check the "
                "config"
            )
        if self.dense_layers < 0:
            raise ValueError(
                f"experts: dense_layers={self.dense_layers} must be 0 or more; check "
                "the config"
            )
        self._check_groups()

    def _check_groups(self) -> None:
        if self.groups < 1 or self.count % self.groups:
            raise ValueError(
                f"experts: groups={self.groups} must divide the {self.count} experts; "
                "check the config"
            )
        if not 1 <= self.kept_groups <= self.groups:
            raise ValueError(
                f"experts: kept_groups={self.kept_groups} must be in "
                f"1..groups={self.groups}; check the config"
            )
        # A group is scored by its two best experts.
        if self.groups > 1 and self.count // self.groups < 2:
            raise ValueError(
                f"experts: groups={self.groups} of {self.count} experts must have 2 or "
                "more each; check the config"
            )
        eligible = self.count // self.groups * self.kept_groups
        if self.per_token > eligible:
            raise ValueError(
                f"experts: per_token={self.per_token} must be at most the {eligible} "
                "experts to choose from; check the config"
            )
