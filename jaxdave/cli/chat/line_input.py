"""Lines of a terminal, with a prompt and an editor, or of a pipe, with neither."""

import contextlib
import sys
from typing import Protocol

from jaxdave.runtime import interrupts

PROMPT = "> "


class LineInput(Protocol):
    """Where lines come from."""

    def read(self) -> str | None:
        """The next line without its end; None when there is none any more.

        Raises:
            ValueError: The line is not text.
        """
        ...


class TerminalInput:
    """Lines that are typed, edited with readline where Python has it."""

    def __init__(self) -> None:
        # Importing it gives `input` an editor, and arrow keys the lines before.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401

    def read(self) -> str | None:
        """Ask for a line; Ctrl-C raises KeyboardInterrupt."""
        # By exception, so that readline gives the terminal back as it was.
        with interrupts.handled_by(_raise_interrupt):
            try:
                return input(PROMPT)
            except UnicodeDecodeError:
                raise ValueError(_NOT_UTF8) from None
            except EOFError:
                print(flush=True)
                return None
            except KeyboardInterrupt:
                print(flush=True)
                raise


class PipeInput:
    """Lines of a pipe or a file."""

    def read(self) -> str | None:
        """Read a line."""
        # Bytes, so that a line which is no text costs that line only.
        line = sys.stdin.buffer.readline()
        if not line:
            return None
        try:
            return line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            raise ValueError(_NOT_UTF8) from None


_NOT_UTF8 = "the line is not UTF-8; write it in that encoding"


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
