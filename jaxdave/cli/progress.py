"""What a terminal shows of long commands: a spinner at the start, and a bar.

Off a terminal nothing is shown, and rich is not imported.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from jaxdave.runtime.phases import listening

Answer = TypeVar("Answer")


def _is_shown() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def startup_spinner() -> Iterator[Callable[[], None]]:
    """Show what a start is doing, on a terminal.

    Returns:
        A context manager that gives a function that ends the spinner, which must be
        called before anything is printed.
    """
    if not _is_shown():
        yield lambda: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        # Markup in names (a folder may be called "[red]") is text.
        with listening(lambda title: status.update(title.replace("[", r"\["))):
            yield status.stop


def shown_progress(
    results: Iterator[Answer],
    total: int,
    finished: int = 0,
    *,
    tokens_of: Callable[[Answer], int],
) -> Iterator[Answer]:
    """Pass results on, and show how far they are on a terminal.

    Args:
        results: Answers as they come.
        total: How many there will be.
        finished: How many an earlier run has made.
        tokens_of: answer -> its number of tokens.

    Returns:
        The results.
    """
    if total == 1 or not _is_shown():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from jaxdave.eval.run.progress import TimeLeftColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeLeftColumn(),
    )
    tokens = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        fields = {"rate": "", "done": finished, "at": 0.0}
        task = bars.add_task("answers", total=total, completed=finished, **fields)
        start = bars.get_time()
        with listening(lambda title: bars.update(task, description=title)):
            for result in results:
                tokens, now = tokens + tokens_of(result), bars.get_time()
                rate = f"{tokens / max(now - start, 1e-9):.0f} tokens/s"
                bars.update(task, advance=1, at=now, rate=rate, description="answers")
                yield result
