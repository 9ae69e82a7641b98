"""Special tokens and their ids, as the JSON files of a checkpoint folder name them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdave.runtime.files import read_json


def special_tokens_map(folder: Path) -> dict[str, str]:
    """Read the texts of a folder's special tokens.

    Args:
      folder: a folder with tokenizer files.

    Returns:
      "mask_token", "eos_token" and so on -> the token's text. tokenizer_config.json
      overrides special_tokens_map.json.
    """
    tokens = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(folder / name, optional=True).items():
            value = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(value, str):
                tokens[key] = value
    return tokens


def stop_and_pad_ids(
    folder: Path, id_of: Callable[[str | None], int | None], size: int
) -> tuple[tuple[int, ...], int]:
    """Read the ids that end an answer and the id that pads.

    generation_config.json goes before config.json, and that before the tokenizer files.

    Args:
      folder: a checkpoint folder.
      id_of: token -> id, as in `Vocabulary`.
      size: size of the vocabulary; ids must be below it.

    Returns:
      The stop ids, and the pad id: the first stop id where no file names one.

    Raises:
      ValueError: no file names a stop id, or one is no id of the vocabulary.
    """
    names = special_tokens_map(folder)
    generation = read_json(folder / "generation_config.json", optional=True)
    config = read_json(folder / "config.json", optional=True)
    candidates = (
        generation.get("eos_token_id"),
        config.get("eos_token_id"),
        id_of(names.get("eos_token")),
    )
    # A null says nothing, and does not hide what the other files say.
    eos: Any = next((ids for ids in candidates if ids is not None), None)
    stop_ids = eos if isinstance(eos, list) else [eos]
    if not stop_ids or not all(type(i) is int and 0 <= i < size for i in stop_ids):
        raise ValueError(
            f"{folder}: eos_token_id={eos!r} must be one or more token ids below "
            f"{size}; mend generation_config.json"
        )
    pads = (
        generation.get("pad_token_id"),
        config.get("pad_token_id"),
        id_of(names.get("pad_token")),
    )
    pad_id = next((pad for pad in pads if type(pad) is int), stop_ids[0])
    return tuple(stop_ids), pad_id
