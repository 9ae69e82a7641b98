"""The way back: a converted folder as the safetensors checkpoint that it came from."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.io import families, orbax_io
from jaxdave.io.safetensors_io import DTYPES, INDEX_FILE
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.files import make_readable, read_json, unfinished_folder
from jaxdave.runtime.interrupts import unbroken
from jaxdave_convert import safetensors_header, torch_bin, zarr_layout
from jaxdave_convert.manifest import GENERATION_FILE, MANIFEST_FILE, SOURCE_FOLDER
from jaxdave_convert.safetensors_header import TensorEntry
from jaxdave_convert.shard_copy import DTYPE_NAMES, OnProgress, ignore_progress
from jaxdave_convert.zarr_layout import ChunkGrid

_BUFFER_BYTES = 8 << 20


def export(src: Path, out: Path, on_progress: OnProgress = ignore_progress) -> None:
    """Write a checkpoint that PyTorch code loads, under the original names.

    A tensor gets its original dtype back, unless the conversion narrowed it. Where it
    narrowed none, every file is byte for byte the original.

    Args:
      src: a converted folder.
      out: the folder to make; it appears complete or not at all.
      on_progress: called with the bytes that have been read.

    Raises:
      ValueError: the folder was not converted, or has changed since; or `out` exists.

    Example:
      ::

        convert("checkpoint", "converted")
        export(Path("converted"), Path("checkpoint-again"))
    """
    raw = read_json(src / "config.json")
    if not orbax_io.is_orbax_config(raw):
        raise ValueError(f"{src} is no checkpoint of jaxdave-convert; give one that is")
    if out.exists():
        raise ValueError(f"{out} exists; choose a new folder to export to")
    config = orbax_io.read_config(raw, src)
    orbax_io.check_arrays(src, param_shapes(config))
    record = read_json(src / MANIFEST_FILE)
    out = out.absolute()
    with unfinished_folder(out) as work:
        _fill_folder(src, work, config, raw["dtype"], record, on_progress)
        make_readable(work)
        with unbroken(f"{out}"):
            work.rename(out)


def _fill_folder(
    src: Path,
    work: Path,
    config: ModelConfig,
    dtype: str,
    record: Mapping[str, Any],
    on_progress: OnProgress,
) -> None:
    """Write all files of the checkpoint into the work folder."""
    family = families.FAMILIES[config.family]
    targets = families.checkpoint_tensors(family, config)
    grids = zarr_layout.tensor_grids(family, config, targets)
    weight_map: dict[str, str] = {}
    total_size, is_narrowed = 0, False
    for shard in record["shards"]:
        # The original header says which tensors a file holds, in which order and dtype:
        # it is written back byte for byte, so that the file can equal the original.
        original = (src / SOURCE_FOLDER / f"{shard['source']}.header").read_bytes()
        tensors = safetensors_header.parse_tensors(original, shard["source"])
        tensors = tuple(t for t in tensors if t.name in grids)
        header = _narrow_header(original, tensors, dtype)
        is_narrowed |= header != original
        weight_map.update({tensor.name: shard["file"] for tensor in tensors})
        path = work / shard["file"]
        sha256 = _write_shard(path, header, src, grids, dtype, on_progress)
        total_size += path.stat().st_size - len(header)
        # A .bin file becomes another file, and so does one with narrowed tensors; their
        # hashes cannot be those of the originals.
        is_original = header == original and shard["file"] == shard["source"]
        if is_original and sha256 != record["sha256"][shard["source"]]:
            raise ValueError(
                f"{src}: the weights are not those that {shard['source']} had, by "
                "their sha256; convert again"
            )
    _copy_sidecars(src, work, record)
    if is_narrowed:
        _rename_dtype(work / "config.json", dtype)
    # The original index has the original sizes, or the names of .bin files.
    if is_narrowed or (work / torch_bin.INDEX_FILE).exists():
        (work / torch_bin.INDEX_FILE).unlink(missing_ok=True)
        if len(record["shards"]) > 1:
            metadata = {"total_size": total_size}
            index = {"metadata": metadata, "weight_map": weight_map}
            orbax_io.write_json(work / INDEX_FILE, index)


def _narrow_header(
    header: bytes, tensors: tuple[TensorEntry, ...], dtype: str
) -> bytes:
    """Rewrite a header for the tensors that there are, and the dtype that they have."""
    entries = safetensors_header.parse_header(header)
    metadata = entries.pop("__metadata__", {})
    is_lossless = all(DTYPE_NAMES[tensor.dtype] == dtype for tensor in tensors)
    is_narrowed = dtype != "float32" and not is_lossless
    narrow = next(short for short, name in DTYPE_NAMES.items() if name == dtype)
    # Buffers that the model computes were not converted.
    if len(entries) == len(tensors) and not is_narrowed:
        return header
    return safetensors_header.build_header(
        {t.name: (narrow if is_narrowed else t.dtype, t.shape) for t in tensors},
        metadata,
    )


def _write_shard(
    path: Path,
    header: bytes,
    src: Path,
    grids: Mapping[str, Sequence[ChunkGrid]],
    dtype: str,
    on_progress: OnProgress,
) -> str:
    """Write one weight file; returns its sha256."""
    hasher = hashlib.sha256(header)
    weights = src / orbax_io.WEIGHTS
    with path.open("wb") as file:
        file.write(header)
        for tensor in safetensors_header.parse_tensors(header, path.name):
            stored_dtype = DTYPES[DTYPE_NAMES[tensor.dtype]]
            own = (_read_rows(weights, grid, dtype) for grid in grids[tensor.name])
            for rows in itertools.chain.from_iterable(own):
                stored = np.ascontiguousarray(rows.astype(stored_dtype, copy=False))
                data = stored.view(np.uint8).data
                hasher.update(data)
                file.write(data)
                on_progress(rows.nbytes)
    return hasher.hexdigest()


def _read_rows(weights: Path, grid: ChunkGrid, dtype: str) -> Iterator[np.ndarray]:
    """Yield rows of a tensor [out, in] in runs, put together from their chunks."""
    item = np.dtype(DTYPES[dtype])
    # Rows [out, in] were cut into a grid of chunks; each row of the grid gives a run
    # of rows, read in buffers and joined along the columns.
    height, width = grid.rows // grid.row_parts, grid.cols // grid.col_parts
    max_rows = max(1, _BUFFER_BYTES // (grid.cols * item.itemsize))
    for row in range(grid.row_parts):
        with ExitStack() as stack:
            paths = [weights / grid.file(row, col) for col in range(grid.col_parts)]
            files = [stack.enter_context(path.open("rb")) for path in paths]
            for first in range(0, height, max_rows):
                rows = min(max_rows, height - first)
                num_bytes = rows * width * item.itemsize
                parts = [np.frombuffer(file.read(num_bytes), item) for file in files]
                parts = [part.reshape(rows, width) for part in parts]
                yield parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _copy_sidecars(src: Path, work: Path, record: Mapping[str, Any]) -> None:
    """Copy the files beside the weights, the originals where there are two."""
    for name in record["sidecars"]:
        original = src / SOURCE_FOLDER / name
        shutil.copyfile(original if original.exists() else src / name, work / name)
    if not (work / GENERATION_FILE).exists():
        shutil.copyfile(src / GENERATION_FILE, work / GENERATION_FILE)


def _rename_dtype(path: Path, dtype: str) -> None:
    """Let config.json name the dtype that the weights now have."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    keys = [key for key in ("torch_dtype", "dtype") if key in raw] or ["torch_dtype"]
    orbax_io.write_json(path, {**raw, **dict.fromkeys(keys, dtype)})
