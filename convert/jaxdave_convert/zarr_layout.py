"""Where the bytes of one torch tensor go: a grid of chunk files of a zarr array.

Our kernels are torch's [out, in] transposed and stacked, [N, in, out]. A chunk
[1, in, out / c] in Fortran order holds exactly the bytes of a run of torch's rows, so
nothing is transposed and nothing is stacked. The projections back to the hidden size
are split over `in` when a mesh holds them, so their chunks are runs of columns.
"""

import contextlib
import dataclasses
import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp

from jaxdave.io import orbax_io
from jaxdave.io.families import Target
from jaxdave.io.safetensors_io import DTYPES, leaves_of
from jaxdave.models.param_shapes import param_shapes
from jaxdave_convert.plan import Plan

PARTS = 8  # of an array, so that one of up to 8 devices reads nothing in vain
_BY_COLUMNS = ("blocks/attn/o/kernel", "blocks/mlp/down/kernel")


@dataclasses.dataclass(frozen=True)
class Grid:
    """One source tensor [rows, cols] as row_parts x col_parts chunk files."""

    path: str
    layer: int | None
    rows: int
    cols: int
    row_parts: int
    col_parts: int

    def file(self, row: int, col: int) -> str:
        """The file of a chunk, inside the weights folder."""
        home = self.path.replace("/", ".")
        place = [] if self.layer is None else [self.layer]
        if self.rows == 1:
            place += [col]
        else:
            place += [col, row] if self.order == "F" else [row, col]
        return f"{home}/{'.'.join(map(str, place))}"

    @property
    def chunk(self) -> tuple[int, ...]:
        """The shape of a chunk of the array."""
        sizes = (self.rows // self.row_parts, self.cols // self.col_parts)
        sizes = sizes[1:] if self.rows == 1 else sizes
        own = sizes[::-1] if self.order == "F" else sizes
        return own if self.layer is None else (1, *own)

    @property
    def order(self) -> str:
        """Which index of a chunk runs slowest: "C" the first, "F" the last."""
        return "F" if self.path.endswith("/kernel") else "C"


def grid(target: Target) -> Grid:
    """How a tensor is cut; a vector is one chunk."""
    slot, (*rows, cols) = target.slot, target.shape
    if not rows:
        return Grid(slot.path, slot.layer, 1, cols, 1, 1)
    by_columns = slot.path in _BY_COLUMNS
    parts = math.gcd(cols if by_columns else rows[0], PARTS)
    row_parts, col_parts = (1, parts) if by_columns else (parts, 1)
    return Grid(slot.path, slot.layer, rows[0], cols, row_parts, col_parts)


def make_weights(folder: Path, plan: Plan) -> None:
    """Make folder/weights: an orbax checkpoint whose arrays have no chunks yet."""
    leaves = leaves_of(param_shapes(plan.config))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    home = folder / orbax_io.WEIGHTS
    home.mkdir()
    for name, content in _records(shapes, plan.dtype).items():
        (home / name).write_bytes(content)
    for target in plan.targets.values():
        if not target.slot.layer:
            cut = grid(target)
            array = orbax_io.array_folder(folder, cut.path)
            array.mkdir()
            shape = shapes[cut.path]
            described = orbax_io.array_json(shape, cut.chunk, cut.order, plan.dtype)
            (array / ".zarray").write_text(json.dumps(described), encoding="utf-8")


def _records(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, bytes]:
    """The files that orbax keeps beside the arrays, made by orbax.

    It saves arrays that are as good as empty, in a place of its own: on a full disk it
    fails in more than one line.
    """
    import orbax.checkpoint as ocp

    small = {p: jnp.zeros((1,) * len(s), DTYPES[dtype]) for p, s in shapes.items()}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / orbax_io.WEIGHTS
        with _hushed(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(home, orbax_io.nest_paths(small))
        files = [path for path in home.iterdir() if path.is_file()]
        # The note that orbax was successful names the folder where it was.
        found = {p.name: p.read_bytes() for p in files if p.suffix != ".txt"}
    found["_METADATA"] = _with_shapes(found["_METADATA"], shapes)
    return found


def _with_shapes(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    records = json.loads(content)
    for record in records["tree_metadata"].values():
        path = "/".join(key["key"] for key in record["key_metadata"])
        record["value_metadata"]["write_shape"] = list(shapes[path])
    return json.dumps(records).encode()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Orbax warns that a checkpoint of plain arrays has nothing to merge."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
