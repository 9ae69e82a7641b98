"""One weight file into chunk files: read once, hashed on the way, cast where asked."""

import collections
import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxdave.io.safetensors_io import DTYPES
from jaxdave_convert import torch_bin
from jaxdave_convert.safetensors_header import ITEM_SIZES, Shard, Tensor
from jaxdave_convert.zarr_layout import Grid

Tick = Callable[[int], None]

STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BUFFER = 1 << 20  # stays in a core's cache between reading and writing
_SYNCS = 4
_LAG = 4


class Copied(NamedTuple):
    """The sha256 of a file, and of those of its tensors that were asked for."""

    sha256: str
    tensors: dict[str, str]


def copy_shard(
    path: Path,
    shard: Shard,
    grids: Mapping[str, Grid],
    weights: Path,
    dtype: str,
    *,
    unwritten: str | None = None,
    hashed: Collection[str] = (),
    tick: Tick = lambda _: None,
) -> Copied:
    """Write the chunk files of a weight file's tensors, down to the disk.

    grids: of every tensor; unwritten: one that is only read. hashed: tensors whose own
    sha256 is wanted. tick: is told of bytes read.
    Raises OSError where the disk does not do, ValueError where the file has changed.
    """
    hasher, synced = hashlib.sha256(), list[Future]()
    own = {t.name: hashlib.sha256() for t in shard.tensors if t.name in hashed}
    plans = [block_rows(tensor, grids[tensor.name]) for tensor in shard.tensors]
    sizes = [
        [rows * tensor.size // grids[tensor.name].rows for rows in plan]
        for tensor, plan in zip(shard.tensors, plans, strict=True)
    ]
    views = _views(path, shard, sizes, hasher, tick)
    # Files go to the disk while others are written.
    with ThreadPoolExecutor(_SYNCS) as disk:
        for tensor, plan in zip(shard.tensors, plans, strict=True):
            blocks = itertools.islice(views, len(plan))
            if tensor.name in own:
                blocks = _hashing(blocks, own[tensor.name])
            if tensor.name == unwritten:
                collections.deque(blocks, maxlen=0)
                continue
            arrays = _cast(blocks, tensor, grids[tensor.name], dtype)
            for made in _write(arrays, plan, grids[tensor.name], weights):
                synced.append(disk.submit(_sync, made))
        next(views, None)  # lets the reader finish its hash
        for future in synced:
            future.result()
    return Copied(hasher.hexdigest(), {name: h.hexdigest() for name, h in own.items()})


def block_rows(tensor: Tensor, cut: Grid) -> list[int]:
    """How many rows are read at a time; a block lies in one row of chunks."""
    most = max(1, _BUFFER // max(1, cut.cols * ITEM_SIZES[tensor.dtype]))
    height = cut.rows // cut.row_parts
    one = [min(most, height - first) for first in range(0, height, most)]
    return one * cut.row_parts


def as_array(view: memoryview, stored: str, cols: int, dtype: str) -> np.ndarray:
    """Bytes of a file as rows, in the dtype of ours."""
    found = np.frombuffer(view, np.dtype(STORED[stored])).reshape(-1, cols)
    return found if STORED[stored] == dtype else found.astype(DTYPES[dtype])


def _views(path: Path, shard: Shard, sizes, hasher, tick) -> Iterator[memoryview]:
    read = _read_bin if path.suffix == ".bin" else _read
    return read(path, shard, sizes, hasher, tick)


def _read(
    path: Path, shard: Shard, sizes: Sequence[Sequence[int]], hasher: Any, tick: Tick
) -> Iterator[memoryview]:
    """The data in pieces; a piece is good until the next one is asked for.

    While the caller writes, a thread hashes. It may lag by some buffers, so that on a
    busy machine neither waits for the other to be scheduled.
    """
    flat = [size for part in sizes for size in part]
    buffers = [memoryview(bytearray(max(flat, default=0))) for _ in range(_LAG)]
    pending: list[Future | None] = [None] * _LAG
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        header = file.read(len(shard.header))
        if header != shard.header:
            raise ValueError(f"{path.name} has changed while it was read; run again")
        hasher.update(header)
        tick(len(header))
        for turn, size in enumerate(flat):
            slot = turn % _LAG
            _settle(pending[slot])
            view = buffers[slot][:size]
            _fill(file, view, path)
            pending[slot] = pool.submit(hasher.update, view)
            yield view
            tick(size)
        for future in pending:
            _settle(future)


def _settle(future: Future | None) -> None:
    if future is not None:
        future.result()


def _fill(file: Any, view: memoryview, path: Path) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise ValueError(f"{path.name} has become shorter; fetch it again")
        view = view[count:]


def _read_bin(
    path: Path, shard: Shard, sizes: Sequence[Sequence[int]], hasher: Any, tick: Tick
) -> Iterator[memoryview]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_BUFFER):
            hasher.update(piece)
    named = {t.name: part for t, part in zip(shard.tensors, sizes, strict=True)}
    for view in torch_bin.buffers(path, shard.file, named):
        yield view
        tick(len(view))


def _hashing(blocks: Iterator[memoryview], hasher: Any) -> Iterator[memoryview]:
    for view in blocks:
        hasher.update(view)
        yield view


def _cast(
    blocks: Iterator[memoryview], tensor: Tensor, cut: Grid, dtype: str
) -> Iterator[np.ndarray]:
    return (as_array(view, tensor.dtype, cut.cols, dtype) for view in blocks)


def _write(
    arrays: Iterator[np.ndarray], plan: Sequence[int], cut: Grid, weights: Path
) -> list[Path]:
    """Write one tensor's chunk files, each in one go."""
    written = []
    for row in range(cut.row_parts):
        paths = [weights / cut.file(row, col) for col in range(cut.col_parts)]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]
            for array in itertools.islice(arrays, len(plan) // cut.row_parts):
                _spread(array, files)
        written += paths
    return written


def _spread(array: np.ndarray, files: Sequence[BinaryIO]) -> None:
    """Write runs of columns to their files."""
    width = array.shape[1] // len(files)
    for col, file in enumerate(files):
        part = array[:, col * width : (col + 1) * width]
        file.write(np.ascontiguousarray(part).view(np.uint8).data)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, and give its memory back.

    A model's worth of cached pages would push out all others, and making room for
    them takes the kernel longer than copying does.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
