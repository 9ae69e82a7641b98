"""What a checkpoint folder's own files say of its model, and how they are made."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.io import families, tokenizer
from jaxdave.io.families import Family
from jaxdave.io.tokenizer import end_ids, named_tokens

# Our own key: how many rows of the embedding are real tokens.
REAL_SIZE = "real_vocab_size"


def model_config(
    family: Family,
    raw: Mapping[str, Any],
    folder: Path,
    *,
    name: str,
    block_length: int | None = None,
    mask_id: int | None = None,
) -> ModelConfig:
    """The config of a folder of a family, from its config.json and tokenizer files.

    block_length, mask_id: go before what the files say. Raises ValueError where neither
    the files nor the caller say something that is needed, or where files disagree.
    """
    fields = families.fields_of(family, raw)
    known = tokenizer.read_vocabulary(folder)
    stop_ids, pad_id = end_ids(folder, known.id_of, known.size)
    more = (known.id_of(token) for token in family.stop_tokens)
    stop_ids += tuple(i for i in more if i is not None and i not in stop_ids)
    return ModelConfig(
        name=name,
        family=family.name,  # type: ignore[arg-type]
        block_length=_block_length(family, raw, folder, block_length),
        vocab_size=_vocab_size(raw, folder, min(known.size, fields["vocab_rows"])),
        mask_id=_mask_id(family, raw, folder, mask_id, known.id_of),
        pad_id=pad_id,
        stop_ids=stop_ids,
        **fields,
    )


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a folder of the config's family.

    Raises ValueError for switches that the family does not have.
    """
    family = families.FAMILIES[config.family]
    keys = {key: getattr(config, field) for field, (key, _, _) in family.fields.items()}
    made = {
        "architectures": list(family.classes),
        "model_type": family.model_types[0],
        **keys,
        **family.fixed,
        "torch_dtype": dtype,
        "mask_token_id": config.mask_id,
        "pad_token_id": config.pad_id,
        "eos_token_id": list(config.stop_ids),
        REAL_SIZE: config.vocab_size,
    }
    if family.block_key is not None:
        made[family.block_key] = config.block_length
    if "head_dim" not in family.fields:
        made["head_dim"] = config.head_dim
    odd = _odd_switches(family, config)
    if odd:
        raise ValueError(
            f"{', '.join(odd)}: a model of the family {family.name!r} cannot be saved "
            "so; use a config of that family with none of its switches changed"
        )
    return made


def _odd_switches(family: Family, config: ModelConfig) -> list[str]:
    """What the config says that a folder of the family could not."""
    plain = {"attention": "block_causal", "logits_shift": "none"}
    plain |= {"qk_norm": False, "qkv_bias": False, "rope_fp32": False}
    plain = {key: value for key, value in plain.items() if key not in family.fields}
    wanted = {**plain, **family.switches, "rotary_dim": config.head_dim}
    return [
        f"{field}={getattr(config, field)!r}"
        for field, value in wanted.items()
        if getattr(config, field) != value
    ]


def _block_length(
    family: Family, raw: Mapping[str, Any], folder: Path, asked: int | None
) -> int:
    if asked is not None:
        return asked
    if family.block_key is None:
        return families.FULL_ATTENTION_BLOCK
    found = raw.get(family.block_key)
    if type(found) is not int:
        raise ValueError(
            f"{folder}: {family.block_key}={found!r} in config.json must be the block "
            "length of the training; give it with --block-length or block_length (4 "
            "for SDAR-Chat and TraDo, 8 for SDAR-Chat-b8, 32 for Fast-dLLM v2)"
        )
    return found


def _vocab_size(raw: Mapping[str, Any], folder: Path, most: int) -> int:
    """Ids that the tokenizer does not have must never be predicted."""
    found = raw.get(REAL_SIZE, most)
    if type(found) is not int or not 0 < found <= most:
        raise ValueError(
            f"{folder}: {REAL_SIZE}={found!r} in config.json must be a number up to "
            f"the tokenizer's {most}; take both from one folder"
        )
    return found


def _mask_id(
    family: Family,
    raw: Mapping[str, Any],
    folder: Path,
    asked: int | None,
    id_of: Callable[[str | None], int | None],
) -> int:
    if asked is not None:
        return asked
    token = named_tokens(folder).get("mask_token")
    named = id_of(token)
    ours = named if named is not None else id_of(family.mask_token)
    said = raw.get("mask_token_id")
    found = ours if said is None else said
    if found is None:
        raise ValueError(
            f"{folder}: neither config.json (mask_token_id) nor the tokenizer "
            f"(mask_token={token!r}) knows the mask id; give it with --mask-id or "
            "mask_id"
        )
    if said is not None and named is not None and said != named:
        raise ValueError(
            f"{folder}: mask_token_id={said!r} of config.json must be the id of the "
            f"tokenizer's mask token, {named}; give the right one with --mask-id or "
            "mask_id"
        )
    return found
