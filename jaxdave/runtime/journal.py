"""Journals: files of JSON lines that survive a kill, so that a run can be resumed.

The first line is the header, the settings of the run. A line that was written is on
disk; a last line that was cut off is dropped.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdave.runtime.interrupts import unbroken

Header = Mapping[str, Any]
"""Settings of a run, as JSON values."""
WriteValue = Callable[[Mapping[str, Any]], None]
"""Appends an object; when it returns, the object is on disk."""


def read_journal(path: Path, header: Header) -> list[dict[str, Any]]:
    """Read the objects of a journal.

    Args:
        path: The file.
        header: Settings of this run.

    Returns:
        The objects behind the header; none if there is no file.

    Raises:
        ValueError: The file is of a run with other settings, or is broken before its
            last line.
    """
    return _parse(path, header)[0]


@contextlib.contextmanager
def journal_writer(path: Path, header: Header) -> Iterator[WriteValue]:
    """Open a journal for appending, and write its header if it has none.

    Example:
        with journal_writer(path, header) as write:
            write({"id": 1})

    Args:
        path: The file; a broken last line is cut off.
        header: Settings of this run.

    Returns:
        A context manager that gives the function that appends an object.

    Raises:
        ValueError: As `read_journal`.
    """
    valid_bytes = _parse(path, header)[1]
    # Unbuffered: what a full disk has refused is not tried again when it is closed.
    with open(path, "ab", buffering=0) as file:
        file.truncate(valid_bytes)
        if not valid_bytes:
            _write_line(file, {"header": header})
        yield lambda value: _write_line(file, value)


def journal_content(header: Header, values: Iterable[Mapping[str, Any]]) -> bytes:
    """A whole journal, as `journal_writer` writes it.

    Args:
        header: Settings of the run.
        values: The objects behind it.

    Returns:
        The content of the file.
    """
    return b"".join(map(_line, ({"header": header}, *values)))


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _write_line(file, value: Mapping[str, Any]) -> None:
    line = _line(value)
    try:
        with unbroken(f"a line of {file.name}"):
            while line:
                line = line[file.write(line) :]
            # From the system to the disk: it survives a power cut.
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"{file.name} cannot be written ({error.strerror}); what is in it is kept, "
            "so make room and resume the run"
        ) from error


def _parse(path: Path, header: Header) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file, and the number of bytes of its valid lines."""
    content = path.read_bytes() if path.exists() else b""
    lines = content.splitlines(keepends=True)
    values, valid_bytes = [], 0
    for number, line in enumerate(lines, start=1):
        value = parse_line(line)
        # Only the last line can be torn by a kill; before it, the file was damaged.
        if value is None and number < len(lines):
            raise ValueError(
                f"{path}, line {number}: broken JSON; take the file away, and its "
                "items are decoded again"
            )
        if value is not None:
            values.append(value)
            valid_bytes += len(line)
    if values:
        _check_header(path, values[0].get("header"), header)
    return values[1:], valid_bytes


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse a line of a journal.

    Args:
        line: The line, with the line feed that ends it.

    Returns:
        Its object; None if it is cut off or broken.
    """
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _check_header(path: Path, in_file: Any, header: Header) -> None:
    if not isinstance(in_file, dict):
        raise ValueError(f"{path} has no header; choose another --out, or take it away")
    names = sorted({*in_file, *header})
    different = [name for name in names if in_file.get(name) != header.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{path} is of a run with {name}={in_file.get(name)!r}, and this one has "
            f"{header.get(name)!r}; choose another --out, or take it away"
        )
