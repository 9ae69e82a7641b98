"""Model configs from and to the files of a Hugging Face folder.

config.json alone does not describe a masked-diffusion model: the mask id, the stop ids,
the number of real tokens and sometimes the block length come from the tokenizer files,
from generation_config.json, or from the caller.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.io import families
from jaxdave.io.expert_keys import experts_to_json, inexpressible_experts
from jaxdave.io.families import Family
from jaxdave.io.rope_config import scaling_to_json, scaling_type
from jaxdave.io.special_tokens import special_tokens_map, stop_and_pad_ids
from jaxdave.io.vocabulary import read_vocabulary

REAL_VOCAB_SIZE_KEY = "real_vocab_size"
"""Our own key of config.json: how many rows of the embedding are real tokens."""


def model_config(
    family: Family,
    raw: Mapping[str, Any],
    folder: Path,
    *,
    name: str,
    block_length: int | None = None,
    mask_id: int | None = None,
) -> ModelConfig:
    """Read the config of a folder in a family's layout.

    Args:
      family: the family of the folder, see `families.detect`.
      raw: the content of its config.json.
      folder: the folder, for its tokenizer files and generation_config.json.
      name: what the model is called.
      block_length: length of a block in tokens; overrides the files.
      mask_id: id of the mask token; overrides the files.

    Returns:
      The config.

    Raises:
      ValueError: neither the files nor the caller settle something that is needed, or
        files disagree.
    """
    fields = families.config_fields(family, raw)
    vocabulary = read_vocabulary(folder)
    stop_ids, pad_id = stop_and_pad_ids(folder, vocabulary.id_of, vocabulary.size)
    # Chat models end a turn with a token that
    # generation_config.json often leaves out; the family adds it.
    family_stop_ids = (vocabulary.id_of(token) for token in family.stop_tokens)
    stop_ids += tuple(i for i in family_stop_ids if i is not None and i not in stop_ids)
    # The embedding is usually padded beyond the tokenizer. Where it is the shorter one,
    # ids past its rows do not exist either.
    max_vocab_size = min(vocabulary.size, fields["vocab_rows"])
    return ModelConfig(
        name=name,
        family=family.name,
        block_length=_block_length(family, raw, folder, name, block_length),
        vocab_size=_vocab_size(raw, folder, max_vocab_size),
        mask_id=_mask_id(family, raw, folder, mask_id, vocabulary.id_of),
        pad_id=pad_id,
        stop_ids=stop_ids,
        **fields,
    )


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Build the config.json of a folder in the layout of the config's family.

    Args:
      config: the model.
      dtype: "float32", "bfloat16" or "float16", what the weights are stored as.

    Returns:
      The content of config.json; `model_config` makes the same config of it.

    Raises:
      ValueError: the config has switches that the family's layout cannot express.
    """
    family = families.FAMILIES[config.family]
    raw = {
        "architectures": list(family.architectures),
        "model_type": family.model_types[0],
        **{
            key: getattr(config, field)
            for field, (key, _, _) in family.config_keys.items()
        },
        **family.required_values,
        "torch_dtype": dtype,
        "mask_token_id": config.mask_id,
        "pad_token_id": config.pad_id,
        "eos_token_id": list(config.stop_ids),
        REAL_VOCAB_SIZE_KEY: config.vocab_size,
    }
    if family.block_length_key is not None:
        raw[family.block_length_key] = config.block_length
    if family.told_by is not None:
        key, value = family.told_by
        raw[key] = value
    if config.rope_scaling is not None:
        raw["rope_scaling"] = scaling_to_json(config.rope_scaling)
    if "head_dim" not in family.config_keys:
        raw["head_dim"] = config.head_dim
    if family.is_partly_rotated:
        raw["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    if family.experts is not None and config.experts is not None:
        raw |= experts_to_json(family.experts, config)
    mismatches = inexpressible_fields(family, config)
    if mismatches:
        raise ValueError(
            f"{', '.join(mismatches)}: a model of the family {family.name!r} cannot be "
            "saved so; use a config of that family with none of its switches changed"
        )
    return raw


def inexpressible_fields(family: Family, config: ModelConfig) -> list[str]:
    """List fields of a config that a reader of a family's layout would lose.

    Args:
      family: the family.
      config: the model.

    Returns:
      "FIELD=VALUE" for each of them; none where the layout can express the config.
    """
    defaults = {
        "attention": "block_causal",
        "logits_shift": "none",
        "qk_norm": False,
        "qkv_bias": False,
        "o_bias": False,
        "rope_fp32": False,
    }
    # A field with a key of its own in config.json may have any value.
    implied = {
        field: value
        for field, value in defaults.items()
        if field not in family.config_keys
    }
    implied = {**implied, **family.config_values}
    if not family.is_partly_rotated:
        implied["rotary_dim"] = config.head_dim
    scaling = config.rope_scaling
    if scaling is not None and scaling_type(scaling) not in family.rope_types:
        implied["rope_scaling"] = None
    # One key may say two fields, which must agree then.
    values_by_key: dict[str, Any] = {}
    for field, (key, _, _) in family.config_keys.items():
        value = getattr(config, field)
        if values_by_key.setdefault(key, value) != value:
            implied[field] = values_by_key[key]
    mismatches = [
        f"{field}={getattr(config, field)!r}"
        for field, value in implied.items()
        if getattr(config, field) != value
    ]
    if family.is_rope_scaled and scaling is None:
        mismatches.append("rope_scaling=None")
    return mismatches + inexpressible_experts(family.experts, config)


def _block_length(
    family: Family,
    raw: Mapping[str, Any],
    folder: Path,
    name: str,
    override: int | None,
) -> int:
    """The block length that the model was trained with, in tokens."""
    if override is not None:
        return override
    if family.block_length_key is None:
        return families.FULL_ATTENTION_BLOCK
    block_length = raw.get(family.block_length_key)
    if block_length is None:
        block_length = family.published_block_length(name)
    if type(block_length) is not int:
        raise ValueError(
            f"{folder}: {family.block_length_key}={block_length!r} in config.json must "
            "be the block length of the training; give it with --block-length or "
            "block_length (4 for SDAR-Chat and TraDo, 8 for SDAR-Chat-b8, 32 for "
            "Fast-dLLM v2 and Nemotron)"
        )
    return block_length


def _vocab_size(raw: Mapping[str, Any], folder: Path, max_size: int) -> int:
    """The number of real tokens; the embedding's rows after them are padding."""
    # Ids that the tokenizer lacks have no text, so they must never be predicted.
    size = raw.get(REAL_VOCAB_SIZE_KEY, max_size)
    if type(size) is not int or not 0 < size <= max_size:
        raise ValueError(
            f"{folder}: {REAL_VOCAB_SIZE_KEY}={size!r} in config.json must be a number "
            f"up to the tokenizer's {max_size}; take both from one folder"
        )
    return size


def _mask_id(
    family: Family,
    raw: Mapping[str, Any],
    folder: Path,
    override: int | None,
    id_of: Callable[[str | None], int | None],
) -> int:
    """The mask id: the caller's, config.json's, the tokenizer's or the family's."""
    token = special_tokens_map(folder).get("mask_token")
    tokenizer_id = id_of(token)
    config_id = raw.get("mask_token_id")
    if config_id is not None and type(config_id) is not int:
        raise ValueError(
            f"{folder}: mask_token_id={config_id!r} of config.json must be a token id; "
            "fetch the file again"
        )
    if override is not None:
        # An override settles what files leave open. Against all of them it would show
        # the model an ordinary token where it was trained to see masks.
        known = {config_id, tokenizer_id} - {None}
        if len(known) == 1 and override not in known:
            raise ValueError(
                f"{folder}: mask_id={override} contradicts the files, whose mask id is "
                f"{known.pop()}; leave it out"
            )
        return override
    mask_id = config_id
    if mask_id is None:
        mask_id = id_of(family.mask_token) if tokenizer_id is None else tokenizer_id
    if mask_id is None:
        raise ValueError(
            f"{folder}: neither config.json (mask_token_id) nor the tokenizer "
            f"(mask_token={token!r}) knows the mask id; give it with --mask-id "
            "of jaxdave-convert, or mask_id in Python"
        )
    # With the wrong one of two ids the model would see an ordinary token where it was
    # trained to see masks, and nothing would fail.
    if None not in (config_id, tokenizer_id) and config_id != tokenizer_id:
        raise ValueError(
            f"{folder}: mask_token_id={config_id!r} of config.json must be the id of "
            f"the tokenizer's mask token, {tokenizer_id}; give the right one with "
            "--mask-id of jaxdave-convert, or mask_id in Python"
        )
    return mask_id
