"""A conversion, decided and checked before anything is written."""

import dataclasses
import math
from collections.abc import Mapping

from jaxdave.core.config import ModelConfig
from jaxdave.io import families
from jaxdave.io.families import Family
from jaxdave.io.hf_config import model_config
from jaxdave.io.safetensors_io import check_dtype, raise_problems
from jaxdave.io.tensor_names import TensorTarget, is_buffer
from jaxdave_convert import safetensors_header
from jaxdave_convert.safetensors_header import TensorEntry
from jaxdave_convert.source import CheckpointSource, open_source

_LOSSLESS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """What the caller overrides; None leaves a choice to the files.

    Attributes:
      family: name of the family, a key of `families.FAMILIES`.
      dtype: "float32", "bfloat16" or "float16", what the result is stored as.
      block_length: length of a block in tokens.
      mask_id: id of the mask token.
    """

    family: str | None = None
    dtype: str | None = None
    block_length: int | None = None
    mask_id: int | None = None


@dataclasses.dataclass(frozen=True)
class ConversionPlan:
    """A conversion whose source has been checked.

    Attributes:
      source: the checkpoint to convert.
      family: the layout that it has.
      config: the model.
      dtype: "float32", "bfloat16" or "float16", what the result is stored as.
      targets: tensor name -> its place in the parameters, for every tensor of the
        source that fills one.
      tied_head: name of the head's tensor where the source stores it although the
        embedding serves as head. It must equal the embedding and fills no parameter.
    """

    source: CheckpointSource
    family: Family
    config: ModelConfig
    dtype: str
    targets: Mapping[str, TensorTarget]
    tied_head: str | None

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model, each a single number."""
        return sum(math.prod(target.shape) for target in self.targets.values())

    @property
    def unwritten(self) -> tuple[str, ...]:
        """Names of stored tensors that the model has no place for."""
        names = self.source.tensor_names
        return tuple(name for name in names if name not in self.targets)

    @property
    def bytes_read(self) -> int:
        """Size of all weight files in bytes."""
        return sum(shard.size for shard in self.source.shards)

    @property
    def bytes_written(self) -> int:
        """Size of the converted weights in bytes."""
        return self.num_parameters * (4 if self.dtype == "float32" else 2)


def plan_conversion(src: str, options: ConversionOptions) -> ConversionPlan:
    """Plan the conversion of a folder or Hub id.

    Only headers and JSON files are read.

    Args:
      src: a folder, or a Hub id "owner/name", which is fetched.
      options: what the caller overrides.

    Returns:
      The plan.

    Raises:
      ValueError: the config is wrong; or else one line with everything that is wrong
        with the weights.
    """
    if options.dtype is not None:
        check_dtype(options.dtype)
    # A wrong config raises at once: without one, nothing can be said of the tensors.
    source, problems = open_source(src)
    family = _choose_family(source, options.family, is_broken=bool(problems))
    config = model_config(
        family,
        source.raw_config,
        source.folder,
        name=source.name,
        block_length=options.block_length,
        mask_id=options.mask_id,
    )
    targets = families.checkpoint_tensors(family, config)
    # Some checkpoints store a tied head all the same. It has no place of its own.
    tied_head = family.tensor_names["head"] if config.tie_embeddings else None
    tied_head = tied_head if tied_head in source.tensor_names else None
    problems += _mismatches(
        source, targets, family, tied_head, is_broken=bool(problems)
    )
    raise_problems(source.folder, problems)
    return ConversionPlan(
        source=source,
        family=family,
        config=config,
        dtype=options.dtype or _stored_dtype(source),
        targets=targets,
        tied_head=tied_head,
    )


def _choose_family(
    source: CheckpointSource, name: str | None, is_broken: bool
) -> Family:
    """The family that the caller names, or the one that the source is of."""
    if name is not None and name not in families.FAMILIES:
        raise ValueError(
            f"family {name!r} is unknown; use auto, {', '.join(families.FAMILIES)}"
        )
    if name is not None:
        return families.FAMILIES[name]
    # A file that cannot be read hides its tensors, so their names tell nothing then.
    tensor_names = None if is_broken else source.tensor_names
    return families.detect(source.raw_config, tensor_names)


def _stored_dtype(source: CheckpointSource) -> str:
    """The narrowest dtype that keeps every stored bit."""
    # Of the two short ones neither holds the other's numbers, but float32 does.
    dtypes = {tensor.dtype for shard in source.shards for tensor in shard.tensors}
    if len(dtypes) != 1:
        return "float32"
    return _LOSSLESS_DTYPES.get(dtypes.pop(), "float32")


def _mismatches(
    source: CheckpointSource,
    targets: Mapping[str, TensorTarget],
    family: Family,
    tied_head: str | None,
    is_broken: bool,
) -> list[str]:
    """List every difference between stored and expected tensors."""
    stored: dict[str, tuple[str, TensorEntry]] = {
        tensor.name: (shard.file, tensor)
        for shard in source.shards
        for tensor in shard.tensors
    }
    problems = []
    for name in sorted({*stored, *targets}):
        if name not in stored:
            # A broken file has been reported, and explains the tensors that it lost.
            problems += [] if is_broken else [f"missing tensor {name}"]
            continue
        file, tensor = stored[name]
        if name not in targets and is_buffer(name):
            continue
        if name not in targets and name != tied_head:
            problems.append(f"{file}: unknown tensor {name}")
            continue
        twin = name if name in targets else family.tensor_names["embedding"]
        if tensor.shape != (shape := targets[twin].shape):
            problems.append(f"tensor {name} has shape {tensor.shape}, not {shape}")
        if tensor.dtype not in safetensors_header.ITEM_SIZES:
            problems.append(
                f"tensor {name} has dtype {tensor.dtype}, not "
                f"{'/'.join(safetensors_header.ITEM_SIZES)}"
            )
    return problems
