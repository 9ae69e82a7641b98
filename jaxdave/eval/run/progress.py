"""Progress of a run on a terminal: items done, time left, share of right answers."""

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

from jaxdave.eval.run.cells import EvalCell
from jaxdave.eval.run.records import Record
from jaxdave.eval.run.runner import OnRecord


class TimeLeftColumn(ProgressColumn):
    """The time left, from this run's average time per item up to its last one.

    An item may take minutes, a batch comes at once, and items of an earlier run come in
    no time: rich's own column would take each of these for the speed. Tasks carry two
    fields: `done`, items of an earlier run, and `at`, the time of the last item.
    """

    def render(self, task: Task) -> Text:
        """Render the column.

        Args:
            task: A bar, with the fields `done` and `at`.

        Returns:
            Hours, minutes and seconds; dashes while there is nothing to average.
        """
        completed = task.completed - task.fields["done"]
        last, start = task.fields["at"], task.start_time
        remaining = task.remaining
        if remaining is None or start is None or (remaining and not completed):
            return Text("-:--:-- left")
        # Time since the last item has gone from what the next one takes.
        waited = task.get_time() - last
        seconds = remaining and (last - start) / completed * remaining - waited
        return Text(f"{datetime.timedelta(seconds=max(0, int(seconds)))} left")


class ProgressDisplay(NamedTuple):
    """Bars of a run.

    Attributes:
        add_counter: (title, total) -> function to call `total` times.
        add_cell: (cell, records of an earlier run) -> function to call with every new
            record.
    """

    add_counter: Callable[[str, int], Callable[[], None]]
    add_cell: Callable[[EvalCell, Collection[Record]], OnRecord]


@contextlib.contextmanager
def progress_display(console: Console | None = None) -> Iterator[ProgressDisplay]:
    """Show a bar per cell; off a terminal, a line when a cell is finished.

    Args:
        console: Where to print; None for stderr.

    Returns:
        A context manager that gives the display.
    """
    console = console or Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[right]}"),
        TimeElapsedColumn(),
        TimeLeftColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def add_counter(title: str, total: int) -> Callable[[], None]:
            task = bars.add_task(title, total=total, right="", done=0, at=0.0)
            return lambda: bars.update(task, advance=1, at=bars.get_time())

        yield ProgressDisplay(add_counter, functools.partial(_add_cell, bars, console))


def _add_cell(
    bars: Progress, console: Console, cell: EvalCell, done: Collection[Record]
) -> OnRecord:
    total = len(cell.entries)
    title = f"{cell.task.name} {cell.method.title(cell.settings)}"
    fields = {"right": "", "done": len(done), "at": 0.0}
    task = bars.add_task(title, total=total, completed=len(done), **fields)
    grades = [record.right for record in done]

    def show() -> None:
        text = f"{100 * sum(grades) / len(grades):.1f} % right"
        bars.update(task, completed=len(grades), right=text, at=bars.get_time())
        if len(grades) == total and not console.is_terminal:
            console.print(f"{title}: {total} items, {text}")

    def on_record(record: Record) -> None:
        grades.append(record.right)
        show()

    if grades:
        show()
    return on_record
