"""The file of `--output`: JSON lines that appear complete, and a journal until then."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdave.runtime.files import check_replaceable, replace_file
from jaxdave.runtime.journal import WriteValue, journal_writer, read_journal
from jaxdave.runtime.locks import Busy, locked


class AnswersFile(NamedTuple):
    """An answers file that is being written.

    Attributes:
        finished: Answers of an earlier run, as JSON values.
        write: Appends an answer; it is on disk when that returns.
    """

    finished: list[dict[str, Any]]
    write: WriteValue


def journal_path(path: Path) -> Path:
    """Where the answers are until all of them are there.

    Args:
        path: The answers file.

    Returns:
        The file beside it.
    """
    return path.with_name(f"{path.name}.part")


def check_target(path: Path, *, resume: bool) -> None:
    """Refuse a target that cannot be written, before anything is decoded.

    Args:
        path: The answers file.
        resume: Whether an unfinished run is to be gone on with.

    Raises:
        ValueError: It cannot be replaced (`files.check_replaceable`), or an unfinished
            run is there that is not to be resumed.
    """
    check_replaceable(path, "output")
    if journal_path(path).exists() and not resume:
        raise ValueError(
            f"{journal_path(path)} holds the answers of an unfinished run; go on with "
            "--resume, or take it away"
        )


def is_complete(path: Path) -> bool:
    """Tell if an answers file is there and no run has to go on with it.

    Args:
        path: The answers file.

    Returns:
        True if it is complete.
    """
    return path.exists() and not journal_path(path).exists()


@contextlib.contextmanager
def open_answers(path: Path, header: Mapping[str, Any]) -> Iterator[AnswersFile]:
    """Write answers to a file that appears when the context ends without an error.

    Args:
        path: The answers file; what was there is replaced at the end.
        header: All that the answers depend on, as JSON values.

    Returns:
        A context manager that gives the file. After an error the answers so far are in
        `journal_path`; if there is none, nothing is.

    Raises:
        ValueError: Another run writes there, or the unfinished one had other settings.
        OSError: It cannot be written.
    """
    journal = journal_path(path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_name(f".{path.name}.lock")))
        except Busy:
            raise ValueError(
                f"output={path} is being written to by another run; wait until it has "
                "ended, or choose another file"
            ) from None
        finished = read_journal(journal, header)
        try:
            with journal_writer(journal, header) as write:
                yield AnswersFile(finished, write)
            lines = [
                json.dumps(value, ensure_ascii=False) + "\n"
                for value in sorted(read_journal(journal, header), key=_number)
            ]
            replace_file(path, "".join(lines).encode("utf-8"))
            journal.unlink()
        except BaseException:
            _remove_if_empty(journal, header)
            raise


def _number(value: Mapping[str, Any]) -> tuple[int, int]:
    return value["index"], value.get("sample", 0)


def _remove_if_empty(journal: Path, header: Mapping[str, Any]) -> None:
    """Take away a journal without answers."""
    with contextlib.suppress(OSError, ValueError):
        if not read_journal(journal, header):
            journal.unlink()
