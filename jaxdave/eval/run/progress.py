"""What a terminal sees of a run: how far it is, how long it will take, how right."""

import contextlib
import datetime
import functools
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from jaxdave.eval.run.cells import Cell
from jaxdave.eval.run.records import Record
from jaxdave.eval.run.runner import Watch


class Left(ProgressColumn):
    """The time left, at the pace of this run up to the last item; `at`: when that was.

    An item may take minutes, a batch comes at once, and what an earlier run has left
    comes in no time: rich's own column takes each for a pace.
    """

    def render(self, task: Task) -> Text:
        made, at = task.completed - task.fields["done"], task.fields["at"]
        left, begun = task.remaining, task.start_time
        if left is None or begun is None or (left and not made):
            return Text("-:--:-- left")
        seconds = left and (at - begun) / made * left - (task.get_time() - at)
        return Text(f"{datetime.timedelta(seconds=max(0, int(seconds)))} left")


class Shown(NamedTuple):
    """counted(title, total) -> what to call total times. watch(cell, the records of an
    earlier run) -> what is to be told of every record that is made now."""

    counted: Callable[[str, int], Callable[[], None]]
    watch: Callable[[Cell, Collection[Record]], Watch]


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
        Left(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def counted(title: str, total: int) -> Callable[[], None]:
            task = bars.add_task(title, total=total, right="", done=0, at=0.0)
            return lambda: bars.update(task, advance=1, at=bars.get_time())

        yield Shown(counted, functools.partial(_cell, bars, console))


def _cell(
    bars: Progress, console: Console, cell: Cell, done: Collection[Record]
) -> Watch:
    total = len(cell.entries)
    title = f"{cell.task.name} {cell.method.title(cell.settings)}"
    there = len(done)
    own = {"right": "", "done": there, "at": 0.0}
    task = bars.add_task(title, total=total, completed=there, **own)
    seen = [record.right for record in done]

    def show() -> None:
        text = f"{100 * sum(seen) / len(seen):.1f} % right"
        bars.update(task, completed=len(seen), right=text, at=bars.get_time())
        if len(seen) == total and not console.is_terminal:
            console.print(f"{title}: {total} items, {text}")

    def watch(record: Record) -> None:
        seen.append(record.right)
        show()

    if seen:
        show()
    return watch
