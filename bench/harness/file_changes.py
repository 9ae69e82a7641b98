"""Changes of a checkpoint's files, and what they may lead to."""

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAME, EITHER, REFUSED, OTHER = "same", "either", "refused", "other"
"""What a mutation may lead to: the same text; that or a refusal; a refusal; any text or
a refusal, as it makes another model of the folder."""

Change = tuple[str, str, Callable[[Path], object]]
"""(name, effect, function)"""


def json_change(key: str, new: Any, file: str = "config.json"):
    """Set a key of a JSON file, or with ... drop it."""
    return functools.partial(change_json, file=file, **{"key": key, "new": new})


def change_json(folder: Path, key: str, new: Any, file: str) -> None:
    path = folder / file
    raw = json.loads(path.read_text()) if path.exists() else {}
    raw[key] = new
    if new is ...:
        del raw[key]
    path.write_text(json.dumps(raw))


def write(file: str, content: bytes | str):
    data = (
        content.encode("utf-8", "surrogatepass")
        if isinstance(content, str)
        else content
    )
    return lambda folder: (folder / file).write_bytes(data)


def edit(file: str, change: Callable[[bytes], bytes]):
    return lambda folder: (folder / file).write_bytes(
        change((folder / file).read_bytes())
    )


def link(path: Path, target: Path) -> None:
    shutil.move(path, target)
    path.symlink_to(target)


def replace(path: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    if path.is_file() or path.is_symlink():
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind != "missing":
        targets = {"loop": path.name, "device": "/dev/zero", "nowhere": "lost"}
        path.symlink_to(targets[kind])
