"""The keys of a config.json that describe a mixture of experts, as a table.

A family of mixtures has an `ExpertKeys`; `read_experts` makes an `ExpertsConfig` of its
config.json and `experts_to_json` the way back.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from jaxdave.core.config import ModelConfig
from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.io.rope_config import is_instance

REQUIRED = object()
"""Default of a config.json key that must be present."""

COUNT_KEYS = ("num_experts", "n_routed_experts", "num_local_experts")
"""Keys by which published configs say how many experts there are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertKeys:
    """How a family's config.json describes experts.

    Attributes:
      keys: field of `ExpertsConfig` -> (key of config.json, its type, value if it is
        absent).
      values: fields in which all models of the family agree.
      bias_key: key that says whether there is a bias; None: there is none.
      bias_use: what the bias is for.
      shared_count_key: key that counts shared experts, each as wide as another expert.
      shared_inter_key: key that has the shared expert's width; null: there is none.
      layers_key: key with a 0 for every dense layer and a 1 for every other.
    """

    keys: Mapping[str, tuple[str, type, Any]]
    values: Mapping[str, Any]
    bias_key: str | None = None
    bias_use: Literal["choice", "weights"] = "choice"
    shared_count_key: str | None = None
    shared_inter_key: str | None = None
    layers_key: str | None = None


_COMMON = {
    "count": ("num_experts", int, REQUIRED),
    "per_token": ("num_experts_per_tok", int, REQUIRED),
}
QWEN_EXPERTS = ExpertKeys(
    keys={
        **_COMMON,
        "inter": ("moe_intermediate_size", int, REQUIRED),
        "renormalize": ("norm_topk_prob", bool, False),
    },
    values={},
)
"""Qwen3-MoE's keys."""

# The published class reads neither norm_topk_prob nor groups nor a scale.
LLADA_EXPERTS = ExpertKeys(
    keys={**_COMMON, "inter": ("expert_intermediate_size", int, REQUIRED)},
    values={},
    bias_key="moe_router_enable_expert_bias",
    bias_use="weights",
    shared_inter_key="shared_expert_intermediate_size",
    layers_key="moe_layer_freq",
)
"""LLaDA-MoE's keys."""

LLADA2_EXPERTS = ExpertKeys(
    keys={
        **_COMMON,
        "inter": ("moe_intermediate_size", int, REQUIRED),
        "renormalize": ("norm_topk_prob", bool, True),
        "score": ("score_function", str, "sigmoid"),
        "groups": ("n_group", int, REQUIRED),
        "kept_groups": ("topk_group", int, REQUIRED),
        "scale": ("routed_scaling_factor", float, REQUIRED),
        "dense_layers": ("first_k_dense_replace", int, 0),
    },
    values={},
    bias_key="moe_router_enable_expert_bias",
    shared_count_key="num_shared_experts",
)
"""LLaDA2's keys."""


def read_experts(
    keys: ExpertKeys, raw: Mapping[str, Any], num_layers: Any
) -> tuple[ExpertsConfig | None, list[str]]:
    """Read how experts are chosen from a config.json.

    Args:
      keys: the keys of the family.
      raw: the content of config.json.
      num_layers: layers of the model, as far as that is known.

    Returns:
      The experts, and what is wrong with the keys; None where something is.
    """
    fields, problems = dict(keys.values), list[str]()
    for field, (key, kind, default) in keys.keys.items():
        value = raw.get(key, default)
        value = default if value is None and default is not REQUIRED else value
        if value is REQUIRED:
            problems.append(f"{key} is missing")
        elif not is_instance(value, kind):
            problems.append(f"{key}={value!r} must be of type {kind.__name__}")
        else:
            fields[field] = kind(value)
    if keys.bias_key is not None:
        has_bias = raw.get(keys.bias_key) or False
        if not isinstance(has_bias, bool):
            problems.append(f"{keys.bias_key}={has_bias!r} must be of type bool")
        fields["bias"] = keys.bias_use if has_bias else "none"
    for key in (keys.shared_count_key, keys.shared_inter_key):
        if key is None:
            continue
        size = raw.get(key) or 0
        if not is_instance(size, int) or size < 0:
            problems.append(f"{key}={size!r} must be a number from 0 on")
        elif key == keys.shared_inter_key:
            fields["shared_inter"] = size
        else:
            fields["shared_inter"] = size * fields.get("inter", 0)
    if keys.layers_key is not None:
        layers = raw.get(keys.layers_key)
        dense = _count_dense(layers, num_layers)
        if dense is None:
            problems.append(
                f"{keys.layers_key}={layers!r} must have a 0 or 1 for each of "
                f"{num_layers} layers, 0 for the first ones only"
            )
        fields["dense_layers"] = dense
    if problems:
        return None, problems
    try:
        return ExpertsConfig(**fields), []
    except ValueError as error:
        return None, [_with_key_names(keys, str(error))]


def _with_key_names(keys: ExpertKeys, message: str) -> str:
    """A message about fields of `ExpertsConfig` that has the keys of the file."""
    key_of = {field: key for field, (key, _, _) in keys.keys.items()}
    return re.sub(r"(\w+)(?==)", lambda m: key_of.get(m[1], m[1]), message)


def _count_dense(layers: Any, num_layers: Any) -> int | None:
    """How many of the first layers are dense; None where others are, too.

    No list stands for a list of ones.
    """
    if layers is None:
        return 0
    is_list = isinstance(layers, list) and len(layers) == num_layers
    if not is_list or any(flag not in (0, 1) for flag in layers):
        return None
    return layers.count(0) if layers == sorted(layers) else None


def experts_to_json(keys: ExpertKeys, config: ModelConfig) -> dict[str, Any]:
    """Build the keys of a config.json that describe a model's experts.

    Args:
      keys: the keys of the family.
      config: a model with experts.

    Returns:
      Key -> value.
    """
    experts = config.experts
    assert experts is not None
    raw = {key: getattr(experts, field) for field, (key, _, _) in keys.keys.items()}
    if keys.bias_key is not None:
        raw[keys.bias_key] = experts.bias != "none"
    if keys.shared_count_key is not None:
        raw[keys.shared_count_key] = experts.shared_inter // experts.inter
    if keys.shared_inter_key is not None:
        raw[keys.shared_inter_key] = experts.shared_inter or None
    if keys.layers_key is not None:
        sparse = config.num_layers - experts.dense_layers
        raw[keys.layers_key] = [0] * experts.dense_layers + [1] * sparse
    return raw


def inexpressible_experts(keys: ExpertKeys | None, config: ModelConfig) -> list[str]:
    """List what a reader of a family's config.json would lose of a model's experts.

    Args:
      keys: the keys of the family; None: its models are dense.
      config: the model.

    Returns:
      "FIELD=VALUE" for each field; none where the family can express the experts.
    """
    if keys is None or config.experts is None:
        is_same = keys is None and config.experts is None
        return [] if is_same else [f"experts={config.experts!r}"]
    raw = experts_to_json(keys, config)
    read, problems = read_experts(keys, raw, config.num_layers)
    if read is None:
        return problems
    return [
        f"experts: {field.name}={getattr(config.experts, field.name)!r}"
        for field in dataclasses.fields(ExpertsConfig)
        if getattr(read, field.name) != getattr(config.experts, field.name)
    ]
