"""Where the bytes of a PyTorch tensor go: grids of chunk files of zarr arrays.

Our kernels are PyTorch's [out, in] transposed and stacked, [N, in, out]. A chunk of
shape [1, in, out / c] in Fortran order has exactly the bytes of consecutive rows of
PyTorch's tensor, so converting neither transposes nor stacks: it cuts. The projections
back to the hidden size are split over `in` on a mesh, so their chunks are consecutive
columns. A tensor of several projections is cut into the rows of each. An expert's
matrix is one chunk, [1, 1, in, out]: there are thousands.
"""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io import orbax_io
from jaxdave.io.families import Family
from jaxdave.io.safetensors_io import DTYPES
from jaxdave.io.tensor_names import TensorPart, TensorTarget
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.files import temporary_folder
from jaxdave_convert.plan import ConversionPlan

MAX_CHUNKS = 8
"""Chunks that a tensor is cut into, or fewer where 8 does not divide it: each of up to
8 devices then reads its part of the tensor and nothing else."""

# Row-parallel matrices, see `jaxdave.io.sharding`.
_CUT_BY_COLUMNS = ("blocks/attn/o/kernel", "blocks/mlp/down/kernel")


@dataclasses.dataclass(frozen=True)
class ChunkGrid:
    """Rows of a source tensor, [rows, cols], as row_parts x col_parts chunk files.

    Attributes:
      path: path of the parameter that the rows fill.
      index: their indices along the parameter's axes of layers and experts; empty where
        they fill it alone.
      rows: how many rows; 1 for a vector.
      cols: columns of the tensor.
      row_parts: chunks that the rows are cut into.
      col_parts: chunks that the columns are cut into.
    """

    path: str
    index: tuple[int, ...]
    rows: int
    cols: int
    row_parts: int
    col_parts: int

    def file(self, row: int, col: int) -> str:
        """Name the file of a chunk.

        Args:
          row: index of the chunk along the rows, below `row_parts`.
          col: index along the columns, below `col_parts`.

        Returns:
          The file's path inside the weights folder.
        """
        array = self.path.replace("/", ".")
        index = list(self.index)
        if self.rows == 1:
            index += [col]
        else:
            # The zarr array of a kernel is [in, out],
            # transposed, and so are the chunk's indices.
            index += [col, row] if self.order == "F" else [row, col]
        return f"{array}/{'.'.join(map(str, index))}"

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a chunk of the zarr array, leading axes included."""
        sizes = (self.rows // self.row_parts, self.cols // self.col_parts)
        sizes = sizes[1:] if self.rows == 1 else sizes
        shape = sizes[::-1] if self.order == "F" else sizes
        return (*(1 for _ in self.index), *shape)

    @property
    def order(self) -> str:
        """Layout inside a chunk: "C" (last index fastest) or "F" (first fastest)."""
        return "F" if self.path.endswith("/kernel") else "C"


def chunk_grid(part: TensorPart) -> ChunkGrid:
    """Decide how rows of a tensor are cut.

    Args:
      part: the place and the shape of the rows.

    Returns:
      Their chunks; a vector is a single one.
    """
    *rows, cols = part.shape
    row_parts, col_parts = 1, 1
    is_expert = len(part.index) > 1
    if rows and not is_expert:
        # Cut along the axis that `io.sharding` splits: the rows of
        # PyTorch's [out, in] are the outputs of column-parallel matrices,
        # its columns the inputs of row-parallel ones.
        by_columns = part.path in _CUT_BY_COLUMNS
        num_parts = math.gcd(cols if by_columns else rows[0], MAX_CHUNKS)
        row_parts = 1 if by_columns else num_parts
        col_parts = num_parts if by_columns else 1
    return ChunkGrid(
        path=part.path,
        index=part.index,
        rows=rows[0] if rows else 1,
        cols=cols,
        row_parts=row_parts,
        col_parts=col_parts,
    )


def tensor_grids(
    family: Family, config: ModelConfig, targets: Mapping[str, TensorTarget]
) -> dict[str, tuple[ChunkGrid, ...]]:
    """Decide how every tensor of a checkpoint is cut.

    Args:
      family: the layout of the checkpoint.
      config: the model.
      targets: tensor name -> its place, see `families.checkpoint_tensors`.

    Returns:
      Tensor name -> the chunks of its rows, part after part. Where the embedding serves
      as head, a stored head has the chunks of the embedding.
    """
    grids = {
        name: tuple(map(chunk_grid, target.parts)) for name, target in targets.items()
    }
    if config.tie_embeddings:
        names = family.tensor_names
        grids[names["head"]] = grids[names["embedding"]]
    return grids


def make_empty_arrays(folder: Path, plan: ConversionPlan) -> None:
    """Make folder/weights, an Orbax checkpoint whose arrays have no chunks yet.

    Args:
      folder: the folder that is being made.
      plan: the conversion.
    """
    leaves = leaves_by_path(param_shapes(plan.config))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    weights = folder / orbax_io.WEIGHTS
    weights.mkdir()
    for name, content in _orbax_files(shapes, plan.dtype).items():
        (weights / name).write_bytes(content)
    for part in (part for t in plan.targets.values() for part in t.parts):
        # All layers of a parameter are one array; the first stands for the others.
        if not any(part.index):
            grid = chunk_grid(part)
            array = orbax_io.array_folder(folder, grid.path)
            array.mkdir()
            metadata = orbax_io.zarr_metadata(
                shapes[grid.path], grid.chunk_shape, grid.order, plan.dtype
            )
            (array / ".zarray").write_text(json.dumps(metadata), encoding="utf-8")


def _orbax_files(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, bytes]:
    """Has Orbax make the files that it puts beside the arrays of such a tree.

    It saves a tree of arrays with one number each in a temporary place: on a full disk
    it would fail with more than one line.
    """
    import orbax.checkpoint as ocp

    tiny = {p: jnp.zeros((1,) * len(s), DTYPES[dtype]) for p, s in shapes.items()}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with temporary_folder() as folder:
        weights = folder / orbax_io.WEIGHTS
        with _absl_warnings_off(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(weights, orbax_io.nest_paths(tiny))
        paths = [path for path in weights.iterdir() if path.is_file()]
        # The note that Orbax was successful (.txt) names the temporary folder.
        files = {p.name: p.read_bytes() for p in paths if p.suffix != ".txt"}
    files["_METADATA"] = _with_shapes(files["_METADATA"], shapes)
    return files


def _with_shapes(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Put the true shapes into Orbax's metadata of the tree."""
    metadata = json.loads(content)
    for entry in metadata["tree_metadata"].values():
        path = "/".join(key["key"] for key in entry["key_metadata"])
        entry["value_metadata"]["write_shape"] = list(shapes[path])
    return json.dumps(metadata).encode()


@contextlib.contextmanager
def _absl_warnings_off() -> Iterator[None]:
    """Silence Orbax's warning that a checkpoint of plain arrays needs no merging."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
