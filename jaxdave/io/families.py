"""Model families: how each writes its config.json and its tensors.

A `Family` is a table, not code. Reading a folder means to find its family (`detect`),
to translate its config.json (`config_fields`) and to list the tensors that the
resulting config needs (`checkpoint_tensors`).
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.tensor_names import (
    LLADA_TENSORS,
    QWEN_TENSORS,
    TensorTarget,
    tensor_targets,
)
from jaxdave.models.param_shapes import param_shapes

FULL_ATTENTION_BLOCK = 32
"""Block length of models with full attention. There blocks only order the decoding and
no config names a length; the public samplers use 32."""

REQUIRED = object()
"""Default of a config.json key that must be present."""

ConfigKeys = Mapping[str, tuple[str, type, Any]]
"""Field of `ModelConfig` -> (key of config.json, its type, value if it is absent)."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One layout of checkpoints.

    Attributes:
      name: the family's name, as `ModelConfig.family` and `--family` have it.
      model_types: values of `model_type` in config.json that belong to the family.
      architectures: entries of `architectures` in config.json that belong to it.
      tensor_names: parameter path -> tensor name; see `jaxdave.io.tensor_names`.
      config_keys: which key of config.json sets which field of `ModelConfig`.
      required_values: keys of config.json for which our transformer has one value only.
      config_values: fields of `ModelConfig` in which all models of the family agree.
      tensor_marker: a part of a tensor name that every checkpoint of it contains.
      excluded_markers: parts of tensor names that none of its checkpoints contains.
      block_length_key: config.json's key of the block length; None where the model was
        trained without blocks.
      stop_tokens: tokens that end an answer besides those that the files name.
      mask_token: the mask token's text, for folders whose files do not name it.
      null_keys: keys of config.json that mean "as that other key" where they are null
        or absent.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    tensor_names: Mapping[str, str]
    config_keys: ConfigKeys
    required_values: Mapping[str, Any]
    config_values: Mapping[str, Any]
    tensor_marker: str
    excluded_markers: tuple[str, ...]
    block_length_key: str | None
    stop_tokens: tuple[str, ...]
    mask_token: str
    null_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)


_QWEN_KEYS: ConfigKeys = {
    "num_layers": ("num_hidden_layers", int, REQUIRED),
    "hidden": ("hidden_size", int, REQUIRED),
    "inter": ("intermediate_size", int, REQUIRED),
    "heads": ("num_attention_heads", int, REQUIRED),
    "kv_heads": ("num_key_value_heads", int, REQUIRED),
    "head_dim": ("head_dim", int, REQUIRED),
    "vocab_rows": ("vocab_size", int, REQUIRED),
    "max_positions": ("max_position_embeddings", int, REQUIRED),
    "rope_theta": ("rope_theta", float, REQUIRED),
    "rms_eps": ("rms_norm_eps", float, REQUIRED),
    "qkv_bias": ("attention_bias", bool, False),
    "tie_embeddings": ("tie_word_embeddings", bool, False),
}
# Qwen2's class has biases on q, k and v whatever its config says, and no head_dim key.
_QWEN2_KEYS: ConfigKeys = {
    field: entry
    for field, entry in _QWEN_KEYS.items()
    if field not in ("qkv_bias", "head_dim")
}
_LLADA_KEYS: ConfigKeys = {
    "num_layers": ("n_layers", int, REQUIRED),
    "hidden": ("d_model", int, REQUIRED),
    "inter": ("mlp_hidden_size", int, REQUIRED),
    "heads": ("n_heads", int, REQUIRED),
    "kv_heads": ("n_kv_heads", int, REQUIRED),
    "vocab_rows": ("embedding_size", int, REQUIRED),
    "max_positions": ("max_sequence_length", int, REQUIRED),
    "rope_theta": ("rope_theta", float, REQUIRED),
    "rms_eps": ("rms_norm_eps", float, REQUIRED),
    "rope_fp32": ("rope_full_precision", bool, REQUIRED),
    "qkv_bias": ("include_qkv_bias", bool, False),
    "tie_embeddings": ("weight_tying", bool, False),
}

# Switches of the published classes that our transformer does not implement. A config
# that sets one to anything else describes a different model, so it is refused.
_QWEN_REQUIRED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
}
_LLADA_REQUIRED: Mapping[str, Any] = {
    "rope": True,
    "alibi": False,
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "attention_layer_norm": False,
    "include_bias": False,
    "bias_for_layer_norm": False,
    "scale_logits": False,
    "input_emb_norm": False,
}

_CHATML_STOP_TOKENS = ("<|im_end|>",)

# Qwen2's layers under full attention; an output predicts the token to its right.
DREAM = Family(
    name="dream",
    model_types=("Dream",),
    architectures=("DreamModel",),
    tensor_names=QWEN_TENSORS,
    config_keys=_QWEN2_KEYS,
    required_values={**_QWEN_REQUIRED, "use_mrope": False},
    config_values={"attention": "full", "logits_shift": "full", "qkv_bias": True},
    tensor_marker=".self_attn.q_proj.bias",
    excluded_markers=(".q_norm.", ".experts."),
    block_length_key=None,
    stop_tokens=_CHATML_STOP_TOKENS,
    mask_token="<|mask|>",
)
# LLaDA has tensor and key names of its own; the others have Qwen's.
LLADA = Family(
    name="llada",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    tensor_names=LLADA_TENSORS,
    config_keys=_LLADA_KEYS,
    required_values=_LLADA_REQUIRED,
    config_values={"attention": "full"},
    tensor_marker="model.transformer.wte.weight",
    excluded_markers=(),
    block_length_key=None,
    stop_tokens=("<|eot_id|>",),
    mask_token="<|mdm_mask|>",
    null_keys={"n_kv_heads": "n_heads", "embedding_size": "vocab_size"},
)
# Qwen3's layers (norms on queries and keys), block-causal. TraDo has the same files.
SDAR = Family(
    name="sdar",
    model_types=("sdar",),
    architectures=("SDARForCausalLM",),
    tensor_names=QWEN_TENSORS,
    config_keys=_QWEN_KEYS,
    required_values=_QWEN_REQUIRED,
    config_values={"qk_norm": True},
    tensor_marker=".self_attn.q_norm.weight",
    excluded_markers=(".experts.",),
    block_length_key="block_size",
    stop_tokens=_CHATML_STOP_TOKENS,
    mask_token="<|MASK|>",
)
# Qwen2's layers, block-causal; outputs are shifted inside a block only. It has the same
# tensors as Dream: the config alone tells the two apart.
FAST_DLLM = Family(
    name="fast-dllm-v2",
    model_types=("Fast_dLLM_Qwen",),
    architectures=("Fast_dLLM_QwenForCausalLM",),
    tensor_names=QWEN_TENSORS,
    config_keys=_QWEN2_KEYS,
    required_values=_QWEN_REQUIRED,
    config_values={"logits_shift": "block", "qkv_bias": True},
    tensor_marker=".self_attn.q_proj.bias",
    excluded_markers=(".q_norm.", ".experts."),
    block_length_key="bd_size",
    stop_tokens=_CHATML_STOP_TOKENS,
    mask_token="|<MASK>|",
)
FAMILIES = {family.name: family for family in (DREAM, LLADA, SDAR, FAST_DLLM)}
"""All families by name."""


def detect(raw: Mapping[str, Any], tensor_names: Collection[str] | None) -> Family:
    """Find the family of a checkpoint from its config.json and its tensor names.

    Args:
      raw: the content of config.json.
      tensor_names: names of all tensors of the checkpoint; None where they cannot be
        read, so that the config alone decides.

    Returns:
      The family.

    Raises:
      ValueError: the config names no known family, or one whose tensors are different.

    Example:
      >>> detect({"model_type": "sdar"}, None).name
      'sdar'
    """
    architectures = raw.get("architectures") or ()
    claim = f"model_type={raw.get('model_type')!r}, architectures={architectures!r}"
    matches = [
        family
        for family in FAMILIES.values()
        if raw.get("model_type") in family.model_types
        or any(name in family.architectures for name in architectures)
    ]
    if len(matches) != 1:
        similar = [
            family.name
            for family in FAMILIES.values()
            if tensor_names and _has_tensors_of(family, tensor_names)
        ]
        hint = f" (the tensors look like {' or '.join(similar)})" if similar else ""
        raise ValueError(
            f"config.json: unknown architecture, {claim}; convert one of "
            f"{', '.join(FAMILIES)}, or name the family with --family{hint}"
        )
    (family,) = matches
    # A mixture-of-experts model of a family has the same model_type as a dense one.
    if tensor_names is not None and not _has_tensors_of(family, tensor_names):
        raise ValueError(
            f"config.json: unknown architecture, {claim}, but the tensors are not "
            f"those of {family.name}; only its dense models convert"
        )
    return family


def _has_tensors_of(family: Family, tensor_names: Collection[str]) -> bool:
    if not any(family.tensor_marker in name for name in tensor_names):
        return False
    return not any(
        marker in name for marker in family.excluded_markers for name in tensor_names
    )


def config_fields(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a family's config.json to fields of `ModelConfig`.

    Args:
      family: the family that the config.json belongs to.
      raw: the content of config.json.

    Returns:
      The architecture's fields by name. Ids, the vocabulary's size and the block length
      are not among them, as those need other files too (see `hf_config`).

    Raises:
      ValueError: names every key that is missing, has a wrong type, or asks for
        something that our transformer does not implement.
    """
    raw = _fill_null_keys(family, raw)
    fields, problems = _read_keys(raw, family.config_keys, family.required_values)
    # Classes without a head_dim key divide the
    # hidden size by the heads, as ours then does.
    if not problems and "head_dim" not in fields:
        fields["head_dim"] = raw.get("head_dim") or fields["hidden"] // fields["heads"]
        if raw.get("head_dim") is None and fields["hidden"] % fields["heads"]:
            problems.append("the hidden size must be a multiple of the heads")
    if problems:
        raise ValueError(
            f"config.json: {'; '.join(problems)}; take the file of a "
            f"{family.name} model, or name another --family"
        )
    return {**fields, **family.config_values, "rotary_dim": fields["head_dim"]}


def _fill_null_keys(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve keys whose null means "as that other key" (`Family.null_keys`)."""
    filled = dict(raw)
    for key, other in family.null_keys.items():
        if filled.get(key) is None and other in filled:
            filled[key] = filled[other]
    return filled


def _read_keys(
    raw: Mapping[str, Any], config_keys: ConfigKeys, required_values: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Read fields from config.json; returns them and what is wrong with the keys."""
    # Newer transformers write the rotary settings into an object of their own.
    raw = {**(raw.get("rope_parameters") or {}), **raw}
    fields, problems = {}, []
    for field, (key, kind, default) in config_keys.items():
        value = raw.get(key, default)
        if value is REQUIRED:
            problems.append(f"{key} is missing")
        elif not _is_instance(value, kind):
            problems.append(f"{key}={value!r} must be of type {kind.__name__}")
        else:
            fields[field] = kind(value)
    for key, value in {**required_values, "rope_type": "default"}.items():
        if raw.get(key, value) != value:
            problems.append(f"{key}={raw[key]!r} must be {value!r}")
    return fields, problems


def _is_instance(value: Any, kind: type) -> bool:
    """Check a JSON value's type: true is no number, but 1 is a float."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else int)


def checkpoint_tensors(family: Family, config: ModelConfig) -> dict[str, TensorTarget]:
    """List the tensors that a checkpoint of a model must have.

    Args:
      family: the layout of the checkpoint.
      config: the model.

    Returns:
      Tensor name -> the place and shape of the tensor, for exactly the tensors that the
      parameters of `config` are made of.

    Example:
      >>> from jaxdave.models.presets import preset
      >>> checkpoint_tensors(SDAR, preset("sdar-4b"))["model.norm.weight"]
      TensorTarget(path='norm/scale', layer=None, shape=(2560,))
    """
    leaves = leaves_by_path(param_shapes(config))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    return tensor_targets(shapes, config.num_layers, family.tensor_names)
