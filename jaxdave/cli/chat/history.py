"""Conversations in files: JSON lists of messages, replaced as a whole."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jaxdave.cli.chat.conversation import Conversation
from jaxdave.runtime.files import parse_json, read_regular, replace_file
from jaxdave.runtime.locks import Busy, locked

_PRIVATE = 0o600


def read(path: Path, conversation: Conversation) -> Conversation:
    """Take what was said from a file, where there is one.

    Args:
        path: The file.
        conversation: Its settings stay, and so does its system prompt.

    Returns:
        The conversation; as it was if there is no file.

    Raises:
        ValueError: The file is no conversation, or cannot be read.
    """
    # A link that leads nowhere is no missing file, but one that was lost.
    if not os.path.lexists(path):
        return conversation
    try:
        messages = parse_json(read_regular(path))
        if not isinstance(messages, list):
            raise ValueError("it must be a list of messages")
        return conversation.with_messages(messages)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"{path} is no conversation ({reason}); choose another file"
        ) from error


def write(path: Path, conversation: Conversation) -> None:
    """Write a conversation to a file, or replace the one that it holds.

    Args:
        path: The file.
        conversation: What was said in it.

    Raises:
        ValueError: There is something else in the file, or it cannot be written; it is
            as it was then.
    """
    read(path, conversation)  # nothing but a conversation is replaced
    text = json.dumps(conversation.messages, ensure_ascii=False, indent=1) + "\n"
    try:
        # The file that a link leads to, so that the link stays one.
        target = Path(os.path.realpath(path))
        # What was said is nobody else's affair, unless its owner has said so.
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else _PRIVATE
        replace_file(target, text.encode(), mode=mode)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); choose another file"
        ) from error


@contextlib.contextmanager
def held(path: Path | None) -> Iterator[None]:
    """Keep other chats away from a file.

    Args:
        path: The file, which need not exist; None: there is none.

    Returns:
        A context manager.

    Raises:
        ValueError: Another chat has it, or its folder cannot be written to.
    """
    if path is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            target = Path(os.path.realpath(path))
            stack.enter_context(locked(target.with_name(f".{target.name}.lock")))
        except Busy:
            raise ValueError(
                f"{path} is in use by another chat; end that one, or choose another "
                "file"
            ) from None
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror}); choose another file"
            ) from None
        yield
