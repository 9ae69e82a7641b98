"""Writing files so that nothing half-written survives a failure."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

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


def open_up(folder: Path) -> None:
    """Make a temporary folder, which is private, as readable as any other file."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def swap(made: Path, folder: Path) -> None:
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
