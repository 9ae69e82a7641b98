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

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
SHARDS = ("a.safetensors", "b.safetensors")


def make(
    home: Path, config: ModelConfig = checkpoint_folders.CONFIG, dtype: str = "bfloat16"
) -> Path:
    """A folder with one weight file."""
    checkpoint_folders.make(home / "source", config, dtype)
    return home / "source"


def split(folder: Path) -> Path:
    """The folder with two weight files and their index.

    The second one's header has an order, a padding and metadata of its own.
    """
    tensors = load_file(folder / ONE_FILE)
    (folder / ONE_FILE).unlink()
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, folder / SHARDS[0], {"format": "pt"})
    write_odd(folder / SHARDS[1], {n: tensors[n] for n in names[1::2][::-1]})
    homes = {name: SHARDS[i % 2] for i, name in enumerate(names)}
    write_index(folder, {"metadata": {"total_size": 1}, "weight_map": homes})
    return folder


def write_odd(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A file by hand, which safetensors' own writer would lay out otherwise."""
    kinds = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    described = {n: (kinds[str(t.dtype)], t.shape) for n, t in tensors.items()}
    header = (
        safetensors_header.build(described, {"format": "pt", "who": "müller"})
        + b" " * 40
    )
    length = (len(header) - 8).to_bytes(8, "little")
    data = b"".join(np.ascontiguousarray(t).tobytes() for t in tensors.values())
    path.write_bytes(length + header[8:] + data)


def write_index(folder: Path, value) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / INDEX).write_text(text)


def change_json(path: Path, **changes) -> None:
    """Set keys, or with ... drop them."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))


def change_tensors(folder: Path, changes: Mapping[str, np.ndarray | None]) -> None:
    """Set tensors of the only file, or with None drop them."""
    tensors = {**load_file(folder / ONE_FILE), **changes}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, folder / ONE_FILE)


def run(*arguments: object) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def names_in(home: Path) -> list[str]:
    return sorted(os.listdir(home))


def same_files(a: Path, b: Path) -> None:
    assert names_in(a) == names_in(b)
    for path in a.iterdir():
        assert path.read_bytes() == (b / path.name).read_bytes(), path.name


def flip(path: Path) -> None:
    """Change the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def refused(home: Path, capsys, source: object, *options: object) -> str:
    """The one line of a conversion that fails as bad input does, leaving nothing."""
    before = names_in(home)
    assert run(source, home / "ours", *options) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "Traceback" not in err
    assert err.startswith("jaxdave-convert: ")
    assert names_in(home) == before
    return err
