"""Decodes in a thread of their own, so that Ctrl-C can leave one behind.

A decode computes in C for long stretches, and so does a compilation. The thread that
waits for it stays free to draw, and to stop waiting: what was left behind ends at its
next call, and what it was compiling is there for the next answer.
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxdave.engine.sampler import AnswerSnapshot, Prompt, Sampler

TICK_SECONDS = 0.08
"""How long a wait lasts until whoever waits may draw, or stop."""


class Worker:
    """A thread that does one thing after another, for as long as the process lives."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="chat", daemon=True).start()

    def submit(self, job: Callable[[], None]) -> None:
        """Do something when all before it is done.

        Args:
            job: It must raise nothing.
        """
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            self._jobs.get()()


class Progress(NamedTuple):
    """News of a decode.

    Attributes:
        snapshot: The answer after its last call; None before there is one.
        seconds: Since programs were compiled, as the decode itself has measured them.
        is_compiled: They are.
    """

    snapshot: "AnswerSnapshot | None" = None
    seconds: float = 0.0
    is_compiled: bool = False


@dataclasses.dataclass(eq=False)
class Answer:
    """One decode, in a worker's thread.

    Attributes:
        sampler: What decodes.
        prompt: What it answers.
        request: Keys its noise.
    """

    sampler: "Sampler"
    prompt: "Prompt"
    request: int
    _news: "queue.SimpleQueue[Progress | BaseException | None]" = dataclasses.field(
        default_factory=queue.SimpleQueue, init=False, repr=False
    )
    _is_left: threading.Event = dataclasses.field(
        default_factory=threading.Event, init=False, repr=False
    )

    def run(self) -> None:
        """Decode; for the worker's thread."""
        if self._is_left.is_set():
            return
        try:
            # Compiles, before the first snapshot is asked for.
            snapshots = self.sampler.snapshots(self.prompt, request=self.request)
            self._news.put(Progress(is_compiled=True))
            start = time.perf_counter()
            for snapshot in snapshots:
                if self._is_left.is_set():
                    return
                seconds = time.perf_counter() - start
                self._news.put(Progress(snapshot, seconds, is_compiled=True))
            self._news.put(None)
        except BaseException as error:  # noqa: BLE001
            self._news.put(error)

    def leave(self) -> None:
        """Let the decode end at its next call."""
        self._is_left.set()

    def progress(self) -> Iterator[Progress]:
        """Wait for the decode.

        Returns:
            An iterator of news; when there are none for `TICK_SECONDS`, the last one
            again.

        Raises:
            ValueError: As the sampler.
        """
        last = Progress()
        while True:
            try:
                news = self._news.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield last
                continue
            if news is None:
                return
            if isinstance(news, BaseException):
                raise news
            last = news
            yield last


def warm_up(worker: Worker, sampler: "Sampler", prompt: "Prompt") -> None:
    """Compile what an answer will need, while something else is done.

    Args:
        worker: Compiles it.
        sampler: The sampler.
        prompt: A prompt of about the length.
    """

    def job() -> None:
        # What is wrong is said when it is decoded.
        try:
            sampler.warm_up(prompt)
        except Exception:  # noqa: BLE001
            return

    worker.submit(job)
