"""What a masked-diffusion transformer is, as one frozen record, and its presets.

One decoder-only transformer covers Dream, LLaDA, SDAR/TraDo and Fast-dLLM v2 with the
switches below. The numbers of the presets come from the published configs of those
checkpoints; where a value is not in a config (SDAR's mask id and block length) it comes
from the tokenizer files and the training code of the same repository.
"""

import dataclasses
from typing import Literal

BLOCK_LENGTHS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape and the quirks of one model.

    attention: "block_causal" sees everything up to the end of its own block, blocks
        counted from position 0; "full" sees the whole canvas.
    logits_shift: "full" predicts position i from the output at i - 1 (Dream); "block"
        does so inside a block only (Fast-dLLM v2); "none" predicts in place.
    vocab_rows: rows of the embedding; vocab_size: how many of them are real tokens. The
        rows beyond can never be predicted.
    rope_fp32: rotate queries and keys in float32 and cast back (LLaDA).
    Raises ValueError when a value breaks a rule of the architecture.
    """

    name: str
    family: Literal["dream", "llada", "sdar", "fast-dllm-v2"]
    num_layers: int
    hidden: int
    inter: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_rows: int
    vocab_size: int
    mask_id: int
    pad_id: int
    stop_ids: tuple[int, ...]
    block_length: int = 4
    attention: Literal["block_causal", "full"] = "block_causal"
    logits_shift: Literal["none", "full", "block"] = "none"
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    rope_theta: float = 1e6
    rope_fp32: bool = False
    rotary_dim: int = 128
    rms_eps: float = 1e-6
    max_positions: int = 32768

    def __post_init__(self) -> None:
        for field in ("num_layers", "hidden", "inter", "heads", "kv_heads", "head_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}; "
                "check the config's num_key_value_heads"
            )
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"rotary_dim={self.rotary_dim} must be even and at most "
                f"head_dim={self.head_dim}"
            )
        if self.attention == "block_causal":
            check_block_length(self.block_length)
        elif self.block_length < 1:
            raise ValueError(f"block_length={self.block_length} must be at least 1")
        if not 0 < self.vocab_size <= self.vocab_rows:
            raise ValueError(
                f"vocab_size={self.vocab_size} must be in 1..vocab_rows="
                f"{self.vocab_rows}; pad the embedding or lower the size"
            )
        for field in ("mask_id", "pad_id"):
            if not 0 <= getattr(self, field) < self.vocab_rows:
                raise ValueError(
                    f"{field}={getattr(self, field)} must be a row of the embedding "
                    f"(0..{self.vocab_rows - 1}); take it from the tokenizer"
                )

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids below `vocab_size` that no decoder may ever predict."""
        return (self.mask_id,)


def check_block_length(block_length: int) -> None:
    """Raise ValueError unless the length is one that a tile of keys can hold."""
    if block_length not in BLOCK_LENGTHS:
        raise ValueError(
            f"block_length={block_length} must divide 64; "
            f"use one of {', '.join(map(str, BLOCK_LENGTHS))}"
        )


NOISE_CHUNK = 8192
"""Ids whose noise is drawn together; another number would draw other noise."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Temperature and filters; top_k=0 and top_p=1 mean off.

    Filters are applied to the tempered logits before the noise (top-k, then top-p);
    the score is that of the unfiltered tempered distribution. Raises ValueError for a
    value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(
                f"temperature={self.temperature} must be 0 (the best token) or more"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1 (off)")

    @property
    def noisy(self) -> bool:
        return self.temperature > 0

    @property
    def filtered(self) -> bool:
        return self.noisy and (self.top_k > 0 or self.top_p < 1)


def logit_scale(sampling: SamplingConfig) -> float:
    """What logits are multiplied by before anything else."""
    return 1.0 / sampling.temperature if sampling.noisy else 1.0
