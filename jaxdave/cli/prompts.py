"""The prompts of a command line: from an argument or a file of JSON lines, checked."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdave.engine.batching import check_room
from jaxdave.engine.prompt_batches import EncodedPrompt
from jaxdave.engine.sampler import check_prompt_ids
from jaxdave.engine.stop_strings import check_stops
from jaxdave.runtime.files import parse_json, read_regular

if TYPE_CHECKING:
    from jaxdave.io.checkpoint import Model, ModelDescription


STDIN = Path("-")
"""Stands for standard input where a file of prompts is named."""
_KINDS = ("prompt", "messages", "prompt_ids")
_EXTRAS = ("draft_text", "template_args", "stop")


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt as a user gives it.

    Attributes:
        index: Keys its noise.
        kind: One of "prompt", "messages", "prompt_ids".
        value: Anything that stands there.
        where: What errors begin with.
        draft_text: What the answer may look like.
        template_args: What the chat template reads beside the messages.
        stops: Texts before which the answer ends.
    """

    index: int
    kind: str
    value: Any
    where: str = ""
    draft_text: str | None = None
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stops: tuple[str, ...] = ()


def read_requests(
    prompt: str | None, file: Path | None, draft_text: str | None = None
) -> list[Request]:
    """The prompts of a command line.

    Args:
        prompt: The argument, or None; "-": all of standard input. Without a prompt and
            a file, what is piped in is the prompt.
        file: The file of JSON lines, or None; "-": standard input.
        draft_text: What the answer to the argument may look like.

    Returns:
        A request for the argument, or for every line that is not empty.

    Raises:
        ValueError: There is not either a prompt or a readable file of JSON lines.
    """
    is_piped = sys.stdin is not None and not sys.stdin.isatty()
    if prompt == "-" or (prompt is None and file is None and is_piped):
        prompt = _read_stdin().strip() or None
    if prompt is None and file is None:
        raise ValueError(
            "no prompt was given; write one in quotes, pipe one in, or pass --prompts "
            "FILE.jsonl"
        )
    if prompt is not None and file is not None:
        raise ValueError(
            f"both a prompt and --prompts {file} were given; leave one of them out"
        )
    if file is None:
        return [Request(0, "prompt", prompt, draft_text=draft_text)]
    if draft_text is not None:
        raise ValueError(
            f"--draft-text is for one prompt and --prompts {file} was given; write "
            '"draft_text" into its lines'
        )
    # Only a line feed ends a line: a string may hold U+2028 and its like as they are.
    lines = enumerate(_read(file).split("\n"))
    requests = [_parse(file, index, line) for index, line in lines if line.strip()]
    if not requests:
        name = "standard input" if file == STDIN else file
        raise ValueError(f"{name} holds no prompt; write one JSON object a line")
    return requests


def encode(
    request: Request, model: "Model | ModelDescription", max_new_tokens: int
) -> EncodedPrompt:
    """A prompt as token ids.

    Args:
        request: The prompt.
        model: The model that reads it.
        max_new_tokens: Positions that must be left for the answer.

    Returns:
        The prompt.

    Raises:
        ValueError: The prompt is broken or too long; names its line.
    """
    try:
        codec = model.codec.with_template_args(**request.template_args)
        if request.kind == "prompt_ids":
            ids = check_prompt_ids(request.value, model.config)
        elif request.kind == "messages":
            ids = codec.encode_messages(request.value)
        elif isinstance(request.value, str):
            ids = codec.encode_prompt(request.value)
        else:
            raise ValueError(
                f"prompt={request.value!r} must be a text; put it in quotes"
            )
        check_room(ids, model, max_new_tokens)
    except ValueError as error:
        raise ValueError(f"{request.where}{error}") from error
    return EncodedPrompt(
        request=request.index,
        ids=ids,
        draft_text=request.draft_text,
        stops=request.stops,
    )


def _read_stdin() -> str:
    """All of standard input; nothing where it is closed or cannot be read."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("standard input is not UTF-8; convert it") from None
    except (AttributeError, OSError, ValueError):  # closed, or not there at all
        return ""


def _read(file: Path) -> str:
    if file == STDIN:
        return _read_stdin()
    try:
        return read_regular(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(
            f"prompts file {file} cannot be read ({reason}); check the path"
        ) from error


def _parse(file: Path, index: int, line: str) -> Request:
    where = f"{file}, line {index + 1}: "
    try:
        value = parse_json(line)
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
    unknown = [key for key in value if key not in (*_KINDS, *_EXTRAS)]
    if unknown:
        raise ValueError(
            f"{where}{unknown[0]!r} is no key of a prompt; use one of "
            f"{', '.join(_KINDS)}, and beside it of {', '.join(_EXTRAS)}"
        )
    draft_text = value.get("draft_text")
    if draft_text is not None and not isinstance(draft_text, str):
        raise ValueError(
            f"{where}draft_text={str(draft_text)[:60]} must be a text; put it in quotes"
        )
    template_args = value.get("template_args", {})
    if not isinstance(template_args, dict):
        raise ValueError(
            f"{where}template_args={str(template_args)[:60]} must be an object"
        )
    try:
        stops = check_stops(value.get("stop", ()))
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    return Request(
        index, kinds[0], value[kinds[0]], where, draft_text, template_args, stops
    )
