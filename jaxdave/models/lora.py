"""Adapters of low rank: their settings, and the shapes of their parameters.

Source: LoRA, arXiv 2106.09685; alpha / sqrt(r): rsLoRA, arXiv 2312.03732.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig, check_dense
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.models.param_shapes import param_shapes

TARGET_PATHS = {
    "q": "blocks/attn/q",
    "k": "blocks/attn/k",
    "v": "blocks/attn/v",
    "o": "blocks/attn/o",
    "gate": "blocks/mlp/gate",
    "up": "blocks/mlp/up",
    "down": "blocks/mlp/down",
}
"""Name of a projection that can be adapted -> path of its parameters."""

Adapters = dict[str, Any]
"""Nested dicts as of parameters, with `lora_a` [N, in, r] and `lora_b` [N, r, out],
float32, in the place of each adapted projection's kernel and bias."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which projections are adapted, and how.

    Attributes:
        rank: Columns of A and rows of B, r.
        alpha: The added product is multiplied by alpha / r.
        targets: Names of projections, keys of `TARGET_PATHS`.
        rank_stabilized: Multiply by alpha / sqrt(r) instead.
        seed: Of the draw of A.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> LoraConfig(rank=16, alpha=32).scale
        2.0
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(TARGET_PATHS)
    rank_stabilized: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank={self.rank!r} must be a whole number from 1 on")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha={self.alpha} must be above 0 and finite")
        unknown = [name for name in self.targets if name not in TARGET_PATHS]
        is_set = len(set(self.targets)) == len(self.targets) > 0
        if unknown or not is_set:
            raise ValueError(
                f"targets={self.targets!r} must be some of {', '.join(TARGET_PATHS)}, "
                "each once"
            )

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        root = math.sqrt(self.rank) if self.rank_stabilized else self.rank
        return self.alpha / root


def adapter_shapes(config: ModelConfig, lora: LoraConfig) -> Adapters:
    """The shapes of a model's adapters, without creating them.

    Args:
        config: The model.
        lora: Which projections are adapted.

    Returns:
        `Adapters` of float32 `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: The rank is larger than a side of a matrix, or the model is a
            mixture of experts.

    Example:
        >>> from jaxdave.models.presets import preset
        >>> shapes = adapter_shapes(preset("sdar-1m"), LoraConfig(targets=("k",)))
        >>> shapes["blocks"]["attn"]["k"]["lora_b"].shape
        (4, 16, 64)
    """
    check_dense(config, "lora", "adapt a dense model")
    kernels = leaves_by_path(param_shapes(config))
    adapters: Adapters = {}
    for target in lora.targets:
        path = TARGET_PATHS[target]
        layers, fan_in, fan_out = kernels[f"{path}/kernel"].shape
        if lora.rank > min(fan_in, fan_out):
            raise ValueError(
                f"rank={lora.rank} is larger than a side of {path}/kernel, "
                f"{fan_in} x {fan_out}; use at most {min(fan_in, fan_out)}"
            )
        blocks, module, name = path.split("/")
        place = adapters.setdefault(blocks, {}).setdefault(module, {})
        place[name] = {
            "lora_a": jax.ShapeDtypeStruct((layers, fan_in, lora.rank), jnp.float32),
            "lora_b": jax.ShapeDtypeStruct((layers, lora.rank, fan_out), jnp.float32),
        }
    return adapters
