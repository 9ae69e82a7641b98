"""Several processes of `jax.distributed`: who this one is, and how they agree.

Every process decodes a share of the prompts on its own devices. The first one alone
writes files and prints, and what goes wrong anywhere ends all of them.
"""

import atexit
import contextlib
import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jaxdave.distributed.process_config import ProcessConfig
from jaxdave.runtime.messages import one_line
from jaxdave.runtime.streams import silenced

Value = TypeVar("Value")
_BAD_INPUT = 2


class AgreedError(ValueError):
    """What has gone wrong on some process, raised on all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that work together.

    Attributes:
        index: Which this one is, from 0.
        count: How many there are.
        gather: Bytes of this process -> those of all, by index. All processes must call
            it equally often.
        share_model: The model lies on a mesh of all of them, so that each computes all
            results; otherwise they take turns.
    """

    index: int
    count: int
    gather: Callable[[bytes], list[bytes]]
    share_model: bool = False

    @property
    def is_first(self) -> bool:
        """True for the process that writes and prints."""
        return self.index == 0

    def running(self) -> contextlib.AbstractContextManager[None]:
        """For programs that all processes run together, if they share a model."""
        return running_together() if self.share_model else contextlib.nullcontext()

    def exchange(self, value: Any) -> list[Any]:
        """Tell all processes a value.

        Args:
            value: JSON values.

        Returns:
            The values of all processes, by index.

        Raises:
            ValueError: A process has gone.
        """
        return [json.loads(one) for one in self.gather(json.dumps(value).encode())]

    def agree(self, work: Callable[[], Value]) -> Value:
        """Do something on every process; where one fails, all do.

        Args:
            work: What to do.

        Returns:
            What it has returned here.

        Raises:
            AgreedError: It has failed with bad input on some process.
        """
        if self.count == 1:
            return work()
        try:
            result, error = work(), None
        except (ValueError, OSError) as caught:
            result, error = None, str(caught)
        raise_first(self.exchange(error))
        return result  # pyright: ignore


ALONE = Processes(index=0, count=1, gather=lambda content: [content])
"""One process that works for itself."""


def raise_first(errors: Sequence[str | None]) -> None:
    """Raise the error of the first process that has one.

    Args:
        errors: By process; None where all is well.

    Raises:
        AgreedError: There is one.
    """
    found = [error for error in errors if error is not None]
    if found:
        raise AgreedError(found[0])


def check_same(what: str, values: Sequence[Any]) -> None:
    """Refuse processes that do not do the same.

    Args:
        what: What must be the same, in the plural.
        values: It, by process.

    Raises:
        AgreedError: Two of them differ.
    """
    for index, value in enumerate(values):
        if value != values[0]:
            raise AgreedError(
                f"processes 0 and {index} have different {what}; start all of them "
                "with the same command and the same files"
            )


def initialize(config: ProcessConfig, name: str = "jaxdave") -> Processes:
    """Let this process be one of several, before JAX has done anything else.

    Where they do not come together in time, JAX would abort the process with a trace of
    its stack: it is ended before that, with one line and exit code 2.

    Args:
        config: Which processes.
        name: The program's name, which that line begins with.

    Returns:
        The processes.

    Raises:
        ValueError: The environment does not tell which processes there are.
    """
    where = config.coordinator or "of the environment"
    message = (
        f"{name}: coordinator={where} cannot be reached, or not all processes have "
        f"come, in {config.connect_seconds} s; check the address, and that all of them "
        "run"
    )

    def give_up() -> None:
        os.write(2, f"{one_line(message)}\n".encode())
        os._exit(_BAD_INPUT)

    watchdog = threading.Timer(config.connect_seconds, give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            # Later than the watchdog, whose end is the better one.
            initialization_timeout=config.connect_seconds + 60,
        )
    except Exception as error:  # JAX has many kinds of failure
        raise ValueError(
            f"these processes cannot be joined ({one_line(error)[:200]}); give "
            "--coordinator HOST:PORT, --num-processes and --process-id"
        ) from error
    finally:
        watchdog.cancel()
    gather_bytes(b"")
    return Processes(
        index=jax.process_index(), count=jax.process_count(), gather=gather_bytes
    )


def gather_bytes(content: bytes) -> list[bytes]:
    """Tell all processes some bytes, by a collective of all devices.

    Args:
        content: The bytes of this process.

    Returns:
        Those of all processes, by index.

    Raises:
        ValueError: A process has gone.
    """
    from jax.experimental import multihost_utils

    with running_together():
        sizes_P1 = multihost_utils.process_allgather(np.asarray([len(content)]))
        sizes_P = np.asarray(sizes_P1).reshape(-1)
        # A power of two, as a program is compiled for every size.
        padded = np.zeros(1 << int(sizes_P.max()).bit_length(), np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        gathered_PN = np.asarray(multihost_utils.process_allgather(padded))
    return [
        row[:size].tobytes() for row, size in zip(gathered_PN, sizes_P, strict=True)
    ]


@contextlib.contextmanager
def running_together() -> Iterator[None]:
    """Run programs of a mesh that several processes share.

    Returns:
        A context manager.

    Raises:
        ValueError: A process has gone; one line instead of what JAX raises.
    """
    try:
        # Gloo says on standard output which processes it has connected, at the first
        # exchange of every group of devices.
        with silenced(1):
            yield
    except jax.errors.JaxRuntimeError as error:
        atexit.register(_leave_at_once)
        raise ValueError(
            f"another process has gone ({one_line(error)[:120]}); run all of them "
            "again, with --resume where there is a file"
        ) from error


def _leave_at_once() -> None:
    """End the process before JAX waits for one that has gone, and then aborts."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(_BAD_INPUT)


def own_share(items: Sequence[Value], processes: Processes) -> Iterator[Value | None]:
    """This process's part of some items, one a round.

    Args:
        items: The same on every process.
        processes: The processes; they take the items in turn, or each has all of them
            if they share a model.

    Yields:
        The item of this process in every round, None where there is none. All
        processes have equally many rounds.

    Example:
        >>> other = dataclasses.replace(ALONE, index=1, count=2)
        >>> list(own_share("abc", other))
        ['b', None]
    """
    if processes.share_model:
        yield from items
        return
    for first in range(0, len(items), processes.count):
        at = first + processes.index
        yield items[at] if at < len(items) else None


@contextlib.contextmanager
def first_speaks(processes: Processes) -> Iterator[None]:
    """Let the first process alone print, warn, and say what all have agreed on.

    Args:
        processes: The processes.

    Returns:
        A context manager. On other processes an `AgreedError` in it ends the program
        with exit code 2 and without a word; what only they know they do say.

    Raises:
        SystemExit: See above.
    """
    if processes.is_first:
        yield
        return
    logger = logging.getLogger("jaxdave")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    except AgreedError:
        raise SystemExit(_BAD_INPUT) from None
    finally:
        logger.setLevel(level)
