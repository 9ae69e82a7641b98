"""What a terminal sees of a run: how far it is, how long it will take, how right."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxdave.eval.records import Record
from jaxdave.eval.runner import Cell, Watch

Bar = Callable[[str, Cell], Watch]
"""(title, cell) -> what is to be told of every record of the cell."""


@contextlib.contextmanager
def watching(console: Console | None = None) -> Iterator[Bar]:
    """A bar per cell on stderr; where that is no terminal, a line when one is done."""
    console = console or Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[right]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:

        def bar(title: str, cell: Cell) -> Watch:
            return _cell(shown, console, title, len(cell.entries))

        yield bar


def _cell(shown: Progress, console: Console, title: str, total: int) -> Watch:
    task = shown.add_task(title, total=total, right="")
    seen: list[bool] = []

    def watch(record: Record) -> None:
        seen.append(record.right)
        text = f"{100 * sum(seen) / len(seen):.1f} % right"
        shown.update(task, completed=len(seen), right=text)
        if len(seen) == total and not console.is_terminal:
            console.print(f"{title}: {total} items, {text}")

    return watch
