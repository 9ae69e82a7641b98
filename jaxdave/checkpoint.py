"""Models as folders: SDAR's Hugging Face layout, read and written without torch."""

import dataclasses
import importlib.resources
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jaxdave import names, weights
from jaxdave.config import ModelConfig
from jaxdave.model.denoiser import Params
from jaxdave.text import Codec, load_codec
from jaxdave.tokenizer import read_json

DEMO = "sdar-1m"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
_WRITTEN = ("config.json", "generation_config.json", weights.ONE_FILE, weights.INDEX)
# What `save` carries over from the folder that it replaces.
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json") + (
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_KEPT = (*_TOKENIZER, "README.md", "LICENSE")


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything that decoding text needs; params as in `denoiser.abstract`."""

    name: str
    folder: Path
    config: ModelConfig
    params: Params = dataclasses.field(repr=False)
    codec: Codec


def load(
    source: str | os.PathLike | None = None,
    *,
    dtype: str = "float32",
    block_length: int | None = None,
    mask_id: int | None = None,
) -> Model:
    """The model of a folder, of the Hub, or of this package.

    source: "sdar-1m" or None for the packaged demo; a folder; a Hub id "owner/name".
    dtype: "float32" or "bfloat16", whatever the files hold. block_length, mask_id: go
        before what the folder says; SDAR's files on the Hub say nothing of either.
    Raises one ValueError that names everything wrong with the folder's weights.
    """
    weights.check_dtype(dtype)
    name, folder = find(source)
    raw = read_json(folder / "config.json")
    fields = names.fields_of(raw)
    codec = load_codec(folder, mask_id)
    _check_mask(folder, raw, codec, mask_id)
    config = _config(name, folder, raw, fields, codec, block_length)
    return Model(name, folder, config, weights.read(folder, config, dtype), codec)


def save(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: Any,
    *,
    dtype: str,
    tokenizer: str | os.PathLike | None = None,
) -> None:
    """Write a folder that `load` reads, under a temporary name, then rename it.

    tokenizer: a folder whose tokenizer files go along. Those that `folder` has already
        are carried over, as are README.md and LICENSE; its older weights are replaced.
    Raises ValueError when the folder holds anything else or the parameters do not fit.
    """
    folder = Path(folder).absolute()
    weights.check_dtype(dtype)
    described = names.to_json(config, dtype)
    kept = _kept(folder)
    if tokenizer is not None:
        kept += [p for p in Path(tokenizer).iterdir() if p.name in _TOKENIZER]
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        weights.write(made / weights.ONE_FILE, config, params, dtype)
        _write_json(made / "config.json", described)
        generation = {
            "eos_token_id": list(config.stop_ids),
            "pad_token_id": config.pad_id,
        }
        _write_json(made / "generation_config.json", generation)
        for path in kept:
            shutil.copyfile(path, made / path.name)
        _open_up(made)
        _swap(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def find(source: str | os.PathLike | None) -> tuple[str, Path]:
    """The name and the folder of a source, fetched from the Hub where needed.

    Raises ValueError when it is none of the three kinds that `load` takes.
    """
    text = DEMO if source is None else os.fspath(source)
    if text == DEMO:
        return DEMO, Path(str(importlib.resources.files("jaxdave") / "demo" / DEMO))
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return folder.resolve().name, folder.absolute()
    if not _HUB_ID.fullmatch(text):
        raise ValueError(
            f"model {text!r} is unknown; use {DEMO!r}, a checkpoint folder or a Hub id "
            "such as 'JetLM/SDAR-4B-Chat'"
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


def _check_mask(folder: Path, raw: dict, codec: Codec, mask_id: int | None) -> None:
    said = raw.get("mask_token_id")
    if mask_id is None and said is not None and said != codec.mask_id:
        raise ValueError(
            f"{folder}: mask_token_id={said!r} of config.json must be the id of the "
            f"tokenizer's mask token, {codec.mask_id}; mend either, or pass mask_id"
        )


def _config(
    name: str,
    folder: Path,
    raw: dict[str, Any],
    fields: dict[str, Any],
    codec: Codec,
    block_length: int | None,
) -> ModelConfig:
    if block_length is None:
        block_length = raw.get("block_size")
    if type(block_length) is not int:
        raise ValueError(
            f"{folder}: block_size={block_length!r} in config.json must be the block "
            "length of the training; pass block_length (4 for SDAR-Chat)"
        )
    # Ids that the tokenizer does not have must never be predicted.
    vocab_size = raw.get("real_vocab_size", min(codec.size, fields["vocab_rows"]))
    if type(vocab_size) is not int or vocab_size > codec.size:
        raise ValueError(
            f"{folder}: real_vocab_size={vocab_size!r} in config.json must be a number "
            f"up to the tokenizer's {codec.size}; take both from one folder"
        )
    return ModelConfig(
        name=name,
        family="sdar",
        qk_norm=True,
        rotary_dim=fields["head_dim"],
        block_length=block_length,
        vocab_size=vocab_size,
        mask_id=codec.mask_id,
        pad_id=codec.pad_id,
        stop_ids=codec.stop_ids,
        **fields,
    )


def _kept(folder: Path) -> list[Path]:
    """The files of an existing folder that stay in it."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file and must be a folder; choose a new one")
    found = sorted(folder.iterdir())
    odd = [p.name for p in found if p.name not in _WRITTEN + _KEPT or not p.is_file()]
    if odd:
        raise ValueError(
            f"{folder} holds {odd[0]!r}, which is no part of a checkpoint and would be "
            "lost; choose a new folder"
        )
    return [path for path in found if path.name in _KEPT]


def _open_up(folder: Path) -> None:
    """Temporary folders are private; a checkpoint is as readable as any other file."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def _swap(made: Path, folder: Path) -> None:
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
