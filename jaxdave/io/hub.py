"""Where a model is: in this package, in a folder, or on the Hub."""

import importlib.resources
import os
import re
from pathlib import Path

DEMO_FOLDER = "sdar-1m"
DEMO_MODELS = (DEMO_FOLDER, "llada-1m", "dream-1m")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt"]


def find_model(source: str | os.PathLike | None) -> tuple[str, Path]:
    """The name and the folder of a source, fetched from the Hub where needed.

    Raises ValueError when it is none of the three kinds that `load` takes.
    """
    text = DEMO_FOLDER if source is None else os.fspath(source)
    if text in DEMO_MODELS:
        return text, Path(str(importlib.resources.files("jaxdave") / "demo" / text))
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return folder.resolve().name, folder.absolute()
    if not _HUB_ID.fullmatch(text):
        raise ValueError(
            f"model {text!r} is unknown; use {', '.join(DEMO_MODELS)}, a checkpoint "
            "folder or a Hub id such as 'JetLM/SDAR-4B-Chat'"
        )
    return text, _fetch(text)


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # HTTP clients and caches have many kinds of failure
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model {hub_id!r} is no folder and cannot be fetched from the Hub "
            f"({reason}); check the name and the network, or pass a local folder"
        ) from error
