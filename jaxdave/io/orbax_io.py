"""Converted checkpoints: a folder with our own config.json and Orbax weights.

`weights/` is an Orbax checkpoint of the tree that `param_shapes` describes, one folder
of uncompressed zarr chunks for each parameter. jaxdave-convert writes such folders. A
device reads only the chunks that it needs, so a sharded model is nowhere whole.
"""

import dataclasses
import itertools
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig, RopeScaling, YarnScaling
from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.core.model_api import Params
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.safetensors_io import DTYPES
from jaxdave.io.sharding import storage_shardings
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.files import check_path, read_json

FORMAT = "jaxdave"
VERSION = 2
"""Version of the layout, in config.json; a folder of another one is refused."""
WEIGHTS = "weights"
"""Name of the Orbax checkpoint inside the folder."""

_ZARR_DTYPES = {"float32": "<f4", "bfloat16": "bfloat16", "float16": "<f2"}
_MAX_PROBLEMS_SHOWN = 5


def is_orbax_config(raw: Mapping[str, Any]) -> bool:
    """Tell a converted folder from one in a family's layout.

    Args:
      raw: the content of a folder's config.json.

    Returns:
      True for a folder that jaxdave-convert made.
    """
    return raw.get("format") == FORMAT


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Build the config.json of a converted checkpoint.

    Args:
      config: the model.
      dtype: "float32", "bfloat16" or "float16", what the weights are stored as.

    Returns:
      The content of config.json.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "dtype": dtype,
        "model": dataclasses.asdict(config),
    }


def read_config(raw: dict[str, Any], folder: Path) -> ModelConfig:
    """Read the config of a converted checkpoint.

    Args:
      raw: the content of its config.json.
      folder: the folder, for error messages.

    Returns:
      The config.

    Raises:
      ValueError: the layout has another version, or config.json is broken.
    """
    if raw.get("version") != VERSION:
        raise ValueError(
            f"{folder}: version={raw.get('version')!r} in config.json must be "
            f"{VERSION}; convert again, or use the jaxdave that wrote it"
        )
    try:
        fields: dict[str, Any] = dict(raw["model"])
        fields["stop_ids"] = tuple(fields["stop_ids"])
        if isinstance(fields.get("rope_scaling"), dict):
            scaling = fields["rope_scaling"]
            is_yarn = "beta_fast" in scaling
            fields["rope_scaling"] = (YarnScaling if is_yarn else RopeScaling)(
                **scaling
            )
        if isinstance(fields.get("experts"), dict):
            fields["experts"] = ExpertsConfig(**fields["experts"])
        _check_types(fields)
        return ModelConfig(**fields)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{folder}: config.json does not describe a model ({error}); convert again"
        ) from error


def _check_types(fields: Mapping[str, Any]) -> None:
    """Refuse values of other types than `ModelConfig` has, which it takes as they are.

    Raises:
      ValueError: a value has another type.
    """
    for name, hint in typing.get_type_hints(ModelConfig).items():
        if name not in fields:
            continue
        value, words = fields[name], typing.get_args(hint)
        if typing.get_origin(hint) is Literal:
            is_right = value in words
        elif name == "stop_ids":
            is_right = bool(value) and all(type(number) is int for number in value)
        elif name in ("rope_scaling", "experts"):
            is_right = type(value) in words
        else:
            is_right = type(value) is hint or (hint is float and type(value) is int)
        if not is_right:
            raise ValueError(f"{name}={str(value)[:40]!r} is none of its values")


def restore(
    folder: Path, config: ModelConfig, dtype: str, mesh: jax.sharding.Mesh | None
) -> Params:
    """Read the parameters of a converted checkpoint directly onto their devices.

    Args:
      folder: a folder that jaxdave-convert made.
      config: its model.
      dtype: "float32", "bfloat16" or "float16", the parameters' dtype whatever the
        files hold.
      mesh: devices to split the parameters over (see `sharding.shardings`); None: all
        parameters on the first device.

    Returns:
      The parameters, in the structure of `param_shapes(config)`.

    Raises:
      ValueError: one line that names everything wrong with the weights; or the mesh has
        no axis named "model".
    """
    import orbax.checkpoint as ocp

    check_path(folder)
    shape_tree = param_shapes(config, DTYPES[dtype])
    # Before anything is allocated: see there for what Orbax does with missing chunks.
    check_arrays(folder, shape_tree)
    if mesh is None:
        first_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        sharding_tree = jax.tree.map(lambda _: first_device, shape_tree)
    else:
        sharding_tree = storage_shardings(shape_tree, config, mesh)

    def with_sharding(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    # Each leaf names its sharding, so that a
    # device reads only the chunks of its own part.
    template = jax.tree.map(with_sharding, shape_tree, sharding_tree)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            (folder / WEIGHTS).absolute(), nest_paths(leaves_by_path(template))
        )
    # Orbax returns dicts in an order of its own; leaves are put back by their paths.
    leaves = leaves_by_path(restored)
    ordered = [leaves[path] for path in leaves_by_path(shape_tree)]
    return jax.tree.unflatten(jax.tree.structure(shape_tree), ordered)


def nest_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nest leaves in dicts of dicts, the inverse of `leaves_by_path`.

    Args:
      leaves: parameter path -> leaf.

    Returns:
      The tree, as Orbax takes it.

    Example:
      >>> nest_paths({"head": 2.0, "norm/scale": 1.0})
      {'head': 2.0, 'norm': {'scale': 1.0}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def array_folder(folder: Path, path: str) -> Path:
    """Name the folder of a parameter's chunks.

    Args:
      folder: a converted checkpoint.
      path: the parameter's path.

    Returns:
      The folder; Orbax separates the keys of a path by dots.
    """
    return folder / WEIGHTS / path.replace("/", ".")


def zarr_metadata(
    shape: tuple[int, ...], chunk_shape: tuple[int, ...], order: str, dtype: str
) -> dict[str, Any]:
    """Build the .zarray file of an array whose chunks are raw bytes.

    Args:
      shape: shape of the array.
      chunk_shape: shape of a chunk.
      order: layout inside a chunk, "C" (last index fastest) or "F" (first fastest).
      dtype: "float32", "bfloat16" or "float16".

    Returns:
      The content of .zarray, in version 2 of the zarr format.
    """
    return {
        "chunks": list(chunk_shape),
        "compressor": None,
        "dimension_separator": ".",
        "dtype": _ZARR_DTYPES[dtype],
        "fill_value": None,
        "filters": None,
        "order": order,
        "shape": list(shape),
        "zarr_format": 2,
    }


def check_arrays(folder: Path, shape_tree: Any) -> None:
    """Check that every chunk of every parameter is there in full.

    Orbax reads a chunk that is missing as zeros, so without this check a damaged folder
    would load as a different model.

    Args:
      folder: a converted checkpoint.
      shape_tree: the shapes of its parameters, see `param_shapes`.

    Raises:
      ValueError: a parameter or a chunk is missing, cut short, or of another shape.
    """
    problems = []
    for path, leaf in leaves_by_path(shape_tree).items():
        parameter_folder = array_folder(folder, path)
        if not (parameter_folder / ".zarray").is_file():
            problems.append(f"parameter {path} is missing")
            continue
        metadata = read_json(parameter_folder / ".zarray")
        shape = tuple(metadata["shape"])
        if shape != leaf.shape:
            problems.append(f"parameter {path} has shape {shape}, not {leaf.shape}")
        problems += _damaged_chunks(parameter_folder, metadata)
    if problems:
        num_hidden = len(problems) - _MAX_PROBLEMS_SHOWN
        shown = problems[:_MAX_PROBLEMS_SHOWN]
        shown += [f"and {num_hidden} more"] if num_hidden > 0 else []
        raise ValueError(
            f"checkpoint {folder}: {'; '.join(shown)}; "
            "the weights are not whole, so convert again"
        )


def _damaged_chunks(parameter_folder: Path, metadata: dict[str, Any]) -> list[str]:
    """List the chunk files of an array that are missing or have a wrong size."""
    chunk_shape = metadata["chunks"]
    dtypes = {zarr: jnp.dtype(DTYPES[name]) for name, zarr in _ZARR_DTYPES.items()}
    num_bytes = math.prod(chunk_shape) * dtypes[metadata["dtype"]].itemsize
    chunk_counts = [
        size // chunk
        for size, chunk in zip(metadata["shape"], chunk_shape, strict=True)
    ]
    problems = []
    for position in itertools.product(*map(range, chunk_counts)):
        file = parameter_folder / ".".join(map(str, position))
        if not file.is_file() or file.stat().st_size != num_bytes:
            name = f"{parameter_folder.name}/{file.name}"
            problems.append(f"{name} is missing or cut short")
    return problems


def write_json(path: Path, value: Any) -> None:
    """Write JSON with a line for each key.

    Args:
      path: the file, replaced where it exists.
      value: what to write.
    """
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
