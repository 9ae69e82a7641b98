"""Presets: the configs of published checkpoints and of the demo models.

The numbers come from the published config files; where a value is not in one (SDAR's
mask id and block length) it comes from the tokenizer files and the training code of the
same repository.
"""

from typing import Any

from jaxdave.core.config import ModelConfig, YarnScaling
from jaxdave.core.experts_config import ExpertsConfig

# Dream and Fast-dLLM v2 (7B) have the shape of Qwen2.5-7B. The embedding has more rows
# than the tokenizer has ids: the rest is padding, as elsewhere below.
_QWEN25_7B = dict(
    num_layers=28,
    hidden=3584,
    inter=18944,
    heads=28,
    kv_heads=4,
    head_dim=128,
    vocab_rows=152064,
    qkv_bias=True,
)
_DREAM = dict(
    family="dream",
    vocab_size=151667,
    attention="full",
    logits_shift="full",
    block_length=32,
    mask_id=151666,
    pad_id=151643,
    stop_ids=(151643, 151645),
    max_positions=131072,
    **_QWEN25_7B,
)
_LLADA = dict(
    family="llada",
    num_layers=32,
    hidden=4096,
    inter=12288,
    heads=32,
    kv_heads=32,
    head_dim=128,
    vocab_rows=126464,
    vocab_size=126349,
    attention="full",
    block_length=32,
    rope_theta=5e5,
    rope_fp32=True,
    rms_eps=1e-5,
    mask_id=126336,
    pad_id=126081,
    stop_ids=(126081, 126348),
    max_positions=4096,
)
# SDAR has the shape of Qwen3, with its norms on queries and keys; TraDo has SDAR's.
_SDAR = dict(
    family="sdar",
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_rows=151936,
    vocab_size=151670,
    qk_norm=True,
    mask_id=151669,
    pad_id=151643,
    stop_ids=(151645, 151643),
)
_SDAR_4B = dict(_SDAR, num_layers=36, hidden=2560, inter=9728)
_SDAR_8B = dict(_SDAR, num_layers=36, hidden=4096, inter=12288)
_FAST_DLLM = dict(
    family="fast-dllm-v2",
    vocab_size=151666,
    block_length=32,
    logits_shift="block",
    mask_id=151665,
    pad_id=151645,
    stop_ids=(151645,),
)
# LLaDA2.0 and 2.1. What ends a turn, <|role_end|>, has an id in the tokenizer's files
# only.
_LLADA2 = dict(
    family="llada2",
    kv_heads=4,
    head_dim=128,
    rotary_dim=64,
    vocab_rows=157184,
    vocab_size=157184,
    block_length=32,
    qk_norm=True,
    rope_theta=6e5,
    mask_id=156895,
    pad_id=156892,
    stop_ids=(156892,),
)
_LLADA2_EXPERTS = ExpertsConfig(
    count=256,
    per_token=8,
    inter=512,
    shared_inter=512,
    score="sigmoid",
    bias="choice",
    groups=8,
    kept_groups=4,
    renormalize=True,
    scale=2.5,
    dense_layers=1,
)
# Small enough to train on a CPU and to decode
# in tests, with every switch of its family.
_DEMO = dict(
    num_layers=4,
    hidden=128,
    inter=384,
    heads=4,
    head_dim=32,
    rotary_dim=32,
    vocab_rows=832,
    vocab_size=776,
    rope_theta=1e4,
    mask_id=775,
    pad_id=772,
    stop_ids=(774, 772),
    max_positions=2048,
)

# Names ending in -1m are the demo models that are trained and shipped with jaxdave; but
# llada2-1m, a mixture of experts, and sdar-edit-1m, which edits, are not in the package
# (bench/models).
PRESETS: dict[str, dict] = {
    "sdar-1m": dict(_DEMO, family="sdar", kv_heads=2, qk_norm=True),
    "sdar-edit-1m": dict(
        _DEMO, family="sdar", kv_heads=2, qk_norm=True, block_length=16, num_layers=3
    ),
    "llada-1m": dict(
        _DEMO,
        family="llada",
        kv_heads=4,
        attention="full",
        rope_fp32=True,
        rms_eps=1e-5,
        block_length=32,
    ),
    "dream-1m": dict(
        _DEMO,
        family="dream",
        kv_heads=2,
        qkv_bias=True,
        attention="full",
        logits_shift="full",
        block_length=32,
    ),
    # LLaDA2's router, and its dense first layer.
    "llada2-1m": dict(
        _DEMO,
        family="llada2",
        kv_heads=2,
        qk_norm=True,
        experts=ExpertsConfig(
            count=16,
            per_token=2,
            inter=20,
            shared_inter=20,
            score="sigmoid",
            bias="choice",
            groups=4,
            kept_groups=2,
            renormalize=True,
            scale=2.0,
            dense_layers=1,
        ),
    ),
    "dream-7b": _DREAM,
    "dream-coder-7b": dict(_DREAM, max_positions=32768),
    "diffucoder-7b": _DREAM,
    "llada-8b": _LLADA,
    "llada-1.5": _LLADA,
    "sdar-1.7b": dict(_SDAR, num_layers=28, hidden=2048, inter=6144, heads=16),
    "sdar-4b": _SDAR_4B,
    "sdar-8b": _SDAR_8B,
    "trado-4b": _SDAR_4B,
    "trado-8b": _SDAR_8B,
    "fast-dllm-v2-1.5b": dict(
        _FAST_DLLM,
        num_layers=28,
        hidden=1536,
        inter=8960,
        heads=12,
        kv_heads=2,
        head_dim=128,
        vocab_rows=151936,
        qkv_bias=True,
        tie_embeddings=True,
    ),
    "fast-dllm-v2-7b": dict(_FAST_DLLM, **_QWEN25_7B),
    "llada2-mini": dict(
        _LLADA2,
        num_layers=20,
        hidden=2048,
        inter=5120,
        heads=16,
        experts=_LLADA2_EXPERTS,
    ),
    "nemotron-14b": dict(
        family="nemotron",
        num_layers=40,
        hidden=5120,
        inter=16384,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocab_rows=131072,
        vocab_size=131072,
        block_length=32,
        attention="causal_context",
        rope_theta=1e9,
        rope_scaling=YarnScaling(
            factor=16.0,
            positions=16384,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
            query_beta=0.1,
        ),
        rms_eps=1e-5,
        mask_id=100,
        pad_id=11,
        stop_ids=(11,),
        max_positions=262144,
    ),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The config of a published or a demo model.

    Args:
        name: A key of `PRESETS`.
        **changes: Fields of `ModelConfig` to replace.

    Returns:
        The config.

    Raises:
        ValueError: The name is unknown, or a changed value breaks a rule.

    Example:
        >>> preset("sdar-1m", block_length=8).block_length
        8
    """
    if name not in PRESETS:
        raise ValueError(
            f"preset {name!r} is unknown; use one of {', '.join(sorted(PRESETS))}"
        )
    return ModelConfig(**{"name": name, **PRESETS[name], **changes})
