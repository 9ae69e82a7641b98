"""Tiny SDAR folders as the Hub has them, for tests of the converter."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from helpers import checkpoint_folders
from jaxdave_convert import cli, safetensors_header
from safetensors.numpy import load_file, save_file

from jaxdave.core.config import ModelConfig

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
SHARDS = ("a.safetensors", "b.safetensors")


def make(
    parent: Path,
    config: ModelConfig = checkpoint_folders.CONFIG,
    dtype: str = "bfloat16",
) -> Path:
    """Makes parent/source, a folder with one weight file, and returns it."""
    checkpoint_folders.make(parent / "source", config, dtype)
    return parent / "source"


def split(folder: Path) -> Path:
    """Replaces the weight file by two and their index.

    The second one's header has an order, a padding and metadata of its own.
    """
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, folder / SHARDS[0], {"format": "pt"})
    write_unusual(folder / SHARDS[1], {n: tensors[n] for n in names[1::2][::-1]})
    weight_map = {name: SHARDS[i % 2] for i, name in enumerate(names)}
    write_index(folder, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    return folder


def write_unusual(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a valid file that safetensors' own writer would lay out differently."""
    dtypes = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    header = safetensors_header.build_header(
        {name: (dtypes[str(t.dtype)], t.shape) for name, t in tensors.items()},
        {"format": "pt", "who": "müller"},
    )
    header += b" " * 40
    length = (len(header) - 8).to_bytes(8, "little")
    data = b"".join(np.ascontiguousarray(t).tobytes() for t in tensors.values())
    path.write_bytes(length + header[8:] + data)


def write_index(folder: Path, value) -> None:
    """Writes the index, from a value or from its text."""
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / INDEX_FILE).write_text(text)


def change_json(path: Path, **changes) -> None:
    """Sets keys of a JSON file, or with ... drops them."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))


def change_tensors(folder: Path, changes: Mapping[str, np.ndarray | None]) -> None:
    """Sets tensors of the only weight file, or with None drops them."""
    tensors = {**load_file(folder / WEIGHTS_FILE), **changes}
    remaining = {name: value for name, value in tensors.items() if value is not None}
    save_file(remaining, folder / WEIGHTS_FILE)


def run(*arguments: object) -> int:
    """Runs jaxdave-convert with these arguments and returns the exit code."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def names_in(folder: Path) -> list[str]:
    """Names of everything in a folder, hidden files included, sorted."""
    return sorted(os.listdir(folder))


def assert_same_files(a: Path, b: Path) -> None:
    """Asserts that two folders have the same files, byte for byte."""
    assert names_in(a) == names_in(b)
    for path in a.iterdir():
        assert path.read_bytes() == (b / path.name).read_bytes(), path.name


def flip_last_bit(path: Path) -> None:
    """Changes the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def refused(parent: Path, capsys, source: object, *options: object) -> str:
    """Runs a conversion that must fail as bad input does, and leave nothing.

    Returns the one line that it prints.
    """
    before = names_in(parent)
    assert run(source, parent / "ours", *options) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "Traceback" not in err
    assert err.startswith("jaxdave-convert: ")
    assert names_in(parent) == before
    return err
