"""Records of model families: how each writes its config.json and its tensors.

A `Family` is a table, not code; `families` reads a folder by it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdave.io.expert_keys import (
    LLADA2_EXPERTS,
    LLADA_EXPERTS,
    QWEN_EXPERTS,
    REQUIRED,
    ExpertKeys,
)
from jaxdave.io.tensor_names import (
    LLADA2_TENSORS,
    LLADA_TENSORS,
    NEMOTRON_TENSORS,
    QWEN_MOE_TENSORS,
    QWEN_TENSORS,
)

FULL_ATTENTION_BLOCK = 32
"""Block length of models with full attention. There blocks only order the decoding and
no config names a length; the public samplers use 32."""

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
      mask_token: the mask token's text, for folders whose files do not name it; None:
        they have to.
      null_keys: keys of config.json that mean "as that other key" where they are null;
        where they are absent, too, if the class has no default of its own.
      rope_types: rotary scalings that its models may have, "llama3" or "yarn".
      is_rope_scaled: its models have one of them.
      experts: which keys describe the experts of its models; None: they are dense.
      block_length: the block length where config.json has no key of it; None: the
        caller has to say.
      published_names: pattern of the names under which models were published whose
        files leave out the block length. Its group has the length where a name says
        it; without one it is 4.
      is_partly_rotated: its config.json says which share of a head is rotated.
      told_by: a key of config.json and its value, which tell the family from others
        that agree in everything else; published files lack it, so that the caller has
        to say. None: it need not be told.
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
    mask_token: str | None
    null_keys: Mapping[str, NullKey] = dataclasses.field(default_factory=dict)
    rope_types: tuple[str, ...] = ()
    is_rope_scaled: bool = False
    experts: ExpertKeys | None = None
    block_length: int | None = None
    published_names: str | None = None
    is_partly_rotated: bool = False
    told_by: tuple[str, str] | None = None

    def published_block_length(self, name: str) -> int | None:
        """The block length of a model whose config.json has no key of it.

        Args:
          name: the model's name, a Hub id or that of its folder.

        Returns:
          The length; None where neither the name nor the family says it.
        """
        found = self.published_names and re.search(self.published_names, name)
        if not found:
            return self.block_length
        return int(found[1]) if found[1] else _SDAR_BLOCK


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
_SDAR_BLOCK = 4
# JetLM/SDAR-4B-Chat and SDAR-4B-Chat-b8, Gen-Verse/TraDo-8B-Instruct.
_SDAR_NAMES = (
    r"(?:^|/)(?:SDAR-[\w.-]*?Chat|TraDo-[\w.-]*?(?:Instruct|Thinking))(?:-b(\d{1,3}))?$"
)

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
    published_names=_SDAR_NAMES,
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
# Qwen3's layers, trained by dllm's two methods. Their published files are alike.
_A2D_METHOD = "a2d_method"
TINY_A2D_MDLM = dataclasses.replace(
    SDAR,
    name="tiny-a2d-mdlm",
    model_types=("a2d-qwen3",),
    architectures=("A2DQwen3LMHeadModel",),
    config_values={"qk_norm": True, "attention": "full"},
    block_length_key=None,
    mask_token="<|mask|>",
    told_by=(_A2D_METHOD, "mdlm"),
)
TINY_A2D_BD3LM = dataclasses.replace(
    TINY_A2D_MDLM,
    name="tiny-a2d-bd3lm",
    config_values={"qk_norm": True},
    block_length_key="block_size",
    block_length=32,
    told_by=(_A2D_METHOD, "bd3lm"),
)
# LLaDA's successor has Llama's layers under Qwen's names.
ILLADA = Family(
    name="illada",
    model_types=("illada",),
    architectures=("ILLaDAForCausalLM",),
    tensor_names=QWEN_TENSORS,
    config_keys={
        **_QWEN2_KEYS,
        "qkv_bias": ("attention_bias", bool, False),
        "o_bias": ("attention_bias", bool, False),
    },
    required_values={
        "hidden_act": "silu",
        "rope_scaling": None,
        "mlp_bias": False,
        "layer_norm_eps": None,
    },
    config_values={"attention": "full"},
    tensor_marker=".self_attn.q_proj.weight",
    excluded_markers=(".q_norm.", ".experts."),
    block_length_key=None,
    stop_tokens=(),
    mask_token="<[MASK]>",
    null_keys=_QWEN_NULLS,
)
# Ministral 3's layers.
NEMOTRON = Family(
    name="nemotron",
    model_types=("nemotron_labs_diffusion",),
    architectures=("NemotronLabsDiffusionModel",),
    tensor_names=NEMOTRON_TENSORS,
    config_keys={
        **_QWEN2_KEYS,
        "qkv_bias": ("attention_bias", bool, False),
        "o_bias": ("attention_bias", bool, False),
    },
    required_values={
        "hidden_act": "silu",
        "rope_scaling": None,
        "mlp_bias": False,
        "sliding_window": None,
        "dlm_paradigm": "bidirectional",
    },
    config_values={"attention": "causal_context"},
    tensor_marker="encoder.layers.",
    excluded_markers=(".q_norm.", ".experts."),
    block_length_key="block_size",
    stop_tokens=(),
    mask_token=None,
    null_keys=_QWEN_NULLS,
    rope_types=("yarn",),
    is_rope_scaled=True,
)
_EXPERT_MARKER = ".mlp.experts."
_QWEN_MOE_REQUIRED = {**_QWEN_REQUIRED, "decoder_sparse_step": 1, "mlp_only_layers": []}
# Qwen3-MoE's layers, block-causal.
SDAR_MOE = dataclasses.replace(
    SDAR,
    name="sdar-moe",
    model_types=("sdar_moe",),
    architectures=("SDARMoeForCausalLM",),
    tensor_names=QWEN_MOE_TENSORS,
    required_values=_QWEN_MOE_REQUIRED,
    tensor_marker=_EXPERT_MARKER,
    excluded_markers=(),
    experts=QWEN_EXPERTS,
    block_length=_SDAR_BLOCK,
)
# The same layers under full attention; an output predicts the token to its right.
RND1 = dataclasses.replace(
    SDAR_MOE,
    name="rnd1",
    model_types=("rnd1",),
    architectures=("RND1LM",),
    config_values={"qk_norm": True, "attention": "full", "logits_shift": "full"},
    block_length_key=None,
    block_length=None,
    published_names=None,
    mask_token="<|mask|>",
)
_ROLE_STOP_TOKENS = ("<|role_end|>",)
# Its config.json has the model_type of LLaDA's dense models.
LLADA_MOE = Family(
    name="llada-moe",
    model_types=("llada", "lladamoe"),
    architectures=("LLaDAMoEModelLM",),
    tensor_names=QWEN_MOE_TENSORS,
    config_keys={
        **_QWEN2_KEYS,
        "inter": ("dense_intermediate_size", int, REQUIRED),
        "qkv_bias": ("attention_bias", bool, False),
        "o_bias": ("attention_bias", bool, False),
        "qk_norm": ("qk_layernorm", bool, False),
    },
    required_values={
        "hidden_act": "silu",
        "rope_scaling": None,
        "clip_qkv": None,
        "moe_router_score_function": "softmax",
    },
    config_values={"attention": "full"},
    tensor_marker=_EXPERT_MARKER,
    excluded_markers=(),
    block_length_key=None,
    stop_tokens=_ROLE_STOP_TOKENS,
    mask_token="<|mask|>",
    null_keys={
        "num_key_value_heads": NullKey("num_attention_heads", if_absent=True),
    },
    experts=LLADA_EXPERTS,
    is_partly_rotated=True,
)
LLADA2 = Family(
    name="llada2",
    model_types=("llada2_moe",),
    architectures=("LLaDA2MoeModelLM",),
    tensor_names=LLADA2_TENSORS,
    config_keys={
        field: entry
        for field, entry in _QWEN_KEYS.items()
        if field not in ("qkv_bias", "o_bias")
    },
    required_values={
        **_QWEN_REQUIRED,
        "use_bias": False,
        "use_qkv_bias": False,
        "use_qk_norm": True,
        "norm_head": False,
        "norm_softmax": False,
        "router_dtype": "fp32",
        "using_split_qkv_in_self_attention": False,
    },
    config_values={"qk_norm": True},
    tensor_marker=".attention.query_key_value.weight",
    excluded_markers=(),
    block_length_key="block_size",
    stop_tokens=_ROLE_STOP_TOKENS,
    mask_token="<|mask|>",
    null_keys=_QWEN_NULLS,
    experts=LLADA2_EXPERTS,
    block_length=32,
    is_partly_rotated=True,
)
FAMILIES = {
    family.name: family
    for family in (
        DREAM,
        LLADA,
        SDAR,
        FAST_DLLM,
        A2D,
        TINY_A2D_MDLM,
        TINY_A2D_BD3LM,
        ILLADA,
        NEMOTRON,
        SDAR_MOE,
        RND1,
        LLADA_MOE,
        LLADA2,
    )
}
"""All families by name."""

UNSUPPORTED = {
    "diffusion_gemma": "its next state depends on the logits themselves, so that no "
    "draft can equal it",
    "nemotron_labs_diffusion_vlm": "it sees images; take the text model of its size",
    "EfficientDLM": "the names of its tensors and its rule are not known here",
    "llada2_moe_veomni": "its experts are stacked in the files; fetch the published "
    "llada2_moe, with a tensor per expert",
}
"""model_type, or entry of `architectures` -> why models of it do not load."""
