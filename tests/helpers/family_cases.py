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
      bias: SDAR's projections in and out of attention have biases.
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
        return ("--block-length", str(self.block)) if self.family == "sdar" else ()


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
)


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


CONFIGS = {
    "dream": _dream,
    "llada": _llada,
    "sdar": _sdar,
    "fast-dllm-v2": _fast_dllm,
}
