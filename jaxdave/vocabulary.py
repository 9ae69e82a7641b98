"""A tokenizer's ids, straight from its files.

Opening the tokenizer itself takes longer than copying a gigabyte.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdave.tokenizer import open_tokenizer, read_json


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token -> id (None for a token that it lacks); all ids are below size."""

    id_of: Callable[[str | None], int | None]
    size: int


def read(folder: Path) -> Vocabulary:
    """The vocabulary of a folder. Raises ValueError where it has no tokenizer."""
    whole = read_json(folder / "tokenizer.json", optional=True)
    found = _of_model(whole.get("model") or {})
    found |= read_json(folder / "vocab.json", optional=True)
    if not found:  # a kind of file that only its own library reads
        tokenizer = open_tokenizer(folder)
        return Vocabulary(tokenizer.id_of, tokenizer.size)
    found |= read_json(folder / "added_tokens.json", optional=True)
    found |= {one["content"]: one["id"] for one in whole.get("added_tokens") or []}
    settings = read_json(folder / "tokenizer_config.json", optional=True)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        found[token["content"]] = int(number)
    return Vocabulary(lambda token: found.get(token or ""), 1 + max(found.values()))


def _of_model(model: dict[str, Any]) -> dict[str, int]:
    """A model has its tokens by id, or in the order of their ids."""
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):
        return {token: number for number, (token, _) in enumerate(vocab)}
    return dict(vocab)
