"""Model families: how each writes its config.json and its tensors.

A `Family` is a table, not code. Reading a folder means to find its family (`detect`),
to translate its config.json (`config_fields`) and to list the tensors that the
resulting config needs (`checkpoint_tensors`).
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.rope_config import is_instance, resolve_rope
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


class NullKey(NamedTuple):
    """What a null stands for in a family's config.json.

    Attributes:
      other: the key whose value it takes.
      if_absent: whether a missing key means the same.
    """

    other: str
    if_absent: bool = False


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
      null_keys: keys of config.json that mean "as that other key" where they are null;
        where they are absent, too, if the class has no default of its own.
      rope_types: rotary scalings that its models may have: none, or "llama3".
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
    null_keys: Mapping[str, NullKey] = dataclasses.field(default_factory=dict)
    rope_types: tuple[str, ...] = ()


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
    # Qwen3's class, and so SDAR's, gives the output projection a bias as well.
    "o_bias": ("attention_bias", bool, False),
    "tie_embeddings": ("tie_word_embeddings", bool, False),
}
# Qwen2's class has biases on q, k and v whatever its config says, and no head_dim key.
_QWEN2_KEYS: ConfigKeys = {
    field: entry
    for field, entry in _QWEN_KEYS.items()
    if field not in ("qkv_bias", "o_bias", "head_dim")
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
_QWEN_NULLS = {"num_key_value_heads": NullKey("num_attention_heads")}
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
    null_keys=_QWEN_NULLS,
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
    null_keys={
        "n_kv_heads": NullKey("n_heads", if_absent=True),
        "embedding_size": NullKey("vocab_size", if_absent=True),
    },
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
    null_keys=_QWEN_NULLS,
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
    null_keys=_QWEN_NULLS,
)
# Autoregressive models that were made diffusion models by training (`autoregressive`),
# as far as no other family has their layers and their attention. The layout is our own:
# Qwen's names, and a key for every switch.
A2D = Family(
    name="a2d",
    model_types=("jaxdave-a2d",),
    architectures=("JaxdaveA2DForMaskedDiffusion",),
    tensor_names=QWEN_TENSORS,
    config_keys={
        **_QWEN_KEYS,
        **{
            switch: (switch, bool, REQUIRED)
            for switch in ("qkv_bias", "o_bias", "qk_norm")
        },
        "attention": ("attention", str, REQUIRED),
        "logits_shift": ("logits_shift", str, REQUIRED),
    },
    required_values=_QWEN_REQUIRED,
    config_values={},
    tensor_marker=".self_attn.q_proj.weight",
    excluded_markers=(".experts.",),
    block_length_key="block_length",
    stop_tokens=(),
    mask_token="<|mask|>",
    rope_types=("llama3",),
)
FAMILIES = {family.name: family for family in (DREAM, LLADA, SDAR, FAST_DLLM, A2D)}
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
    if not isinstance(architectures, list | tuple):
        architectures = (architectures,)
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
    raw, scaling, problems = resolve_rope(raw, family.rope_types)
    raw, more = _resolve_kv_heads(raw)
    raw = _fill_null_keys(family, raw)
    fields, most = _read_keys(raw, family.config_keys, family.required_values)
    problems = [*problems, *more, *most]
    # Classes without a head_dim key divide the
    # hidden size by the heads, as ours then does.
    if not problems and "head_dim" not in fields:
        stated = raw.get("head_dim")
        if not (stated is None or is_instance(stated, int)):
            problems.append(f"head_dim={stated!r} must be of type int")
        elif fields["heads"] < 1:
            problems.append(f"heads={fields['heads']} must be at least 1")
        elif stated is None and fields["hidden"] % fields["heads"]:
            problems.append("the hidden size must be a multiple of the heads")
        else:
            divided = fields["hidden"] // fields["heads"]
            fields["head_dim"] = divided if stated is None else stated
    if problems:
        raise ValueError(
            f"config.json: {'; '.join(problems)}; take the file of a "
            f"{family.name} model, or name another --family"
        )
    fields |= {"rotary_dim": fields["head_dim"], "rope_scaling": scaling}
    return {**fields, **family.config_values}


def _fill_null_keys(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve keys whose null means something (`Family.null_keys`)."""
    filled = dict(raw)
    for key, (other, if_absent) in family.null_keys.items():
        is_null = raw.get(key) is None and (if_absent or key in raw)
        if is_null and other in filled:
            filled[key] = filled[other]
    # LLaDA's class multiplies where no size is given.
    if "mlp_ratio" in raw and raw.get("mlp_hidden_size") is None:
        sizes = raw["mlp_ratio"], raw.get("d_model")
        if all(is_instance(size, int) for size in sizes):
            filled["mlp_hidden_size"] = sizes[0] * sizes[1]
    return filled


def _resolve_kv_heads(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Resolve `multi_query_attention`, LLaDA's other way to say `n_kv_heads`.

    Returns:
      The resolved content of config.json, and what is wrong with it.
    """
    is_multi_query, stated = raw.get("multi_query_attention"), raw.get("n_kv_heads")
    if not isinstance(is_multi_query, bool):
        return dict(raw), []
    heads = 1 if is_multi_query else raw.get("n_heads")
    if stated not in (None, heads):
        return dict(raw), [
            f"multi_query_attention={is_multi_query} must be null where "
            f"n_kv_heads={stated!r}"
        ]
    return {**raw, "n_kv_heads": heads}, []


def _read_keys(
    raw: Mapping[str, Any], config_keys: ConfigKeys, required_values: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Read fields from config.json; returns them and what is wrong with the keys."""
    fields, problems = {}, []
    for field, (key, kind, default) in config_keys.items():
        value = raw.get(key, default)
        # The published classes ask whether a switch is true, and null is not.
        value = False if value is None and kind is bool else value
        if value is REQUIRED:
            problems.append(f"{key} is missing")
        elif not is_instance(value, kind):
            problem = f"{key}={value!r} must be of type {kind.__name__}"
            problems += [problem] if problem not in problems else []
        else:
            fields[field] = kind(value)
    for key, value in required_values.items():
        stated = raw.get(key, value)
        is_off = stated is None and value is False
        if stated != value and not is_off:
            problems.append(f"{key}={stated!r} must be {value!r}")
    layers = raw.get("layer_types") or ()
    layers = layers if isinstance(layers, list | tuple) else (layers,)
    if any(kind != "full_attention" for kind in layers):
        problems.append(f"layer_types={layers!r} must all be 'full_attention'")
    return fields, problems


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
