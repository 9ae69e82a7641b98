"""One weight file into chunk files: read once, hashed and cast on the way.

The main thread reads and writes, one thread hashes what was read, and a few bring
finished chunk files to the disk. Memory stays at a few buffers of 1 MB, however large
the file is.
"""

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

from jaxdave.io.finite import check_cast
from jaxdave.io.safetensors_io import DTYPES
from jaxdave_convert import torch_bin
from jaxdave_convert.safetensors_header import ITEM_SIZES, Shard, TensorEntry
from jaxdave_convert.zarr_layout import ChunkGrid

OnProgress = Callable[[int], None]
"""Called with the number of bytes that have just been processed."""

DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Safetensors' name of a dtype -> NumPy's (with ml_dtypes)."""

_BUFFER_BYTES = 1 << 20  # stays in a core's cache between reading and writing
_SYNC_THREADS = 4
_NUM_BUFFERS = 4


class ShardHashes(NamedTuple):
    """Hashes of a weight file that was copied.

    Attributes:
      sha256: of the whole file, in hexadecimal.
      tensors: tensor name -> sha256 of its bytes, for the tensors that were asked for.
    """

    sha256: str
    tensors: dict[str, str]


def ignore_progress(num_bytes: int) -> None:
    """Does nothing; the `OnProgress` of callers that show none.

    Args:
      num_bytes: ignored.
    """


def copy_shard(
    path: Path,
    shard: Shard,
    grids: Mapping[str, Sequence[ChunkGrid]],
    weights: Path,
    dtype: str,
    *,
    unwritten: Collection[str] = (),
    hashed: Collection[str] = (),
    on_progress: OnProgress = ignore_progress,
) -> ShardHashes:
    """Write the chunk files of a weight file's tensors and wait for the disk.

    Args:
      path: the weight file.
      shard: its header.
      grids: tensor name -> how its rows are cut, for every tensor that is written.
      weights: the folder of the arrays, in which each parameter has its own.
      dtype: "float32", "bfloat16" or "float16", what the chunks are stored as.
      unwritten: names of tensors that are only read.
      hashed: names of tensors to return the own hash of.
      on_progress: called with the bytes that have been read.

    Returns:
      The hashes.

    Raises:
      OSError: a file cannot be read or written.
      ValueError: the file has changed since its header was read.
    """
    hasher, syncs = hashlib.sha256(), list[Future]()
    tensor_hashers = {
        t.name: hashlib.sha256() for t in shard.tensors if t.name in hashed
    }
    # Blocks of whole rows, decided for the whole file first: the reader then yields
    # them in order, and each tensor takes as many as are its own.
    row_counts, byte_counts = [], []
    for tensor in shard.tensors:
        if tensor.name in unwritten:
            firsts = range(0, tensor.size, _BUFFER_BYTES)
            counts = [min(_BUFFER_BYTES, tensor.size - first) for first in firsts]
            row_counts.append(counts)
            byte_counts.append(counts)
            continue
        own = grids[tensor.name]
        counts = [count for grid in own for count in block_rows(tensor, grid)]
        row_counts.append(counts)
        total = sum(grid.rows for grid in own)
        byte_counts.append([rows * tensor.size // total for rows in counts])
    read = _read_bin if path.suffix == ".bin" else _read_safetensors
    views = read(path, shard, byte_counts, hasher, on_progress)
    # Finished files go to the disk while later ones are written.
    with ThreadPoolExecutor(_SYNC_THREADS) as disk:
        for tensor, counts in zip(shard.tensors, row_counts, strict=True):
            blocks = itertools.islice(views, len(counts))
            if tensor.name in tensor_hashers:
                blocks = _hash_blocks(blocks, tensor_hashers[tensor.name])
            if tensor.name in unwritten:
                collections.deque(blocks, maxlen=0)  # reads, and hashes, to the end
                continue
            arrays = _rows_of_blocks(blocks, tensor, grids[tensor.name][0].cols, dtype)
            for grid in grids[tensor.name]:
                for chunk_path in _write_chunks(arrays, tensor, grid, weights):
                    syncs.append(disk.submit(_sync, chunk_path))
        # The reader is a generator; only past its last block does it finish its hash.
        next(views, None)
        # A failed sync raises here, before the file is recorded as finished.
        for future in syncs:
            future.result()
    return ShardHashes(
        sha256=hasher.hexdigest(),
        tensors={name: h.hexdigest() for name, h in tensor_hashers.items()},
    )


def block_rows(tensor: TensorEntry, grid: ChunkGrid) -> list[int]:
    """Divide rows of a tensor into blocks that are read at a time.

    Args:
      tensor: the tensor.
      grid: how the rows are cut; a block never extends over two rows of chunks.

    Returns:
      The number of rows of each block, whose bytes fit one buffer if a row does.
    """
    max_rows = max(1, _BUFFER_BYTES // max(1, grid.cols * ITEM_SIZES[tensor.dtype]))
    height = grid.rows // grid.row_parts
    counts = [min(max_rows, height - first) for first in range(0, height, max_rows)]
    return counts * grid.row_parts


def _rows_of_blocks(
    blocks: Iterator[memoryview], tensor: TensorEntry, cols: int, dtype: str
) -> Iterator[np.ndarray]:
    for view in blocks:
        rows = rows_of(view, tensor.dtype, cols, dtype)
        check_cast(tensor.name, _stored_rows(view, tensor.dtype, cols), rows)
        yield rows


def rows_of(view: memoryview, stored: str, cols: int, dtype: str) -> np.ndarray:
    """Interpret bytes of a weight file as rows of a tensor.

    Args:
      view: whole rows, as they are in the file.
      stored: the tensor's dtype in the file, such as "BF16".
      cols: its number of columns.
      dtype: "float32", "bfloat16" or "float16", the dtype to cast to.

    Returns:
      An array [rows, cols]; it shares the memory of `view` where nothing is cast.
    """
    rows = _stored_rows(view, stored, cols)
    with np.errstate(over="ignore"):  # the caller names what overflows
        return rows if DTYPE_NAMES[stored] == dtype else rows.astype(DTYPES[dtype])


def _stored_rows(view: memoryview, stored: str, cols: int) -> np.ndarray:
    return np.frombuffer(view, np.dtype(DTYPE_NAMES[stored])).reshape(-1, cols)


def _read_safetensors(
    path: Path,
    shard: Shard,
    byte_counts: Sequence[Sequence[int]],
    hasher: Any,
    on_progress: OnProgress,
) -> Iterator[memoryview]:
    """Yield a file's data in blocks; a block is valid until the next one is taken.

    While the caller writes, a thread hashes. It may lag by some buffers, so that on a
    busy machine neither waits for the other to be scheduled.
    """
    sizes = [size for counts in byte_counts for size in counts]
    max_size = max(sizes, default=0)
    buffers = [memoryview(bytearray(max_size)) for _ in range(_NUM_BUFFERS)]
    pending: list[Future | None] = [None] * _NUM_BUFFERS
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as hash_thread:
        header = file.read(len(shard.header))
        if header != shard.header:
            raise ValueError(f"{path.name} has changed while it was read; run again")
        hasher.update(header)
        on_progress(len(header))
        for turn, size in enumerate(sizes):
            index = turn % _NUM_BUFFERS
            # The buffer may be filled again once its former content is hashed.
            _wait(pending[index])
            view = buffers[index][:size]
            _read_into(file, view, path)
            pending[index] = hash_thread.submit(hasher.update, view)
            yield view
            on_progress(size)
        for future in pending:
            _wait(future)


def _wait(future: Future | None) -> None:
    if future is not None:
        future.result()


def _read_into(file: Any, view: memoryview, path: Path) -> None:
    """Fill a buffer; an unbuffered file may return less than was asked for."""
    while view:
        count = file.readinto(view)
        if not count:
            raise ValueError(f"{path.name} has become shorter; fetch it again")
        view = view[count:]


def _read_bin(
    path: Path,
    shard: Shard,
    byte_counts: Sequence[Sequence[int]],
    hasher: Any,
    on_progress: OnProgress,
) -> Iterator[memoryview]:
    """Yield the data of a .bin file in blocks; the file is hashed before."""
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BUFFER_BYTES):
            hasher.update(block)
    sizes = {
        tensor.name: counts
        for tensor, counts in zip(shard.tensors, byte_counts, strict=True)
    }
    for view in torch_bin.tensor_blocks(path, shard.file, sizes):
        yield view
        on_progress(len(view))


def _hash_blocks(blocks: Iterator[memoryview], hasher: Any) -> Iterator[memoryview]:
    for view in blocks:
        hasher.update(view)
        yield view


def _write_chunks(
    arrays: Iterator[np.ndarray],
    tensor: TensorEntry,
    grid: ChunkGrid,
    weights: Path,
) -> list[Path]:
    """Write the chunk files of rows, each from beginning to end; returns them."""
    num_blocks = len(block_rows(tensor, grid)) // grid.row_parts
    written = []
    for row in range(grid.row_parts):
        paths = [weights / grid.file(row, col) for col in range(grid.col_parts)]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]
            # All chunks of a row of the grid are written side by side, as a block of
            # rows has a part of each of them.
            for array in itertools.islice(arrays, num_blocks):
                _write_columns(array, files)
        written += paths
    return written


def _write_columns(array: np.ndarray, files: Sequence[BinaryIO]) -> None:
    """Cut rows into as many runs of columns as there are files and append those."""
    width = array.shape[1] // len(files)
    for col, file in enumerate(files):
        part = array[:, col * width : (col + 1) * width]
        file.write(np.ascontiguousarray(part).view(np.uint8).data)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, and return its memory to the kernel.

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
