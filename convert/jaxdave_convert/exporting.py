"""The way back: a converted folder as the safetensors checkpoint that it came from."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.io import families, orbax_io
from jaxdave.io.safetensors_io import DTYPES, INDEX
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.files import make_readable, read_json
from jaxdave_convert import safetensors_header, shard_copy, torch_bin, zarr_layout
from jaxdave_convert.manifest import GENERATION, MANIFEST, SOURCE
from jaxdave_convert.safetensors_header import Tensor
from jaxdave_convert.zarr_layout import Grid

_BUFFER = 8 << 20


def export(src: Path, out: Path, tick: shard_copy.Tick = lambda _: None) -> None:
    """Write a checkpoint that PyTorch code loads, under the original names.

    A tensor gets its original dtype back, unless it was narrowed; where none was, every
    file is byte for byte the original. OUT appears complete or not at all.
    Raises ValueError for a folder that was not converted, or that has changed since.
    """
    raw = read_json(src / "config.json")
    if not orbax_io.is_orbax_folder(raw):
        raise ValueError(f"{src} is no checkpoint of jaxdave-convert; give one that is")
    if out.exists():
        raise ValueError(f"{out} exists; choose a new folder to export to")
    config = orbax_io.read_config(raw, src)
    orbax_io.check_arrays(src, param_shapes(config))
    record = read_json(src / MANIFEST)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _write(src, made, config, raw["dtype"], record, tick)
        make_readable(made)
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _write(
    src: Path, made: Path, config: ModelConfig, dtype: str, record: dict, tick
) -> None:
    grids = _grids(config)
    weight_map: dict[str, str] = {}
    total, is_changed = 0, False
    for shard in record["shards"]:
        header = (src / SOURCE / f"{shard['source']}.header").read_bytes()
        tensors = safetensors_header.tensors_of(header, shard["source"])
        narrowed = _narrowed(header, tensors, dtype)
        is_changed |= narrowed != header
        weight_map.update({tensor.name: shard["file"] for tensor in tensors})
        path = made / shard["file"]
        found = _write_shard(path, narrowed, src, grids, dtype, tick)
        total += path.stat().st_size - len(narrowed)
        is_same = narrowed == header and shard["file"] == shard["source"]
        if is_same and found != record["sha256"][shard["source"]]:
            raise ValueError(
                f"{src}: the weights are not those that {shard['source']} had, by "
                "their sha256; convert again"
            )
    _copy_sidecars(src, made, record)
    if is_changed:
        _rename_dtype(made / "config.json", dtype)
    if is_changed or (made / torch_bin.INDEX).exists():
        (made / torch_bin.INDEX).unlink(missing_ok=True)
        if len(record["shards"]) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            orbax_io.write_json(made / INDEX, index)


def _grids(config: ModelConfig) -> dict[str, Grid]:
    family = families.FAMILIES[config.family]
    targets = families.targets(family, config)
    found = {name: zarr_layout.grid(target) for name, target in targets.items()}
    if config.tie_embeddings:  # a stored head is the embedding once more
        found[family.tensors["head"]] = found[family.tensors["embedding"]]
    return found


def _narrowed(header: bytes, tensors: tuple[Tensor, ...], dtype: str) -> bytes:
    """The header, changed only where tensors were stored with fewer bits."""
    if dtype == "float32" or all(shard_copy.STORED[t.dtype] == dtype for t in tensors):
        return header
    metadata = safetensors_header.parse(header).get("__metadata__", {})
    return safetensors_header.build(
        {t.name: ("BF16", t.shape) for t in tensors}, metadata
    )


def _write_shard(
    path: Path, header: bytes, src: Path, grids: Mapping[str, Grid], dtype: str, tick
) -> str:
    """Write one weight file; returns its sha256."""
    hasher = hashlib.sha256(header)
    with path.open("wb") as file:
        file.write(header)
        for tensor in safetensors_header.tensors_of(header, path.name):
            for rows in _rows(src / orbax_io.WEIGHTS, grids[tensor.name], dtype):
                kind = DTYPES.get(shard_copy.STORED[tensor.dtype], np.float16)
                piece = np.ascontiguousarray(rows.astype(kind, copy=False))
                data = piece.view(np.uint8).data
                hasher.update(data)
                file.write(data)
                tick(rows.nbytes)
    return hasher.hexdigest()


def _rows(weights: Path, cut: Grid, dtype: str) -> Iterator[np.ndarray]:
    """A tensor [out, in] in runs of rows, put together from its chunks."""
    kind = np.dtype(DTYPES[dtype])
    height, width = cut.rows // cut.row_parts, cut.cols // cut.col_parts
    most = max(1, _BUFFER // (cut.cols * kind.itemsize))
    for row in range(cut.row_parts):
        with ExitStack() as stack:
            paths = [weights / cut.file(row, col) for col in range(cut.col_parts)]
            files = [stack.enter_context(path.open("rb")) for path in paths]
            for first in range(0, height, most):
                rows = min(most, height - first)
                size = rows * width * kind.itemsize
                parts = [np.frombuffer(file.read(size), kind) for file in files]
                parts = [part.reshape(rows, width) for part in parts]
                yield parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _copy_sidecars(src: Path, made: Path, record: Mapping[str, Any]) -> None:
    for name in record["sidecars"]:
        kept = src / SOURCE / name
        shutil.copyfile(kept if kept.exists() else src / name, made / name)
    if not (made / GENERATION).exists():
        shutil.copyfile(src / GENERATION, made / GENERATION)


def _rename_dtype(path: Path, dtype: str) -> None:
    """Let config.json name the dtype that the weights now have."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    named = [key for key in ("torch_dtype", "dtype") if key in raw] or ["torch_dtype"]
    orbax_io.write_json(path, {**raw, **dict.fromkeys(named, dtype)})
