"""The prompts of a command line: from an argument or a file of JSON lines, checked."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdave.engine.batching import check_room

if TYPE_CHECKING:
    from jaxdave.io.checkpoint import Model


_KINDS = ("prompt", "messages", "prompt_ids")


@dataclasses.dataclass(frozen=True)
class Asked:
    """One prompt as it was given.

    index: keys its noise. kind: one of "prompt", "messages", "prompt_ids". where: what
    errors begin with. draft_text: what the answer may look like.
    """

    index: int
    kind: str
    value: Any
    where: str = ""
    draft_text: str | None = None


def read_asked(
    prompt: str | None, file: Path | None, draft_text: str | None = None
) -> list[Asked]:
    """The prompts of a command line.

    Raises ValueError unless there is either a prompt or a readable file of JSON lines.
    """
    if prompt is None and file is None:
        raise ValueError(
            "no prompt was given; write one in quotes or pass --prompts FILE.jsonl"
        )
    if prompt is not None and file is not None:
        raise ValueError(
            f"both a prompt and --prompts {file} were given; leave one of them out"
        )
    if file is None:
        return [Asked(0, "prompt", prompt, draft_text=draft_text)]
    if draft_text is not None:
        raise ValueError(
            f"--draft-text is for one prompt and --prompts {file} was given; write "
            '"draft_text" into its lines'
        )
    lines = enumerate(_read(file).splitlines())
    asked = [_parse(file, index, line) for index, line in lines if line.strip()]
    if not asked:
        raise ValueError(f"{file} holds no prompt; write one JSON object a line")
    return asked


def encode(asked: Asked, model: "Model", max_new_tokens: int) -> list[int]:
    """The token ids of a prompt. Raises ValueError, naming its line, for a bad one."""
    try:
        if asked.kind == "prompt_ids":
            ids = _checked_ids(asked.value, model)
        elif asked.kind == "messages":
            ids = model.codec.encode_messages(asked.value)
        elif isinstance(asked.value, str):
            ids = model.codec.encode_prompt(asked.value)
        else:
            raise ValueError(f"prompt={asked.value!r} must be a text; put it in quotes")
        check_room(ids, model, max_new_tokens)
        return ids
    except ValueError as error:
        raise ValueError(f"{asked.where}{error}") from error


def encode_hints(asked: Sequence[Asked], model: "Model") -> list[list[int]] | None:
    """The ids of all draft texts, empty where there is none; None: there are none."""
    if all(one.draft_text is None for one in asked):
        return None
    return [model.codec.encode_answer(one.draft_text or "") for one in asked]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(
            f"prompts file {file} cannot be read ({reason}); check the path"
        ) from error


def _parse(file: Path, index: int, line: str) -> Asked:
    where = f"{file}, line {index + 1}: "
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{where}broken JSON ({error}); write one object a line"
        ) from error
    kinds = [k for k in _KINDS if isinstance(value, dict) and k in value]
    if len(kinds) != 1:
        raise ValueError(
            f"{where}{line.strip()[:60]!r} must be an object with exactly one of "
            f"{', '.join(_KINDS)}; add or remove the others"
        )
    told = value.get("draft_text")
    if told is not None and not isinstance(told, str):
        raise ValueError(
            f"{where}draft_text={str(told)[:60]} must be a text; put it in quotes"
        )
    return Asked(index, kinds[0], value[kinds[0]], where, told)


def _checked_ids(value: Any, model: "Model") -> list[int]:
    size, mask = model.config.vocab_size, model.config.mask_id
    good = isinstance(value, list) and all(
        type(i) is int and 0 <= i < size and i != mask for i in value
    )
    if not good or not value:
        raise ValueError(
            f"prompt_ids={str(value)[:60]} must be token ids in 0..{size - 1} without "
            f"the mask id {mask}; give at least one"
        )
    return value
