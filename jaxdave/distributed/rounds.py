"""Rounds of work of several processes, which go on together and fail together."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from jaxdave.distributed.processes import Processes, raise_first

Value = TypeVar("Value")


class SharedRounds:
    """Rounds in which every process does its part and then has the results of all.

    All processes must make the same calls of `exchange` and `end` in the same order.
    What one process cannot do ends the round for all.

    Args:
        processes: The processes.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._failure: str | None = None
        self._is_over = False

    def exchange(
        self,
        work: Callable[[], Sequence[Value]],
        to_values: Callable[[Sequence[Value]], list[Any]] = list,
        from_values: Callable[[Iterable[Any]], tuple[Value, ...]] = tuple,
    ) -> tuple[Value, ...]:
        """Do this process's part of a round.

        Args:
            work: The part; it gives results.
            to_values: Makes JSON values of them.
            from_values: The inverse.

        Returns:
            The results of all processes, in the order of their indices; of those that
            share a model the first one's, as all have the same.

        Raises:
            AgreedError: A process has failed in this round, or in what it has
                attempted before.
        """
        if self._processes.count == 1:
            return tuple(work())
        results: Sequence[Value] = ()
        if self._failure is None:
            try:
                results = self._compute(work)
            except (ValueError, OSError) as error:
                self._failure = str(error)
        return from_values(self._tell(to_values(results)))

    def attempt(self, work: Callable[[], None]) -> None:
        """Do what other processes have no part in, such as writing.

        Args:
            work: What to do. If it fails, the next round does, on all processes.
        """
        if self._processes.count == 1:
            return work()
        try:
            work()
        except (ValueError, OSError) as error:
            self._failure = str(error)

    def end(self) -> None:
        """Wait until all processes have come to the end.

        Raises:
            AgreedError: One has failed.
        """
        self.exchange(tuple)
        self._is_over = True

    def fail(self, error: Exception) -> None:
        """Tell the others that this process will come to no further round.

        Args:
            error: Why; nothing is done if they know it.
        """
        if self._processes.count > 1 and not self._is_over:
            self._is_over = True
            self._processes.exchange({"error": str(error), "values": []})

    def _compute(self, work: Callable[[], Sequence[Value]]) -> Sequence[Value]:
        """What this process adds to the results of a round."""
        with self._processes.running():
            results = work()
        is_copy = self._processes.share_model and not self._processes.is_first
        return () if is_copy else results

    def _tell(self, values: list[Any]) -> list[Any]:
        """The values of all processes; raises where one has failed."""
        try:
            messages = self._processes.exchange(
                {"error": self._failure, "values": values}
            )
            raise_first([message["error"] for message in messages])
        except ValueError:
            self._is_over = True  # all of them know
            raise
        return [value for message in messages for value in message["values"]]
