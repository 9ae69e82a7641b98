"""An answer in a terminal while it is decoded: final text, and masks that fill in.

Lines that can change no more are printed once and scroll away like any others; only
what follows them is drawn over, so an answer may be longer than the screen.
"""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from rich.cells import cell_len, chop_cells
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from jaxdave.cli.chat.answering import Progress
from jaxdave.cli.chat.plain_view import final_text
from jaxdave.cli.token_view import (
    ASCII_MASK,
    MASK,
    masked_text,
    printable,
    token_texts,
)

if TYPE_CHECKING:
    from jaxdave.io.tokenizer import Codec

_FRAME_SECONDS = 0.04
"""Between two drawings: more of them would only slow the decode."""
_SPINNER_SECONDS = 0.3
"""A shorter wait is not explained."""
_SIDE_BY_SIDE = 60
"""Columns from which two answers stand side by side."""
_GAP = 2


def break_lines(text: str, width: int) -> list[str]:
    """Break a text into lines at its spaces.

    Args:
        text: Printable text.
        width: Cells of a line.

    Returns:
        The lines with the spaces and line ends that they were broken at: together they
        are the text, and all but the last stay as they are when it grows.

    Example:
        >>> break_lines("one two three", 8)
        ['one two ', 'three']
    """
    lines, line = [], ""
    for word in re.findall(r"\S+[^\S\n]*\n?|[^\S\n]+\n?|\n", text):
        if line and cell_len((line + word).rstrip()) > width:
            lines.append(line)
            line = ""
        while cell_len(word.rstrip()) > width:
            # A word longer than a line is cut; one cell may be too few for a letter.
            head = next(iter(chop_cells(word, max(width, 2))))
            lines.append(head)
            word = word[len(head) :]
        line += word
        if line.endswith("\n"):
            lines.append(line)
            line = ""
    return [*lines, line]


class _Column:
    """One answer: what is settled of it, and what follows."""

    def __init__(self, codec: "Codec", mask: str) -> None:
        self._codec = codec
        self._mask = mask
        self._num_settled = 0
        self.progress = Progress()
        self._asked_at: float | None = None
        self._spinner = Spinner("dots" if mask == MASK else "line", style="dim")

    def show(self, progress: Progress) -> None:
        """Take news of the answer.

        Args:
            progress: The news.
        """
        self.progress = progress
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def text(self) -> str:
        """The final text that is not settled."""
        return printable(final_text(self._codec, self.progress))[self._num_settled :]

    def settle(self, width: int) -> list[str]:
        """Take the lines that can change no more from the text.

        Args:
            width: Cells of a line.

        Returns:
            The lines.
        """
        lines = break_lines(self.text(), width)[:-1]
        self._num_settled += sum(map(len, lines))
        return lines

    def rest(self) -> RenderableType:
        """What is not settled, and the block that is being denoised."""
        snapshot = self.progress.snapshot
        if snapshot is None:
            return self._wait()
        text = Text(self.text())
        for piece in token_texts(self._codec, snapshot.open_ids):
            if piece is None:
                text.append(masked_text(None, self._mask), style="dim")
            else:
                text.append(piece, style="cyan")
        return text

    def _wait(self) -> RenderableType:
        """What the wait is for, once it is long enough to wonder."""
        asked_at = self._asked_at
        if asked_at is None or time.monotonic() - asked_at < _SPINNER_SECONDS:
            return Text("")
        what = "reading the prompt" if self.progress.is_compiled else "compiling"
        self._spinner.update(text=Text(what, style="dim"))
        return self._spinner


class LiveView:
    """Draws one answer, or several side by side.

    Attributes:
        titles: Names of the answers; one answer needs none.
    """

    def __init__(
        self, console: Console, codec: "Codec", titles: Sequence[str] = ("",)
    ) -> None:
        """Args: console: a terminal; codec: decodes ids; titles: one an answer."""
        self.titles = tuple(titles)
        is_utf8 = console.encoding.startswith("utf")
        mask = MASK if is_utf8 else ASCII_MASK
        self._console = console
        self._columns = [_Column(codec, mask) for _ in titles]
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_at = float("-inf")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Transient: what was drawn over is gone, and the end is printed for good.
        self._live.update(Text(""))
        self._live.stop()
        if kind is None:
            self._print_rest()

    def show(self, index: int, progress: Progress) -> None:
        """Draw news of an answer.

        Args:
            index: Which answer.
            progress: Its news.
        """
        column = self._columns[index]
        column.show(progress)
        now = time.monotonic()
        if now - self._drawn_at < _FRAME_SECONDS:
            return
        self._drawn_at = now
        if len(self._columns) == 1:
            self._print_lines(column.settle(self._console.width))
            self._live.update(column.rest(), refresh=True)
        else:
            self._live.update(self._drawn_columns(), refresh=True)

    def _print_lines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._console.print(Text(line.rstrip()), soft_wrap=True)

    def _print_rest(self) -> None:
        if len(self._columns) == 1:
            (column,) = self._columns
            lines = break_lines(column.text(), self._console.width)
            return self._print_lines(lines)
        cells = [Text(column.text()) for column in self._columns]
        self._console.print(self._beside(self.titles, cells))

    def _drawn_columns(self) -> RenderableType:
        """All answers, of each the lines that fit the screen."""
        is_wide = self._is_wide
        rows = self._console.height - 3 if is_wide else self._console.height // 2 - 2
        titles, cells = [], []
        for title, column in zip(self.titles, self._columns, strict=True):
            titles.append(f"{title}{_counts(column.progress)}")
            rest = column.rest()
            if isinstance(rest, Text):
                lines = rest.wrap(self._console, self._width)
                rest = Text("\n").join(lines[-max(rows, 1) :])
            cells.append(rest)
        return self._beside(titles, cells)

    @property
    def _is_wide(self) -> bool:
        return self._console.width >= _SIDE_BY_SIDE

    @property
    def _width(self) -> int:
        """Cells of a column."""
        width = self._console.width
        return (width - _GAP) // 2 if self._is_wide else width

    def _beside(
        self, titles: Sequence[str], cells: Sequence[RenderableType]
    ) -> RenderableType:
        """Titles over cells; one below the other where there is little room."""
        heads = [Text(title, style="bold") for title in titles]
        if not self._is_wide:
            pairs = zip(heads, cells, strict=True)
            return Group(*(part for pair in pairs for part in pair))
        table = Table.grid(padding=(0, _GAP, 0, 0))
        for _ in titles:
            table.add_column(width=self._width, overflow="fold")
        table.add_row(*heads)
        table.add_row(*cells)
        return table


def _counts(progress: Progress) -> str:
    """What an answer has taken so far."""
    if progress.snapshot is None:
        return ""
    return f" (calls: {progress.snapshot.call + 1}, seconds: {progress.seconds:.2f})"
