"""Tiny checkpoints of every family and special case: shapes and config.json files.

The keys are those of the published files; sizes and ids are small.
"""

import dataclasses
from typing import Any

# The ids of the demo's tokenizer, whose files go along: 776 ids in padded rows.
IDS = {"bos_token_id": 772, "eos_token_id": 772, "pad_token_id": 772}
MASK = 775
REAL_IDS = 776


@dataclasses.dataclass(frozen=True)
class Case:
    """One checkpoint.

    Attributes:
      name: name of the case.
      family: name of the family whose config.json it has.
      layers: number of layers.
      hidden: hidden size.
      heads: query heads.
      kv_heads: key and value heads.
      head_dim: size of a head.
      rows: rows of the embedding, padding included.
      tied: the embedding serves as head.
      theta: base of the rotary embedding.
      eps: epsilon of the norms.
      shift: how logits are shifted, as `ModelConfig.logits_shift`.
      block: block length where attention is block-causal; None where it is full.
      shard: maximum size of a weight file, as transformers takes it.
      bias: SDAR's and iLLaDA's projections in and out of attention have biases.
    """

    name: str
    family: str
    layers: int = 3
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    rows: int = 784
    tied: bool = False
    theta: float = 1e6
    eps: float = 1e-6
    shift: str = "none"
    block: int | None = None
    shard: str = "5GB"
    bias: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the converter for what the family's config does not name."""
        is_told = self.family.startswith("tiny-a2d")
        family = ("--family", self.family) if is_told else ()
        if self.family not in ("sdar", "tiny-a2d-bd3lm"):
            return family
        return (*family, "--block-length", str(self.block))

    @property
    def attention(self) -> str:
        """How `ModelConfig.attention` names it."""
        if self.family == "nemotron":
            return "causal_context"
        return "block_causal" if self.block else "full"


CASES = (
    Case("dream", "dream", shift="full", shard="60KB"),
    Case("dream-coder", "dream", heads=6, kv_heads=2, hidden=48, shift="full"),
    Case(
        "diffucoder",
        "dream",
        layers=3,
        hidden=28,
        heads=7,
        kv_heads=1,
        head_dim=4,
        shift="full",
    ),
    Case("llada", "llada", kv_heads=4, theta=5e5, eps=1e-5, shard="70KB"),
    Case("llada-gqa", "llada", heads=6, kv_heads=2, hidden=48, theta=5e5, eps=1e-5),
    Case("sdar-wide", "sdar", head_dim=16, hidden=24, block=4, shard="50KB"),
    Case("sdar-b32", "sdar", heads=2, kv_heads=2, head_dim=32, rows=777, block=32),
    Case("trado", "sdar", heads=6, kv_heads=1, hidden=48, block=4),
    Case("sdar-bias", "sdar", head_dim=16, hidden=24, block=4, bias=True),
    Case(
        "fast-dllm-1.5b",
        "fast-dllm-v2",
        heads=6,
        kv_heads=1,
        hidden=48,
        tied=True,
        shift="block",
        block=32,
        shard="60KB",
    ),
    Case("fast-dllm-7b", "fast-dllm-v2", rows=800, shift="block", block=8),
    Case("a2d-mdlm", "tiny-a2d-mdlm", head_dim=16, hidden=24, tied=True),
    Case("a2d-bd3lm", "tiny-a2d-bd3lm", head_dim=16, hidden=24, tied=True, block=4),
    Case("illada", "illada", tied=True, theta=5e5, eps=1e-5, shard="60KB"),
    Case("illada-bias", "illada", heads=6, hidden=48, bias=True),
    Case("nemotron", "nemotron", eps=1e-5, block=32, shard="60KB"),
    Case(
        "nemotron-14b",
        "nemotron",
        heads=6,
        kv_heads=1,
        hidden=24,
        head_dim=32,
        theta=1e9,
        eps=1e-5,
        block=8,
    ),
)

YARN = {
    "rope_type": "yarn",
    "factor": 16.0,
    # The published 16384 as far beyond a test's texts as in real ones: queries are
    # scaled after it.
    "original_max_position_embeddings": 32,
    "beta_fast": 4.0,
    "beta_slow": 0.25,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
    "llama_4_scaling_beta": 0.1,
}
"""Nemotron's rope, in numbers that show in short texts."""


def _qwen(case: Case) -> dict[str, Any]:
    return {
        **IDS,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": case.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 40,
        "max_position_embeddings": 4096,
        "max_window_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_hidden_layers": case.layers,
        "num_key_value_heads": case.kv_heads,
        "rms_norm_eps": case.eps,
        "rope_scaling": None,
        "rope_theta": case.theta,
        "sliding_window": None,
        "tie_word_embeddings": case.tied,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": case.rows,
    }


def _dream(case: Case) -> dict[str, Any]:
    return {
        **_qwen(case),
        "architectures": ["DreamModel"],
        "auto_map": {
            "AutoConfig": "configuration_dream.DreamConfig",
            "AutoModel": "modeling_dream.DreamModel",
        },
        "mask_token_id": MASK,
        "model_type": "Dream",
        "use_mrope": False,
    }


def _llada(case: Case) -> dict[str, Any]:
    return {
        "architectures": ["LLaDAModelLM"],
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": case.hidden,
        "embedding_dropout": 0.0,
        "embedding_size": case.rows,
        "eos_token_id": 772,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": MASK,
        "max_sequence_length": 4096,
        "mlp_hidden_size": 40,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_heads": case.heads,
        "n_kv_heads": case.kv_heads,
        "n_layers": case.layers,
        "pad_token_id": 772,
        "residual_dropout": 0.0,
        "rms_norm_eps": case.eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": case.theta,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "vocab_size": case.rows,
        "weight_tying": case.tied,
    }


def _sdar(case: Case) -> dict[str, Any]:
    """The Hub's copy: neither a block length nor a mask id."""
    return {
        **_qwen(case),
        "architectures": ["SDARForCausalLM"],
        "attention_bias": case.bias,
        "attn_implementation": "flex_attention",
        "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
        "fuse_cross_entropy": True,
        "head_dim": case.head_dim,
        "model_type": "sdar",
    }


def _fast_dllm(case: Case) -> dict[str, Any]:
    return {
        **_qwen(case),
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration.Fast_dLLM_QwenConfig",
            "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
        },
        "bd_size": case.block,
        "layer_types": ["full_attention"] * case.layers,
        "model_type": "Fast_dLLM_Qwen",
    }


def _a2d(case: Case) -> dict[str, Any]:
    """The Hub's copy names neither the method, nor a block length, nor a mask id."""
    return {
        **_qwen(case),
        "architectures": ["A2DQwen3LMHeadModel"],
        "attention_bias": False,
        "auto_map": {"AutoModelForMaskedLM": "modeling_qwen3.A2DQwen3LMHeadModel"},
        "head_dim": case.head_dim,
        "layer_types": ["full_attention"] * case.layers,
        "model_type": "a2d-qwen3",
    }


def _illada(case: Case) -> dict[str, Any]:
    """The class divides the hidden size by the heads; the mask is the tokenizer's."""
    return {
        **IDS,
        "architectures": ["ILLaDAForCausalLM"],
        "attention_bias": case.bias,
        "auto_map": {"AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM"},
        "hidden_act": "silu",
        "hidden_size": case.hidden,
        "intermediate_size": 40,
        "layer_norm_eps": None,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "illada",
        "num_attention_heads": case.heads,
        "num_hidden_layers": case.layers,
        "num_key_value_heads": case.kv_heads,
        "resid_pdrop": 0.0,
        "rms_norm_eps": case.eps,
        "rope_scaling": None,
        "rope_theta": case.theta,
        "tie_word_embeddings": case.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": case.rows,
    }


def _nemotron(case: Case) -> dict[str, Any]:
    return {
        **IDS,
        "architectures": ["NemotronLabsDiffusionModel"],
        "attention_bias": False,
        "auto_map": {
            "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel"
        },
        "block_size": case.block,
        "dlm_paradigm": "bidirectional",
        "head_dim": case.head_dim,
        "hidden_act": "silu",
        "hidden_size": case.hidden,
        "intermediate_size": 40,
        "mask_token_id": MASK,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "model_type": "nemotron_labs_diffusion",
        "num_attention_heads": case.heads,
        "num_hidden_layers": case.layers,
        "num_key_value_heads": case.kv_heads,
        "rms_norm_eps": case.eps,
        "rope_parameters": {**YARN, "rope_theta": case.theta},
        "sliding_window": None,
        "tie_word_embeddings": case.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": case.rows,
    }


CONFIGS = {
    "dream": _dream,
    "llada": _llada,
    "sdar": _sdar,
    "fast-dllm-v2": _fast_dllm,
    "tiny-a2d-mdlm": _a2d,
    "tiny-a2d-bd3lm": _a2d,
    "illada": _illada,
    "nemotron": _nemotron,
}
