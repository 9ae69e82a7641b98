"""What a conversion will do, decided before anything is written."""

import dataclasses
import math
from collections.abc import Mapping

from jaxdave.config import ModelConfig
from jaxdave.text import end_ids
from jaxdave.tokenizer import named_tokens
from jaxdave.weights import check_dtype, raise_problems
from jaxdave_convert import families, headers, vocabulary
from jaxdave_convert.families import Family, Target
from jaxdave_convert.headers import Tensor
from jaxdave_convert.source import Source, open_source

_WIDE = {"F32": "float32", "BF16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user says; None: what the files say."""

    family: str | None = None
    dtype: str | None = None
    block_length: int | None = None
    mask_id: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked conversion.

    targets: for every tensor of the source that fills a parameter. alias: a stored
    head that must be the embedding once more (tied), and fills none.
    """

    source: Source
    family: Family
    config: ModelConfig
    dtype: str
    targets: Mapping[str, Target]
    alias: str | None

    @property
    def parameters(self) -> int:
        """How many numbers the checkpoint has."""
        return sum(math.prod(target.shape) for target in self.targets.values())

    @property
    def bytes_read(self) -> int:
        """The size of all weight files."""
        return sum(shard.size for shard in self.source.shards)

    @property
    def bytes_written(self) -> int:
        """The size of the weights that are made."""
        return self.parameters * (4 if self.dtype == "float32" else 2)


def make(text: str, options: Options) -> Plan:
    """The plan for a folder or Hub id.

    Raises one ValueError: about the config where that is wrong, or else with everything
    that is wrong with the weights.
    """
    if options.dtype is not None:
        check_dtype(options.dtype)
    source, problems = open_source(text)
    family = _family(source, options.family, bool(problems))
    config = _config(source, family, options)
    targets = families.targets(family, config)
    alias = family.tensors["head/kernel"] if config.tie_embeddings else None
    alias = alias if alias in source.tensor_names else None
    problems += _mismatches(source, targets, family, alias, bool(problems))
    raise_problems(source.folder, problems)
    return Plan(source, family, config, _dtype(source, options), targets, alias)


def _family(source: Source, name: str | None, is_broken: bool) -> Family:
    if name is not None and name not in families.FAMILIES:
        raise ValueError(
            f"family {name!r} is unknown; use auto, {', '.join(families.FAMILIES)}"
        )
    if name is not None:
        return families.FAMILIES[name]
    # Names of tensors in a file that cannot be read are not known.
    return families.detect(source.raw, None if is_broken else source.tensor_names)


def _config(source: Source, family: Family, options: Options) -> ModelConfig:
    fields = families.fields_of(family, source.raw)
    known = vocabulary.read(source.folder)
    stop_ids, pad_id = end_ids(source.folder, known.id_of, known.size)
    more = (known.id_of(token) for token in family.stop_tokens)
    stop_ids += tuple(i for i in more if i is not None and i not in stop_ids)
    real = source.raw.get("real_vocab_size", known.size)
    return ModelConfig(
        name=source.name,
        family=family.name,  # type: ignore[arg-type]
        block_length=_block_length(source, family, options.block_length),
        vocab_size=min(real, known.size, fields["vocab_rows"]),
        mask_id=_mask_id(source, family, options.mask_id, known.id_of),
        pad_id=pad_id,
        stop_ids=stop_ids,
        **fields,
    )


def _block_length(source: Source, family: Family, asked: int | None) -> int:
    if asked is not None:
        return asked
    if family.block_key is None:
        return families.FULL_ATTENTION_BLOCK
    found = source.raw.get(family.block_key)
    if type(found) is not int:
        raise ValueError(
            f"{source.folder}: {family.block_key}={found!r} in config.json must be the "
            "block length of the training; give it with --block-length (4 for "
            "SDAR-Chat and TraDo, 8 for SDAR-Chat-b8, 32 for Fast-dLLM v2)"
        )
    return found


def _mask_id(source: Source, family: Family, asked: int | None, id_of) -> int:
    if asked is not None:
        return asked
    named = id_of(named_tokens(source.folder).get("mask_token"))
    ours = named if named is not None else id_of(family.mask_token)
    said = source.raw.get("mask_token_id")
    if said is None and ours is None:
        raise ValueError(
            f"{source.folder}: neither config.json (mask_token_id) nor the tokenizer "
            "(mask_token) knows the mask id; give it with --mask-id"
        )
    if said is not None and named is not None and said != named:
        raise ValueError(
            f"{source.folder}: mask_token_id={said!r} of config.json must be the id of "
            f"the tokenizer's mask token, {named}; give the right one with --mask-id"
        )
    return ours if said is None else said


def _dtype(source: Source, options: Options) -> str:
    """The dtype asked for, or the narrowest that keeps every stored bit."""
    stored = {tensor.dtype for shard in source.shards for tensor in shard.tensors}
    only = _WIDE.get(next(iter(stored)), "float32") if len(stored) == 1 else "float32"
    return options.dtype or only


def _mismatches(
    source: Source,
    targets: Mapping[str, Target],
    family: Family,
    alias: str | None,
    is_broken: bool,
) -> list[str]:
    """Every difference between the tensors found and those wanted."""
    found: dict[str, tuple[str, Tensor]] = {
        tensor.name: (shard.file, tensor)
        for shard in source.shards
        for tensor in shard.tensors
    }
    problems = []
    for name in sorted({*found, *targets}):
        if name not in found:
            # What a file lost has been reported with the file.
            problems += [] if is_broken else [f"missing tensor {name}"]
            continue
        file, tensor = found[name]
        if name not in targets and name != alias:
            problems.append(f"{file}: unknown tensor {name}")
            continue
        like = name if name in targets else family.tensors["embedding"]
        if tensor.shape != (shape := targets[like].shape):
            problems.append(f"tensor {name} has shape {tensor.shape}, not {shape}")
        if tensor.dtype not in headers.ITEM_SIZES:
            problems.append(
                f"tensor {name} has dtype {tensor.dtype}, not "
                f"{'/'.join(headers.ITEM_SIZES)}"
            )
    return problems
