"""Frozen records that describe a model and how its tokens are sampled.

One decoder-only transformer covers Dream, LLaDA, SDAR/TraDo and Fast-dLLM v2, and their
mixtures of experts (`experts_config`), with the fields of `ModelConfig`; the values of
published checkpoints are in `models.presets`.
"""

import dataclasses
import enum
import math
from typing import Literal

from jaxdave.core.experts_config import ExpertsConfig

BLOCK_LENGTHS = (1, 2, 4, 8, 16, 32, 64)
"""Block lengths of block-causal models: the divisors of `models.attention.TILE`."""


_LARGEST = {
    "num_layers": 2**12,
    "hidden": 2**20,
    "inter": 2**22,
    "heads": 2**14,
    "kv_heads": 2**14,
    "head_dim": 2**14,
    "vocab_rows": 2**26,
    "max_positions": 2**30,
}
"""Sizes beyond those of any model, which are taken for a broken config: arrays of such
sizes, or lists of so many tensors, would fill the memory before anything is refused."""


_CHOICES = {
    "attention": ("block_causal", "causal_context", "full"),
    "logits_shift": ("none", "full", "block"),
}


class Numerics(enum.StrEnum):
    """How a call's floating-point results relate to its shape.

    XLA picks another order of summation for another shape, so the same state evaluated
    in a call with 4 drafts or with 8 can differ in the last bits, and a near tie can
    then fall the other way. Members compare equal to their strings.

    Attributes:
        GUARDED: Calls of any shape. A decision that lies within the measured numerical
            error is computed again in one trusted shape, so that the text does not
            depend on drafts or batch. Activations are float32.
        EXACT: Every state is computed in one fixed shape, so that its bits do not
            depend on what else is in the call. Slower; the reference.
        FAST: Calls of any shape, and no second look. The text may depend on the drafts
            where two tokens are nearly tied.
    """

    GUARDED = "guarded"
    EXACT = "exact"
    FAST = "fast"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary frequencies of a model that was trained on longer texts afterwards.

    Frequencies that turn fewer than `low_turns` times within the first training's
    length are divided by `factor`, those that turn more than `high_turns` times stay
    as they are, and in between both are mixed.

    Attributes:
        factor: What low frequencies are divided by.
        low_turns: Llama's low_freq_factor.
        high_turns: Its high_freq_factor.
        positions: The first training's length, its original_max_position_embeddings.

    Raises:
        ValueError: A value is out of its range.

    Source: Llama 3.1's `rope_type` "llama3".
    """

    factor: float
    low_turns: float
    high_turns: float
    positions: int

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor={self.factor} must be above 0 and finite")
        if not 0 < self.low_turns < self.high_turns < math.inf:
            raise ValueError(
                f"low_freq_factor={self.low_turns} must be above 0 and below "
                f"high_freq_factor={self.high_turns}"
            )
        if not 1 <= self.positions <= _LARGEST["max_positions"]:
            raise ValueError(
                f"original_max_position_embeddings={self.positions} must be in "
                f"1..{_LARGEST['max_positions']}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Rotary frequencies of a model whose context YaRN has extended.

    Frequencies that turn more than `beta_fast` times within the first training's length
    stay as they are, those that turn fewer than `beta_slow` times are divided by
    `factor`, and in between both are mixed.

    Attributes:
        factor: What low frequencies are divided by.
        positions: The first training's length, its original_max_position_embeddings.
        beta_fast: Turns from which frequencies stay.
        beta_slow: Turns up to which they are divided.
        mscale: Cosines and sines are multiplied by 1 + 0.1 mscale ln(factor), and
            divided by the same of `mscale_all_dim`.
        mscale_all_dim: See `mscale`.
        query_beta: Queries at position p are multiplied by
            1 + query_beta ln(1 + floor(p / positions)); 0: they are not.

    Raises:
        ValueError: A value is out of its range.

    Source: YaRN, arXiv 2309.00071; the scale of queries is Llama 4's, as in Ministral 3
    (`llama_4_scaling_beta`).
    """

    factor: float
    positions: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    query_beta: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor={self.factor} must be at least 1 and finite")
        if not 0 < self.beta_slow < self.beta_fast < math.inf:
            raise ValueError(
                f"beta_slow={self.beta_slow} must be above 0 and below "
                f"beta_fast={self.beta_fast}"
            )
        for name in ("mscale", "mscale_all_dim"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be above 0 and finite"
                )
        if not 0 <= self.query_beta < math.inf:
            raise ValueError(
                f"llama_4_scaling_beta={self.query_beta} must be 0 or more and finite"
            )
        if not 1 <= self.positions <= _LARGEST["max_positions"]:
            raise ValueError(
                f"original_max_position_embeddings={self.positions} must be in "
                f"1..{_LARGEST['max_positions']}"
            )

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        one, other = (
            1 + 0.1 * scale * math.log(self.factor)
            for scale in (self.mscale, self.mscale_all_dim)
        )
        return one / other


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape and the variant switches of one model.

    Attributes:
        name: Name of the preset or checkpoint, for messages and file names.
        family: The family whose file names, templates and decoding habits apply, a
            name of `jaxdave.io.families.FAMILIES`.
        num_layers: Transformer layers.
        hidden: Width of the residual stream.
        inter: Width inside the MLP; of a mixture of experts inside its dense layers.
        heads: Query heads, a multiple of `kv_heads`.
        kv_heads: Key/value heads (grouped-query attention).
        head_dim: Features of one head.
        vocab_rows: Rows of the embedding, padding included.
        vocab_size: How many of them are real tokens; rows beyond are never predicted.
        mask_id: The id that stands for a token not decoded yet.
        pad_id: The padding id.
        stop_ids: Ids that end an answer.
        block_length: Tokens of a block. Part of the model where attention is
            block-causal, only the default of the decoder where it is full.
        attention: "block_causal": a position sees everything up to the end of its own
            block, blocks counted from position 0. "causal_context": a position sees
            what is to its left, and in a block with masks the whole block; blocks are
            counted from the first generated position, whose token, like the first one
            of every block, is predicted by the position before it (Nemotron). "full":
            it sees the whole canvas.
        logits_shift: Which output predicts position i. "none": its own. "full": the one
            at i - 1 (Dream). "block": the one at i - 1 inside a block only
            (Fast-dLLM v2).
        qkv_bias: Whether the projections to queries, keys and values have a bias.
        o_bias: Whether the projection out of attention has a bias.
        qk_norm: Whether queries and keys are RMS-normed per head.
        tie_embeddings: Whether the head is the embedding.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How the frequencies are scaled; None: they are not.
        rope_fp32: Whether queries and keys are rotated in float32 and cast back
            (LLaDA).
        rotary_dim: How many leading features of a head are rotated; even.
        rms_eps: Epsilon of the RMS norms.
        max_positions: The longest sequence that the model was trained for.
        experts: The experts that take the place of the MLP; None: the model is dense.

    Raises:
        ValueError: A value breaks a rule of the architecture.
    """

    name: str
    family: str
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
    attention: Literal["block_causal", "causal_context", "full"] = "block_causal"
    logits_shift: Literal["none", "full", "block"] = "none"
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    rope_theta: float = 1e6
    rope_fp32: bool = False
    rotary_dim: int = 128
    rms_eps: float = 1e-6
    max_positions: int = 32768
    rope_scaling: RopeScaling | YarnScaling | None = None
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        for field, largest in _LARGEST.items():
            if not 1 <= getattr(self, field) <= largest:
                raise ValueError(
                    f"{field}={getattr(self, field)} must be in 1..{largest}; check "
                    "the config"
                )
        if not 0 < self.rope_theta < math.inf:
            raise ValueError(
                f"rope_theta={self.rope_theta} must be above 0 and finite; check the "
                "config"
            )
        if not 0 <= self.rms_eps < 1:
            raise ValueError(
                f"rms_eps={self.rms_eps} must be in 0..1, such as 1e-6; check the "
                "config's rms_norm_eps"
            )
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
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} must be one of "
                    f"{', '.join(choices)}; check the config"
                )
        # Only there is the block a part of the network: exact attention folds over
        # tiles, and a block must not straddle two of them.
        if self.attention != "full":
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
        if self.experts is not None and self.experts.dense_layers >= self.num_layers:
            raise ValueError(
                f"experts: dense_layers={self.experts.dense_layers} must be below "
                f"num_layers={self.num_layers}; check the config"
            )

    @property
    def dense_layers(self) -> int:
        """How many of the first layers are dense where others have experts."""
        return 0 if self.experts is None else self.experts.dense_layers

    @property
    def eos_id(self) -> int:
        """The id of the end of a text, where others of `stop_ids` end a turn.

        It is the stop id that also pads, as in all published checkpoints; otherwise the
        first stop id.
        """
        return self.pad_id if self.pad_id in self.stop_ids else self.stop_ids[0]

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids below `vocab_size` that no decoder may ever predict."""
        return (self.mask_id,)


def check_dense(config: ModelConfig, what: str, remedy: str) -> None:
    """Check that a model has no experts, for what does not support them.

    Args:
        config: The model.
        what: What does not, e.g. "mesh".
        remedy: What to do instead.

    Raises:
        ValueError: The model is a mixture of experts.
    """
    if config.experts is not None:
        raise ValueError(
            f"{what} is not supported for {config.name!r}, a mixture of "
            f"{config.experts.count} experts; {remedy}"
        )


def check_no_causal_context(config: ModelConfig, what: str) -> None:
    """Check a model's attention, for what does not support a causal context.

    Args:
        config: The model.
        what: What does not, e.g. "training".

    Raises:
        ValueError: The model's finished blocks are causal.
    """
    if config.attention == "causal_context":
        raise ValueError(
            f"{what} is not supported for {config.name!r}, whose finished blocks are "
            "causal; it can be decoded, converted and exported"
        )


def check_block_length(block_length: int) -> None:
    """Check that whole blocks fill a tile of keys.

    Args:
        block_length: Tokens of a block of a block-causal model.

    Raises:
        ValueError: It is none of `BLOCK_LENGTHS`.
    """
    if block_length not in BLOCK_LENGTHS:
        raise ValueError(
            f"block_length={block_length} must divide 64; "
            f"use one of {', '.join(map(str, BLOCK_LENGTHS))}"
        )


NOISE_CHUNK = 8192
"""Vocabulary ids whose noise is drawn under one key. It is part of the noise's
definition: another number would give other samples for the same seed."""


MIN_TEMPERATURE = 1e-20
"""The lowest temperature that logits are divided by. There the noise, of some ten nats,
decides between equal logits only, as in the limit of 0; at 1e-38 the quotient would be
beyond float32."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Temperature and filters of the sampler.

    Filters are applied to the tempered logits before the noise, top-k first, then
    top-p. Confidence scores are those of the unfiltered distribution.

    Attributes:
        temperature: What logits are divided by; 0 takes the best token. Below
            `MIN_TEMPERATURE` nothing changes any more.
        top_k: How many of the best tokens may be sampled; 0 is off.
        top_p: The probability mass that may be sampled, in (0, 1]; 1 is off.
        plain_confidence: Confidence scores are of the distribution at temperature 1,
            softmax(logits), as in code that descends from LLaDA's generate.py (LLaDA,
            Fast-dLLM and Prophet on it); otherwise of the tempered one, as in Dream's,
            SDAR's and FreeDave's.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> SamplingConfig(temperature=0.7, top_k=50).filtered
        True
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    plain_confidence: bool = False

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature={self.temperature} must be 0 (the best token) or more, "
                "and finite"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1 (off)")

    @property
    def noisy(self) -> bool:
        """Whether tokens are sampled at all."""
        return self.temperature > 0

    @property
    def filtered(self) -> bool:
        """Whether a filter can exclude a token from being sampled."""
        return self.noisy and (self.top_k > 0 or self.top_p < 1)


def logit_scale(sampling: SamplingConfig) -> float:
    """The factor that logits are multiplied by before anything else.

    Args:
        sampling: Temperature and filters.

    Returns:
        1 / temperature, or 1 where the best token is taken.
    """
    return 1.0 / max(sampling.temperature, MIN_TEMPERATURE) if sampling.noisy else 1.0


def confidence_scale(sampling: SamplingConfig) -> float:
    """The factor that logits are multiplied by where they say how sure the model is.

    Args:
        sampling: Temperature and filters.

    Returns:
        `logit_scale`, or 1 for plain confidences.
    """
    return 1.0 if sampling.plain_confidence else logit_scale(sampling)


MAX_GUIDANCE = 1e6
"""Beyond it float32 logits would be noise."""


def check_guidance_scale(guidance: float) -> None:
    """Check a scale of classifier-free guidance.

    Args:
        guidance: The scale; 0 is off.

    Raises:
        ValueError: It is below 0, not a number or too large.
    """
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise ValueError(f"guidance={guidance} must be 0 (off) to {MAX_GUIDANCE}")


def check_guidance(guidance: float, config: ModelConfig) -> None:
    """Check that a model can be guided at a scale.

    Args:
        guidance: The scale; 0 is off.
        config: The model.

    Raises:
        ValueError: The scale is out of range, or the model is block-causal.
    """
    check_guidance_scale(guidance)
    if guidance and config.attention != "full":
        raise ValueError(
            f"guidance={guidance} needs full attention, and {config.name!r} is "
            "block-causal; leave it out"
        )
