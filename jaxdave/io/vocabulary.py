"""The tokens of a tokenizer, read from JSON.

Opening a tokenizer of 150,000 ids takes seconds, which most questions are not worth.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdave.io.tokenizer_backend import open_tokenizer
from jaxdave.runtime.files import read_json


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
      id_of: token -> id; None for a token that the tokenizer lacks, and for None.
      size: one more than the largest id.
    """

    id_of: Callable[[str | None], int | None]
    size: int


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a folder, if possible without opening its tokenizer.

    Args:
      folder: a folder with tokenizer files.

    Returns:
      The vocabulary, added tokens included.

    Raises:
      ValueError: the folder has no tokenizer, or one that cannot be read.
    """
    try:
        ids = _read_ids(folder)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: tokens are not as tokenizer files have them "
            f"({type(error).__name__}: {error}); fetch the folder again"
        ) from error
    if not ids:  # a kind of file that only its own library reads
        backend = open_tokenizer(folder)
        return Vocabulary(id_of=backend.id_of, size=backend.size)
    for token, number in ids.items():
        if type(number) is not int or number < 0:
            raise ValueError(
                f"{folder}: token {token[:40]!r} has the id {str(number)[:40]!r}, "
                "which must be a whole number from 0 on; fetch the folder again"
            )

    def id_of(token: str | None) -> int | None:
        return ids.get(token or "")

    return Vocabulary(id_of=id_of, size=1 + max(ids.values()))


def _read_ids(folder: Path) -> dict[str, Any]:
    """Token -> id, from all of the files; empty where none of them has a list."""
    tokenizer_json = read_json(folder / "tokenizer.json", optional=True)
    ids = _model_vocabulary(tokenizer_json.get("model") or {})
    ids |= read_json(folder / "vocab.json", optional=True)
    if not ids:
        return {}
    # Added tokens come last: they replace entries of the same text in the model's part.
    ids |= read_json(folder / "added_tokens.json", optional=True)
    added_tokens = tokenizer_json.get("added_tokens") or []
    ids |= {token["content"]: token["id"] for token in added_tokens}
    settings = read_json(folder / "tokenizer_config.json", optional=True)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        ids[token["content"]] = int(number)
    return ids


def _model_vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Read tokenizer.json's model: a map token -> id, or pairs in the order of ids."""
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):
        return {token: number for number, (token, _) in enumerate(vocab)}
    return dict(vocab)
