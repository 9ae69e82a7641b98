"""What a terminal sees of a run: how far it is, how long it will take, how right."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxdave.eval.cells import Cell
from jaxdave.eval.records import Record
from jaxdave.eval.runner import Watch


class Shown(NamedTuple):
    """counted(title, total) -> what to call total times. watch(cell) -> what is to be
    told of every record of the cell."""

    counted: Callable[[str, int], Callable[[], None]]
    watch: Callable[[Cell], Watch]


@contextlib.contextmanager
def watching(console: Console | None = None) -> Iterator[Shown]:
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
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def counted(title: str, total: int) -> Callable[[], None]:
            task = bars.add_task(title, total=total, right="")
            return lambda: bars.advance(task)

        yield Shown(counted, functools.partial(_cell, bars, console))


def _cell(bars: Progress, console: Console, cell: Cell) -> Watch:
    total = len(cell.entries)
    title = f"{cell.task.name} {cell.method.title(cell.settings)}"
    task = bars.add_task(title, total=total, right="")
    seen: list[bool] = []

    def watch(record: Record) -> None:
        seen.append(record.right)
        text = f"{100 * sum(seen) / len(seen):.1f} % right"
        bars.update(task, completed=len(seen), right=text)
        if len(seen) == total and not console.is_terminal:
            console.print(f"{title}: {total} items, {text}")

    return watch
