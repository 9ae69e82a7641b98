"""What a conversion will do, decided before anything is written."""

import dataclasses
import math
from collections.abc import Mapping

from jaxdave.core.config import ModelConfig
from jaxdave.io import families
from jaxdave.io.families import Family, Target
from jaxdave.io.hf_config import model_config
from jaxdave.io.safetensors_io import check_dtype, raise_problems
from jaxdave_convert import safetensors_header
from jaxdave_convert.safetensors_header import Tensor
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
    config = model_config(
        family,
        source.raw,
        source.folder,
        name=source.name,
        block_length=options.block_length,
        mask_id=options.mask_id,
    )
    targets = families.targets(family, config)
    alias = family.tensors["head"] if config.tie_embeddings else None
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
        if tensor.dtype not in safetensors_header.ITEM_SIZES:
            problems.append(
                f"tensor {name} has dtype {tensor.dtype}, not "
                f"{'/'.join(safetensors_header.ITEM_SIZES)}"
            )
    return problems
