"""What Qwen-like checkpoints call things: a table for tensors, one for config.json."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class TensorTarget:
    """Where one tensor goes: a parameter, and the layer inside it where stacked."""

    path: str
    layer: int | None

    @property
    def is_transposed(self) -> bool:
        """Whether torch's Linear [out, in] has to become our kernel [in, out]."""
        return self.path.endswith("/kernel")


# Our field -> (the key of config.json, its type, the value where the key is absent).
REQUIRED_FIELDS = object()
QWEN_FIELDS: dict[str, tuple[str, type, Any]] = {
    "num_layers": ("num_hidden_layers", int, REQUIRED_FIELDS),
    "hidden": ("hidden_size", int, REQUIRED_FIELDS),
    "inter": ("intermediate_size", int, REQUIRED_FIELDS),
    "heads": ("num_attention_heads", int, REQUIRED_FIELDS),
    "kv_heads": ("num_key_value_heads", int, REQUIRED_FIELDS),
    "head_dim": ("head_dim", int, REQUIRED_FIELDS),
    "vocab_rows": ("vocab_size", int, REQUIRED_FIELDS),
    "max_positions": ("max_position_embeddings", int, REQUIRED_FIELDS),
    "rope_theta": ("rope_theta", float, REQUIRED_FIELDS),
    "rms_eps": ("rms_norm_eps", float, REQUIRED_FIELDS),
    "qkv_bias": ("attention_bias", bool, False),
    "tie_embeddings": ("tie_word_embeddings", bool, False),
}


# Our parameter path -> the tensor of the PyTorch module; "{layer}" is a layer index.
QWEN_TENSORS: dict[str, str] = {
    "embedding": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head": "lm_head.weight",
    "blocks/norm1/scale": "model.layers.{layer}.input_layernorm.weight",
    "blocks/norm2/scale": "model.layers.{layer}.post_attention_layernorm.weight",
    "blocks/attn/q/kernel": "model.layers.{layer}.self_attn.q_proj.weight",
    "blocks/attn/k/kernel": "model.layers.{layer}.self_attn.k_proj.weight",
    "blocks/attn/v/kernel": "model.layers.{layer}.self_attn.v_proj.weight",
    "blocks/attn/o/kernel": "model.layers.{layer}.self_attn.o_proj.weight",
    "blocks/attn/q/bias": "model.layers.{layer}.self_attn.q_proj.bias",
    "blocks/attn/k/bias": "model.layers.{layer}.self_attn.k_proj.bias",
    "blocks/attn/v/bias": "model.layers.{layer}.self_attn.v_proj.bias",
    "blocks/attn/q_norm/scale": "model.layers.{layer}.self_attn.q_norm.weight",
    "blocks/attn/k_norm/scale": "model.layers.{layer}.self_attn.k_norm.weight",
    "blocks/mlp/gate/kernel": "model.layers.{layer}.mlp.gate_proj.weight",
    "blocks/mlp/up/kernel": "model.layers.{layer}.mlp.up_proj.weight",
    "blocks/mlp/down/kernel": "model.layers.{layer}.mlp.down_proj.weight",
}


# Switches of the published class that our module does not have.
QWEN_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
}


def tensor_targets(
    paths: Iterable[str], num_layers: int, tensors: Mapping[str, str] = QWEN_TENSORS
) -> dict[str, TensorTarget]:
    """Tensor name -> its slot, for all tensors of the given parameter paths."""
    found = {}
    for path in paths:
        name = tensors[path]
        layers = range(num_layers) if "{layer}" in name else [None]
        found.update({name.format(layer=n): TensorTarget(path, n) for n in layers})
    return found


def read_fields(
    raw: Mapping[str, Any],
    fields: Mapping[str, tuple[str, type, Any]],
    fixed: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Our fields from keys of config.json, and what is wrong with those keys.

    fields, fixed: tables in the manner of `FIELDS` and `FIXED`.
    """
    raw = {**(raw.get("rope_parameters") or {}), **raw}
    found, problems = {}, []
    for field, (key, kind, default) in fields.items():
        value = raw.get(key, default)
        if value is REQUIRED_FIELDS:
            problems.append(f"{key} is missing")
        elif not _is(value, kind):
            problems.append(f"{key}={value!r} must be of type {kind.__name__}")
        else:
            found[field] = kind(value)
    for key, value in {**fixed, "rope_type": "default"}.items():
        if raw.get(key, value) != value:
            problems.append(f"{key}={raw[key]!r} must be {value!r}")
    return found, problems


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else int)
