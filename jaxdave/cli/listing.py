"""Lists of named things with a line about each, for any width and for pipes."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

MIN_WIDTH = 40
"""Narrower terminals wrap lines themselves."""
MAX_WIDTH = 100
"""Longer lines are hard to read."""


class Entry(NamedTuple):
    """A named thing.

    Attributes:
        name: Its name.
        parameters: What it takes, as text; may be empty.
        summary: One sentence.
    """

    name: str
    parameters: str
    summary: str


def print_entries(entries: Sequence[Entry]) -> None:
    """Print entries: a name and its parameters on a line, the sentence below.

    Lines are as wide as the terminal, within bounds; in a pipe every entry is one line
    of name, parameters and sentence with tabs between them, for other programs.

    Args:
        entries: What to print.
    """
    if not sys.stdout.isatty():
        for entry in entries:
            print("\t".join(entry))
        return
    width = shutil.get_terminal_size().columns
    print("\n".join(format_entries(entries, width)))


def format_entries(entries: Sequence[Entry], width: int) -> list[str]:
    """The lines of entries.

    Args:
        entries: What to show.
        width: Columns of the terminal.

    Returns:
        Lines of at most `width` columns, where that is at least `MIN_WIDTH` and no word
        is longer.
    """
    width = min(max(width, MIN_WIDTH), MAX_WIDTH)
    lines = []
    for entry in entries:
        # Parameters break at their commas, and are never cut.
        head = f"{entry.name}  {entry.parameters.replace(',', ', ')}".rstrip()
        lines += textwrap.wrap(head, width, subsequent_indent="      ")
        lines += textwrap.wrap(
            entry.summary, width, initial_indent="    ", subsequent_indent="    "
        )
    return lines
