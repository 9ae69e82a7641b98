"""The families that convert: what each calls its tensors and its settings."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.io import safetensors_io
from jaxdave.io.tensor_names import (
    QWEN_FIELDS,
    QWEN_FIXED,
    QWEN_TENSORS,
    REQUIRED_FIELDS,
    TensorTarget,
    read_fields,
    tensor_targets,
)
from jaxdave.models.param_shapes import param_shapes

# Where attention is full, blocks only order the decoding; the public samplers use 32.
FULL_ATTENTION_BLOCK = 32

Fields = Mapping[str, tuple[str, type, Any]]


@dataclasses.dataclass(frozen=True)
class Family:
    """One way of writing a checkpoint.

    model_types, classes: what its config.json says under model_type, architectures.
    tensors: our parameter path -> its tensor; a kernel is transposed (`names.Slot`).
    fields, fixed: keys of config.json, as `names.read_fields` takes them.
    switches: fields of `ModelConfig` that all its models agree in.
    mark, banned: parts of tensor names that it always has, and never has.
    block_key: the key of the block length; None where the length is not trained.
    stop_tokens: tokens that end an answer beside those that its files name.
    mask_token: the mask's text, where no file names it.
    """

    name: str
    model_types: tuple[str, ...]
    classes: tuple[str, ...]
    tensors: Mapping[str, str]
    fields: Fields
    fixed: Mapping[str, Any]
    switches: Mapping[str, Any]
    mark: str
    banned: tuple[str, ...]
    block_key: str | None
    stop_tokens: tuple[str, ...]
    mask_token: str


@dataclasses.dataclass(frozen=True)
class Target:
    """Where one source tensor goes, and the shape [out, in] or [n] that it has."""

    slot: TensorTarget
    shape: tuple[int, ...]


def _llada_tensors() -> dict[str, str]:
    layer = "model.transformer.blocks.{layer}"
    parts = {
        "norm1/scale": "attn_norm.weight",
        "norm2/scale": "ff_norm.weight",
        "attn/q/kernel": "q_proj.weight",
        "attn/k/kernel": "k_proj.weight",
        "attn/v/kernel": "v_proj.weight",
        "attn/o/kernel": "attn_out.weight",
        "attn/q/bias": "q_proj.bias",
        "attn/k/bias": "k_proj.bias",
        "attn/v/bias": "v_proj.bias",
        # ff_proj is what silu is applied to; ff_out of a layer leads back to hidden.
        "mlp/gate/kernel": "ff_proj.weight",
        "mlp/up/kernel": "up_proj.weight",
        "mlp/down/kernel": "ff_out.weight",
    }
    return {
        "embedding": "model.transformer.wte.weight",
        "norm/scale": "model.transformer.ln_f.weight",
        # The head has the name of the layers' last projection.
        "head": "model.transformer.ff_out.weight",
        **{f"blocks/{ours}": f"{layer}.{theirs}" for ours, theirs in parts.items()},
    }


# Qwen2's class has biases on q, k and v whatever its config says, and no head_dim key.
_QWEN2_FIELDS = {
    field: row
    for field, row in QWEN_FIELDS.items()
    if field not in ("qkv_bias", "head_dim")
}
_LLADA_FIELDS: Fields = {
    "num_layers": ("n_layers", int, REQUIRED_FIELDS),
    "hidden": ("d_model", int, REQUIRED_FIELDS),
    "inter": ("mlp_hidden_size", int, REQUIRED_FIELDS),
    "heads": ("n_heads", int, REQUIRED_FIELDS),
    "kv_heads": ("n_kv_heads", int, REQUIRED_FIELDS),
    "vocab_rows": ("embedding_size", int, REQUIRED_FIELDS),
    "max_positions": ("max_sequence_length", int, REQUIRED_FIELDS),
    "rope_theta": ("rope_theta", float, REQUIRED_FIELDS),
    "rms_eps": ("rms_norm_eps", float, REQUIRED_FIELDS),
    "rope_fp32": ("rope_full_precision", bool, REQUIRED_FIELDS),
    "qkv_bias": ("include_qkv_bias", bool, False),
    "tie_embeddings": ("weight_tying", bool, False),
}
_LLADA_FIXED = {
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

_CHATML_END = ("<|im_end|>",)


DREAM = Family(
    name="dream",
    model_types=("Dream",),
    classes=("DreamModel",),
    tensors=QWEN_TENSORS,
    fields=_QWEN2_FIELDS,
    fixed={**QWEN_FIXED, "use_mrope": False},
    switches={"attention": "full", "logits_shift": "full", "qkv_bias": True},
    mark=".self_attn.q_proj.bias",
    banned=(".q_norm.", ".experts."),
    block_key=None,
    stop_tokens=_CHATML_END,
    mask_token="<|mask|>",
)
LLADA = Family(
    name="llada",
    model_types=("llada",),
    classes=("LLaDAModelLM",),
    tensors=_llada_tensors(),
    fields=_LLADA_FIELDS,
    fixed=_LLADA_FIXED,
    switches={"attention": "full"},
    mark="model.transformer.wte.weight",
    banned=(),
    block_key=None,
    stop_tokens=("<|eot_id|>",),
    mask_token="<|mdm_mask|>",
)
SDAR = Family(
    name="sdar",
    model_types=("sdar",),
    classes=("SDARForCausalLM",),
    tensors=QWEN_TENSORS,
    fields=QWEN_FIELDS,
    fixed=QWEN_FIXED,
    switches={"qk_norm": True},
    mark=".self_attn.q_norm.weight",
    banned=(".experts.",),
    block_key="block_size",
    stop_tokens=_CHATML_END,
    mask_token="<|MASK|>",
)
FAST_DLLM = Family(
    name="fast-dllm-v2",
    model_types=("Fast_dLLM_Qwen",),
    classes=("Fast_dLLM_QwenForCausalLM",),
    tensors=QWEN_TENSORS,
    fields=_QWEN2_FIELDS,
    fixed=QWEN_FIXED,
    switches={"logits_shift": "block", "qkv_bias": True},
    mark=".self_attn.q_proj.bias",
    banned=(".q_norm.", ".experts."),
    block_key="bd_size",
    stop_tokens=_CHATML_END,
    mask_token="|<MASK>|",
)
FAMILIES = {family.name: family for family in (DREAM, LLADA, SDAR, FAST_DLLM)}


def detect(raw: Mapping[str, Any], tensors: Collection[str] | None) -> Family:
    """The family of a checkpoint, from its config.json and its tensor names.

    tensors: None where they cannot be read, so that the config alone has to tell.

    Raises ValueError when the config names none, or one that the tensors are not of.
    """
    classes = raw.get("architectures") or ()
    said = f"model_type={raw.get('model_type')!r}, architectures={classes!r}"
    found = [
        family
        for family in FAMILIES.values()
        if raw.get("model_type") in family.model_types
        or any(name in family.classes for name in classes)
    ]
    if len(found) != 1:
        alike = [f.name for f in FAMILIES.values() if tensors and _fits(f, tensors)]
        hint = f" (the tensors look like {' or '.join(alike)})" if alike else ""
        raise ValueError(
            f"config.json: unknown architecture, {said}; convert one of "
            f"{', '.join(FAMILIES)}, or name the family with --family{hint}"
        )
    if tensors is not None and not _fits(found[0], tensors):
        raise ValueError(
            f"config.json: unknown architecture, {said}, but the tensors are not those "
            f"of {found[0].name}; only its dense models convert"
        )
    return found[0]


def _fits(family: Family, tensors: Collection[str]) -> bool:
    has_mark = any(family.mark in name for name in tensors)
    return has_mark and not any(b in name for b in family.banned for name in tensors)


def fields_of(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` that a family's config.json settles.

    Raises ValueError, naming every key that is missing, has a wrong type or asks for
    something that our module does not do.
    """
    raw = _filled(family, raw)
    found, problems = read_fields(raw, family.fields, family.fixed)
    if not problems and "head_dim" not in found:
        found["head_dim"] = raw.get("head_dim") or found["hidden"] // found["heads"]
        if raw.get("head_dim") is None and found["hidden"] % found["heads"]:
            problems.append("the hidden size must be a multiple of the heads")
    if problems:
        raise ValueError(
            f"config.json: {'; '.join(problems)}; take the file of a "
            f"{family.name} model, or name another --family"
        )
    return {**found, **family.switches, "rotary_dim": found["head_dim"]}


def _filled(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config with null for "as that other key" resolved, as LLaDA's class does."""
    filled = dict(raw)
    if family is LLADA:
        for key, other in (("n_kv_heads", "n_heads"), ("embedding_size", "vocab_size")):
            if filled.get(key) is None and other in filled:
                filled[key] = filled[other]
    return filled


def targets(family: Family, config: ModelConfig) -> dict[str, Target]:
    """Source tensor -> its target, for exactly the tensors that the config needs."""
    leaves = safetensors_io.leaves_of(param_shapes(config))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    slots = tensor_targets(shapes, config.num_layers, family.tensors)
    return {
        name: Target(slot, safetensors_io.stored_shape(slot, shapes))
        for name, slot in slots.items()
    }
