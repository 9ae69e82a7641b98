"""Processes as threads: each has its own number, and they exchange bytes."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from jaxdave.distributed.processes import Processes

PATIENCE = 30
"""Seconds after which threads that wait for each other are given up."""


def run_together(count: int, work: Callable[[Processes], Any]) -> list[Any]:
    """Run a function in several threads.

    Args:
        count: How many.
        work: Called in each of them with its processes.

    Returns:
        What each has returned or raised.
    """
    barrier = threading.Barrier(count)
    contents: list[bytes] = [b""] * count
    outcomes: list[Any] = [None] * count

    def run(index: int) -> None:
        def gather(content: bytes) -> list[bytes]:
            contents[index] = content
            barrier.wait(PATIENCE)
            gathered = list(contents)
            # Nobody may go on before all have read.
            barrier.wait(PATIENCE)
            return gathered

        try:
            outcomes[index] = work(Processes(index=index, count=count, gather=gather))
        except Exception as error:  # noqa: BLE001
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def all_raised(outcomes: Sequence[Any], kind: type[Exception], message: str) -> bool:
    """True if every thread has raised an error of a kind with a message."""
    return all(isinstance(one, kind) and message in str(one) for one in outcomes)
