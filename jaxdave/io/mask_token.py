"""The mask token of a tokenizer that may have none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdave.io.checkpoint import TOKENIZER_FILES
from jaxdave.io.families import FAMILIES
from jaxdave.io.special_tokens import special_tokens_map
from jaxdave.io.vocabulary import read_vocabulary
from jaxdave.runtime.files import parse_json, read_regular
from jaxdave.runtime.messages import one_line

NEW_TOKEN = "<|mask|>"
"""The text of a mask token that is added, unless another is named."""


class MaskToken(NamedTuple):
    """A mask token, and the files of a tokenizer that knows it.

    Attributes:
        token: Its text.
        token_id: Its id.
        is_new: Whether it was added, so that no row of the embedding is of it.
        files: Name of a tokenizer file -> its content.
    """

    token: str
    token_id: int
    is_new: bool
    files: dict[str, bytes]


def find_or_add(folder: Path, token: str | None = None) -> MaskToken:
    """Find the mask token of a tokenizer, or add one.

    Args:
        folder: A folder with tokenizer files.
        token: The text of the mask token. None: the one that the files name, or one
            under a name that published models have, or a new `NEW_TOKEN`.

    Returns:
        The token, with the tokenizer files in which it is the mask token.

    Raises:
        ValueError: The folder has no tokenizer, or one that no token can be added to.
    """
    vocabulary = read_vocabulary(folder)
    files = read_tokenizer_files(folder)
    usual = [family.mask_token for family in FAMILIES.values() if family.mask_token]
    names = [special_tokens_map(folder).get("mask_token"), *usual]
    if token is None:
        known = (name for name in names if vocabulary.id_of(name) is not None)
        token = next(known, None) or NEW_TOKEN
    token_id = vocabulary.id_of(token)
    if token_id is not None:
        return MaskToken(token, token_id, False, _name_it(files, token, None))
    files, token_id = _add(folder, files, token, vocabulary.size)
    return MaskToken(token, token_id, True, _name_it(files, token, token_id))


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer files of a folder.

    Args:
        folder: A checkpoint folder.

    Returns:
        Name -> content, of `checkpoint.TOKENIZER_FILES` as far as they are there.
    """
    return {
        name: read_regular(folder / name)
        for name in TOKENIZER_FILES
        if (folder / name).is_file()
    }


def _add(
    folder: Path, files: Mapping[str, bytes], token: str, size: int
) -> tuple[dict[str, bytes], int]:
    """The files with one more special token in tokenizer.json, and its id."""
    from tokenizers import AddedToken, Tokenizer

    if "tokenizer.json" not in files:
        raise ValueError(
            f"{folder}: no tokenizer.json to add {token!r} to; save the tokenizer with "
            "transformers, or name a token that it has with mask_token"
        )
    try:
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{folder}: unreadable tokenizer.json ({one_line(error)}); fetch the "
            "folder again"
        ) from error
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    token_id = tokenizer.token_to_id(token)
    # Ids that another of the files takes would be of two tokens.
    if token_id is None or token_id < size:
        raise ValueError(
            f"{folder}: {token!r} cannot be added behind the tokenizer's {size} ids; "
            "name a token that it has with mask_token"
        )
    return {**files, "tokenizer.json": tokenizer.to_str().encode("utf-8")}, token_id


def _name_it(
    files: Mapping[str, bytes], token: str, new_id: int | None
) -> dict[str, bytes]:
    """The files with the mask token named in them, and listed where it is new."""
    named = dict(files)

    def change(name: str, **changes: Any) -> None:
        value = {**parse_json(files[name]), **changes} if name in files else changes
        named[name] = (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()

    settings: dict[str, Any] = {"mask_token": token}
    raw = parse_json(files.get("tokenizer_config.json", b"{}"))
    if new_id is not None and raw.get("added_tokens_decoder"):
        entry = {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        listed = {**raw["added_tokens_decoder"], str(new_id): entry}
        settings["added_tokens_decoder"] = listed
    change("tokenizer_config.json", **settings)
    if "special_tokens_map.json" in files:
        change("special_tokens_map.json", mask_token=token)
    if new_id is not None and "added_tokens.json" in files:
        change("added_tokens.json", **{token: new_id})
    return named
