"""Writing files so that nothing half-written survives a failure."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

NO_CACHE = "JAXDAVE_NO_CACHE"
"""Set in the environment: nothing is kept from run to run."""


def replace_file(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, then rename."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def make_readable(folder: Path) -> None:
    """Make a temporary folder, which is private, as readable as any other file."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def replace_folder(made: Path, folder: Path) -> None:
    """Put `made` in the place of `folder`; if that fails, the old one is back."""
    if not folder.exists():
        made.rename(folder)
        return
    aside = made.with_name(made.name + ".old")
    folder.rename(aside)
    try:
        made.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


def cache_folder(name: str) -> Path | None:
    """Where this platform keeps what can be made again; None: nothing is to be kept."""
    if os.environ.get(NO_CACHE):
        return None
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "jaxdave" / name


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty where it is optional and absent.

    Raises ValueError naming the file.
    """
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: missing file; a checkpoint folder must have it, so fetch or "
            "save the folder again"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as JSON ({error}); fetch the folder again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object; fetch the folder again")
    return value
