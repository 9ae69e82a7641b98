"""Locating models: in this package, in a folder, or on the Hugging Face Hub."""

import importlib.resources
import os
import re
from pathlib import Path

from jaxdave.runtime.messages import one_line

DEFAULT_MODEL = "sdar-1m"
DEMO_MODELS = (DEFAULT_MODEL, "llada-1m", "dream-1m")
"""Trained models that come with the package."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt"]


def find_model(source: str | os.PathLike | None) -> tuple[str, Path]:
    """Find the folder of a model and fetch it from the Hub where needed.

    Args:
      source: one of `DEMO_MODELS` (None: the first), a folder, or a Hub id
        "owner/name".

    Returns:
      The model's name and its folder.

    Raises:
      ValueError: the source is none of the three, or the Hub cannot be reached.

    Example:
      >>> find_model(None)[0]
      'sdar-1m'
    """
    text = DEFAULT_MODEL if source is None else os.fspath(source)
    if text in DEMO_MODELS:
        return text, Path(str(importlib.resources.files("jaxdave") / "demo" / text))
    # A local folder "owner/name" wins over the Hub's model of that id.
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
    """Download a model's folder into the Hub client's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # HTTP clients and caches have many kinds of failure
        reason = one_line(error)[:200]
        raise ValueError(
            f"model {hub_id!r} is no folder and cannot be fetched from the Hub "
            f"({reason}); check the name and the network, or pass a local folder"
        ) from error
