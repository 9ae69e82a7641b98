"""Converted checkpoints: a folder with our config.json and orbax weights.

`weights/` is an orbax checkpoint of exactly the tree of `params.abstract`, one folder
of uncompressed zarr chunks for each parameter.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.io.safetensors_io import DTYPES, leaves_of
from jaxdave.io.sharding import shardings
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.files import read_json

FORMAT = "jaxdave"
VERSION = 2
WEIGHTS = "weights"
_ZARR_TYPES = {"float32": "<f4", "bfloat16": "bfloat16"}
_MOST_SHOWN = 5


def is_orbax_folder(raw: dict[str, Any]) -> bool:
    """Whether a config.json is one of ours."""
    return raw.get("format") == FORMAT


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a converted checkpoint."""
    model = dataclasses.asdict(config)
    return {"format": FORMAT, "version": VERSION, "dtype": dtype, "model": model}


def read_config(raw: dict[str, Any], folder: Path) -> ModelConfig:
    """The config that our config.json holds. Raises ValueError when it is broken."""
    if raw.get("version") != VERSION:
        raise ValueError(
            f"{folder}: version={raw.get('version')!r} in config.json must be "
            f"{VERSION}; convert again, or use the jaxdave that wrote it"
        )
    try:
        fields: dict[str, Any] = dict(raw["model"])
        return ModelConfig(**{**fields, "stop_ids": tuple(fields["stop_ids"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{folder}: config.json does not describe a model ({error}); convert again"
        ) from error


def restore(
    folder: Path, config: ModelConfig, dtype: str, mesh: jax.sharding.Mesh | None
) -> Params:
    """The parameters of a converted checkpoint, straight onto their devices.

    mesh: split over its axis "model" (see `sharding`); None: all on the first device.
    Raises one ValueError that names everything wrong with the weights.
    """
    import orbax.checkpoint as ocp

    like = param_shapes(config, DTYPES[dtype])
    check_arrays(folder, like)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = (
        jax.tree.map(lambda _: place, like)
        if mesh is None
        else shardings(like, config, mesh)
    )
    asked = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        like,
        places,
    )
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(
            (folder / WEIGHTS).absolute(), nest_paths(leaves_of(asked))
        )
    found = leaves_of(found)
    ordered = [found[path] for path in leaves_of(like)]
    return jax.tree.unflatten(jax.tree.structure(like), ordered)


def nest_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by parameter path in dicts of dicts, as orbax takes them."""
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        home = made
        for key in parents:
            home = home.setdefault(key, {})
        home[last] = leaf
    return made


def array_folder(folder: Path, path: str) -> Path:
    """Where the chunks of a parameter lie."""
    return folder / WEIGHTS / path.replace("/", ".")


def array_json(shape: tuple[int, ...], chunks: tuple[int, ...], order: str, dtype: str):
    """The .zarray of an array of raw bytes; order is "C" or "F" inside a chunk."""
    return {
        "chunks": list(chunks),
        "compressor": None,
        "dimension_separator": ".",
        "dtype": _ZARR_TYPES[dtype],
        "fill_value": None,
        "filters": None,
        "order": order,
        "shape": list(shape),
        "zarr_format": 2,
    }


def check_arrays(folder: Path, like: Any) -> None:
    """Raise ValueError unless every chunk of every parameter is there in full.

    Orbax would read a chunk that is missing as zeros.
    """
    problems = []
    for path, leaf in leaves_of(like).items():
        home = array_folder(folder, path)
        if not (home / ".zarray").is_file():
            problems.append(f"parameter {path} is missing")
            continue
        array = read_json(home / ".zarray")
        if tuple(array["shape"]) != leaf.shape:
            problems.append(
                f"parameter {path} has shape {tuple(array['shape'])}, not {leaf.shape}"
            )
        problems += _lost_chunks(home, array)
    if problems:
        more = len(problems) - _MOST_SHOWN
        tail = [f"and {more} more"] if more > 0 else []
        raise ValueError(
            f"checkpoint {folder}: {'; '.join(problems[:_MOST_SHOWN] + tail)}; "
            "the weights are not whole, so convert again"
        )


def _lost_chunks(home: Path, array: dict[str, Any]) -> list[str]:
    chunks = array["chunks"]
    kinds = {zarr: jnp.dtype(DTYPES[name]) for name, zarr in _ZARR_TYPES.items()}
    size = math.prod(chunks) * kinds[array["dtype"]].itemsize
    grid = [range(n // c) for n, c in zip(array["shape"], chunks, strict=True)]
    found = []
    for place in itertools.product(*grid):
        file = home / ".".join(map(str, place))
        if not file.is_file() or file.stat().st_size != size:
            found.append(f"{home.name}/{file.name} is missing or cut short")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON as people read it."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
