"""Autoregressive checkpoints, read as models of masked diffusion that have no training.

Attention is opened to the whole text or to blocks, and a mask token is named or added.
Such a model predicts nothing of use yet: it is where training starts. `jaxdave.load`
refuses these folders for that reason.

Source: Dream (arXiv 2508.15487), SDAR (2510.06303) and Fast-dLLM v2 (2509.26328) start
from Qwen2.5 and Qwen3 so; dllm's A2D does with or without the shift.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from jaxdave.core.config import ModelConfig, check_block_length
from jaxdave.core.model_api import Params
from jaxdave.io import families, hf_config, mask_token, safetensors_io
from jaxdave.io.family_records import FULL_ATTENTION_BLOCK, Family, NullKey
from jaxdave.io.tensor_names import QWEN_TENSORS
from jaxdave.runtime.files import read_json

_QWEN2 = dataclasses.replace(
    families.FAST_DLLM,
    name="qwen2",
    model_types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    config_values={"qkv_bias": True},
    rope_types=("llama3",),
)
_QWEN3 = dataclasses.replace(
    families.SDAR,
    name="qwen3",
    model_types=("qwen3",),
    architectures=("Qwen3ForCausalLM",),
    rope_types=("llama3",),
)
_LLAMA = Family(
    name="llama",
    model_types=("llama",),
    architectures=("LlamaForCausalLM",),
    tensor_names=QWEN_TENSORS,
    config_keys={
        **{
            field: entry
            for field, entry in families.SDAR.config_keys.items()
            if field != "head_dim"
        },
        "rope_theta": ("rope_theta", float, 1e4),
    },
    required_values={"hidden_act": "silu", "rope_scaling": None, "mlp_bias": False},
    config_values={},
    tensor_marker=".self_attn.q_proj.weight",
    excluded_markers=(".q_norm.", ".experts."),
    block_length_key=None,
    stop_tokens=("<|eot_id|>",),
    mask_token="<|mask|>",
    null_keys={
        "num_key_value_heads": NullKey("num_attention_heads", if_absent=True),
    },
    rope_types=("llama3",),
)
AUTOREGRESSIVE: Mapping[str, tuple[Family, tuple[Family, ...]]] = {
    "qwen2": (_QWEN2, (families.DREAM, families.FAST_DLLM, families.A2D)),
    "qwen3": (_QWEN3, (families.SDAR, families.A2D)),
    "llama": (_LLAMA, (families.LLADA, families.A2D)),
}
"""model_type of config.json -> how such a folder is read, and the families of what it
becomes: the first one that has its layers, its attention and its shift."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """What an autoregressive model is made into.

    Attributes:
        attention: "full", or "block_causal": a position sees its own block and those
            before it.
        block_length: Tokens of a block. It must be given for "block_causal"; for "full"
            it is only what decoding goes by, 32 by default.
        shift: The output at i - 1 predicts token i, as the model has learnt it. Without
            it the output at i does, which it has yet to learn.
        mask_token: The text of the mask token. A token of that text is taken where the
            tokenizer has one, such as an unused one; otherwise it is added. None: the
            tokenizer's own, or one under a usual name, or "<|mask|>" is added.

    Raises:
        ValueError: The attention is unknown, or the block length is missing or wrong.

    Example:
        >>> Opening(attention="block_causal", block_length=4).logits_shift
        'block'
    """

    attention: Literal["full", "block_causal"]
    block_length: int | None = None
    shift: bool = True
    mask_token: str | None = None

    def __post_init__(self) -> None:
        if self.attention not in ("full", "block_causal"):
            raise ValueError(
                f"attention={self.attention!r} must be 'full' or 'block_causal'"
            )
        if self.attention == "block_causal":
            if self.block_length is None:
                raise ValueError(
                    "attention='block_causal' needs a block_length, such as 4 (SDAR) "
                    "or 32 (Fast-dLLM v2); give it, or use attention='full'"
                )
            check_block_length(self.block_length)
        if self.mask_token == "":
            raise ValueError("mask_token='' must be the text of a token, or left out")

    @property
    def logits_shift(self) -> Literal["none", "full", "block"]:
        """The shift, as `ModelConfig.logits_shift` has it for this attention."""
        if not self.shift:
            return "none"
        return "full" if self.attention == "full" else "block"


def is_autoregressive(folder: Path) -> bool:
    """Tell a folder of an autoregressive model that training can start from.

    Args:
        folder: A checkpoint folder.

    Returns:
        Whether its config.json says so.

    Raises:
        ValueError: The folder has no config.json that can be read.
    """
    return read_json(folder / "config.json").get("model_type") in AUTOREGRESSIVE


def read_autoregressive(
    folder: Path, opening: Opening, *, name: str, dtype: str
) -> tuple[ModelConfig, Params, dict[str, bytes]]:
    """Read an autoregressive checkpoint, its attention opened.

    Args:
        folder: A folder in the layout of transformers: Qwen2, Qwen3 or Llama.
        opening: What becomes of it.
        name: What the model is called.
        dtype: "float32", "bfloat16" or "float16", the parameters' dtype whatever the
            files hold.

    Returns:
        The config; the parameters, arrays of the host in the structure of
        `param_shapes`; and the tokenizer files by name, with the mask token in them.

    Raises:
        ValueError: The folder is of another architecture or incomplete, or its weights
            are not those of its config.json: one line names everything wrong with them.
    """
    raw = read_json(folder / "config.json")
    if raw.get("model_type") not in AUTOREGRESSIVE:
        raise ValueError(
            f"{folder}: model_type={raw.get('model_type')!r} in config.json must be "
            f"one of {', '.join(AUTOREGRESSIVE)}, whose attention can be opened; leave "
            "the opening out for a diffusion model"
        )
    source, results = AUTOREGRESSIVE[raw["model_type"]]
    mask = mask_token.find_or_add(folder, opening.mask_token)
    # Of the folder as it is: blocks of 1 are causal attention, and a new mask token
    # has no row yet, which any other stands for.
    stored = hf_config.model_config(
        source,
        {key: raw[key] for key in raw if key != "mask_token_id"},
        folder,
        name=name,
        block_length=1,
        mask_id=0 if mask.is_new else mask.token_id,
    )
    if mask.token_id in (stored.pad_id, *stored.stop_ids):
        raise ValueError(
            f"{folder}: mask_token={mask.token!r} pads or ends a text (id "
            f"{mask.token_id}); name an unused token, or leave it out to add one"
        )
    params = safetensors_io.read_weights(folder, stored, dtype, source.tensor_names)
    opened = dataclasses.replace(
        stored,
        attention=opening.attention,
        logits_shift=opening.logits_shift,
        block_length=opening.block_length or FULL_ATTENTION_BLOCK,
        mask_id=mask.token_id,
        vocab_rows=max(stored.vocab_rows, mask.token_id + 1),
        vocab_size=max(stored.vocab_size, mask.token_id + 1),
    )
    if mask.is_new:
        params = _with_row(params, stored.vocab_size, mask.token_id)
    return _of_a_family(opened, results), params, mask.files


def _of_a_family(config: ModelConfig, candidates: tuple[Family, ...]) -> ModelConfig:
    """The config under the first family whose files can express it."""
    for family in candidates:
        own = dataclasses.replace(config, family=family.name)
        if not hf_config.inexpressible_fields(family, own):
            return own
    raise AssertionError(f"{candidates[-1].name} expresses every config")


def _with_row(params: Params, vocab_size: int, row: int) -> Params:
    """Tables with the mean of all real tokens in one row, appended where they end."""

    def extend(table: np.ndarray) -> np.ndarray:
        real = table[:vocab_size].astype(np.float32)
        mean = np.mean(real, axis=0, dtype=np.float64).astype(table.dtype)
        missing = max(0, row + 1 - len(table))
        table = np.concatenate([table, np.repeat(mean[None], missing, axis=0)])
        table[row] = mean
        return table

    tables = {
        name: extend(params[name]) for name in ("embedding", "head") if name in params
    }
    return {**params, **tables}
