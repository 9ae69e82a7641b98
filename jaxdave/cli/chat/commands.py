"""Lines that begin with a slash: what they are called, and what they do in one line."""

import difflib
from typing import NamedTuple


class Command(NamedTuple):
    """A command of the chat.

    Attributes:
        name: What stands after the slash.
        words: What follows it, at most so many words; the last one takes the rest.
        usage: How it is written.
        help: What it does.
    """

    name: str
    words: int
    usage: str
    help: str


COMMANDS = {
    command.name: command
    for command in (
        Command("help", 0, "/help", "list the commands"),
        Command("undo", 0, "/undo", "drop the last turn"),
        Command("reset", 0, "/reset", "drop all turns; the system prompt stays"),
        Command(
            "set", 2, "/set [NAME [VALUE]]", "list, show or change how it is decoded"
        ),
        Command("history", 0, "/history", "show the conversation"),
        Command("save", 1, "/save FILE", "write the conversation as JSON"),
        Command("quit", 0, "/quit", "end; Ctrl-D does, too"),
    )
}


class Call(NamedTuple):
    """A command as it was typed.

    Attributes:
        name: Its name.
        words: What follows it.
    """

    name: str
    words: tuple[str, ...]


def parse(line: str) -> Call | None:
    """Read a line.

    Args:
        line: What was typed.

    Returns:
        The command; None for what is said to the model: a line that does not begin with
        a slash, as one that begins with a space.

    Raises:
        ValueError: There is no such command, or it is written otherwise.

    Example:
        >>> parse("/set top-k 5").words
        ('top-k', '5')
    """
    if not line.startswith("/"):
        return None
    name, *rest = line[1:].split(maxsplit=1) or [""]
    command = COMMANDS.get(name)
    if command is None:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean /{nearest[0]}?" if nearest else "/help lists them"
        raise ValueError(f"there is no command /{name}; {remedy}")
    text = rest[0].strip() if rest else ""
    words = tuple(text.split(maxsplit=max(command.words - 1, 0)))
    needs_word = "[" not in command.usage and command.words
    if len(words) > command.words or (needs_word and not words):
        raise ValueError(f"/{name} is written {command.usage}")
    return Call(name, tuple(word.strip() for word in words))


def help_text() -> str:
    """All commands, a line each."""
    lines = [f"{one.usage:<20} {one.help}" for one in COMMANDS.values()]
    lines.append("A line that begins with a space is said as it is, slash or not.")
    return "\n".join(lines)
