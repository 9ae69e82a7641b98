"""Reading converted tensors back, as orbax does, and comparing bits."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from jaxdave.io import orbax_io
from jaxdave.io.safetensors_io import leaves_of
from jaxdave.io.tokenizer import open_tokenizer
from jaxdave.models.param_shapes import param_shapes
from jaxdave_convert import shard_copy, torch_bin
from jaxdave_convert.plan import Plan
from jaxdave_convert.safetensors_header import Shard, Tensor

_SEED = 0


def verify(plan: Plan, folder: Path, count: int) -> None:
    """Compare `count` tensors, drawn by a fixed seed, with the source bit by bit.

    Also compares orbax's own record of the tree, and opens the tokenizer. One tensor
    is in memory at a time.
    Raises ValueError naming the first tensor that differs.
    """
    _check_tree(plan, folder)
    if count:
        open_tokenizer(folder)
    pairs = [(s, t) for s in plan.source.shards for t in s.tensors]
    pairs = [(shard, tensor) for shard, tensor in pairs if tensor.name in plan.targets]
    for shard, tensor in random.Random(_SEED).sample(pairs, min(count, len(pairs))):
        if not _is_same(plan, folder, shard, tensor):
            raise ValueError(
                f"tensor {tensor.name} of {shard.file} reads back with other bits; "
                "convert again, and check the disk"
            )


def _check_tree(plan: Plan, folder: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        found: Any = checkpointer.metadata((folder / orbax_io.WEIGHTS).absolute())
    leaves = leaves_of(found.item_metadata.tree)
    wanted = leaves_of(param_shapes(plan.config))
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    if shapes != {path: leaf.shape for path, leaf in wanted.items()}:
        raise ValueError(f"{folder}: orbax reads another tree than was written")


def _is_same(plan: Plan, folder: Path, shard: Shard, tensor: Tensor) -> bool:
    import tensorstore

    slot = plan.targets[tensor.name].slot
    home = orbax_io.array_folder(folder, slot.path).absolute()
    array = tensorstore.open(
        {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{home}/"}}
    ).result()
    found = np.asarray(
        array.read().result() if slot.layer is None else array[slot.layer]
    )
    found = found.T if slot.is_transposed else found
    wanted = _source(plan, shard, tensor)
    bits = np.uint32 if plan.dtype == "float32" else np.uint16
    return found.shape == wanted.shape and np.array_equal(
        np.ascontiguousarray(found).view(bits), wanted.view(bits)
    )


def _source(plan: Plan, shard: Shard, tensor: Tensor) -> np.ndarray:
    path = plan.source.folder / shard.file
    if path.suffix == ".bin":
        sizes = {t.name: [t.size] for t in shard.tensors}
        views = torch_bin.buffers(path, shard.file, sizes)
        named = zip(shard.tensors, views, strict=True)
        raw = next(bytes(view) for one, view in named if one.name == tensor.name)
    else:
        with path.open("rb") as file:
            file.seek(tensor.start)
            raw = file.read(tensor.size)
    cols = tensor.shape[-1]
    rows = shard_copy.as_array(memoryview(raw), tensor.dtype, cols, plan.dtype)
    return np.ascontiguousarray(rows).reshape(tensor.shape)
