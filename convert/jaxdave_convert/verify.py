"""Reading converted tensors back and comparing them with the source bit by bit.

This takes another way than the conversion: tensorstore reads the arrays, as Orbax does
when a model is loaded, and the source is read tensor by tensor.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np

from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io import orbax_io
from jaxdave.io.tensor_names import TensorPart
from jaxdave.io.tokenizer import load_codec
from jaxdave.models.param_shapes import param_shapes
from jaxdave_convert import shard_copy, torch_bin
from jaxdave_convert.plan import ConversionPlan
from jaxdave_convert.safetensors_header import Shard, TensorEntry

_SEED = 0


def verify_tensors(plan: ConversionPlan, folder: Path, count: int) -> None:
    """Compare a sample of converted tensors with the source.

    Also compares Orbax's own metadata with the tree of parameters, and opens the
    tokenizer. One tensor is in memory at a time.

    Args:
      plan: the conversion.
      folder: its result.
      count: number of tensors to compare, drawn with a fixed seed; all tensors, where
        the source has fewer.

    Raises:
      ValueError: names the first tensor that differs.
    """
    _check_tree(plan, folder)
    load_codec(folder, config=plan.config)
    pairs = [
        (shard, tensor)
        for shard in plan.source.shards
        for tensor in shard.tensors
        if tensor.name in plan.targets
    ]
    for shard, tensor in random.Random(_SEED).sample(pairs, min(count, len(pairs))):
        if not _is_equal(plan, folder, shard, tensor):
            raise ValueError(
                f"tensor {tensor.name} of {shard.file} reads back with other bits; "
                "convert again, and check the disk"
            )


def _check_tree(plan: ConversionPlan, folder: Path) -> None:
    """Compare the shapes in Orbax's metadata with those of the parameters."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        metadata: Any = checkpointer.metadata((folder / orbax_io.WEIGHTS).absolute())
    leaves = leaves_by_path(metadata.item_metadata.tree)
    expected = leaves_by_path(param_shapes(plan.config))
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    if shapes != {path: leaf.shape for path, leaf in expected.items()}:
        raise ValueError(f"{folder}: orbax reads another tree than was written")


def _is_equal(
    plan: ConversionPlan, folder: Path, shard: Shard, tensor: TensorEntry
) -> bool:
    """Compare one tensor's bits, so that signs of zero and NaNs count too."""
    target = plan.targets[tensor.name]
    parts = [_read_converted(folder, part) for part in target.parts]
    converted = np.concatenate(parts)
    original = _read_source(plan, shard, tensor)
    bits = np.uint32 if plan.dtype == "float32" else np.uint16
    return converted.shape == original.shape and np.array_equal(
        converted.view(bits), original.view(bits)
    )


def _read_converted(folder: Path, part: TensorPart) -> np.ndarray:
    """Read rows of a tensor from the parameter that they fill."""
    import tensorstore

    array_folder = orbax_io.array_folder(folder, part.path).absolute()
    array = tensorstore.open(
        {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{array_folder}/"}}
    ).result()
    converted = np.asarray(array[part.index] if part.index else array.read().result())
    # Back from [in, out] to PyTorch's [out, in], in which the source is compared.
    return np.ascontiguousarray(converted.T if part.is_transposed else converted)


def _read_source(plan: ConversionPlan, shard: Shard, tensor: TensorEntry) -> np.ndarray:
    """Read one tensor of the source, cast to the dtype of the conversion."""
    path = plan.source.folder / shard.file
    if path.suffix == ".bin":
        byte_counts = {t.name: [t.size] for t in shard.tensors}
        views = torch_bin.tensor_blocks(path, shard.file, byte_counts)
        pairs = zip(shard.tensors, views, strict=True)
        data = next(bytes(view) for entry, view in pairs if entry.name == tensor.name)
    else:
        with path.open("rb") as file:
            file.seek(tensor.start)
            data = file.read(tensor.size)
    rows = shard_copy.rows_of(
        memoryview(data), tensor.dtype, tensor.shape[-1], plan.dtype
    )
    return np.ascontiguousarray(rows).reshape(tensor.shape)
