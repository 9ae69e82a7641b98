"""Records of finished items: JSON lines that survive a kill.

The first line of a file is its header, the settings of the run. A line is on disk
before the next batch begins; a last line that was cut off is dropped, and its item is
decoded again.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdave.runtime.interrupts import unbroken

FORMAT = 2
"""Version of the format of these files; part of the header."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One item, decoded and graded. The fields are the keys of its JSON line.

    Attributes:
        id: Id of the item.
        digest: Digest of its prompt and reference, hexadecimal.
        right: True if the answer is right.
        extracted: What the grader took for the answer.
        reason: Why it is wrong; "" where it is right.
        text: The text that was graded (`GradedOutput.text`).
        token_ids: Token ids of the answer.
        committed_at: The network call that committed each of them; 0 is the prefill.
        finish_reason: "stop" or "length".
        valid_tokens: Tokens counted as output (`GradedOutput.tokens`).
        decoded_tokens: Tokens decoded, the end token and what is behind it included.
        nfe: Network calls by kind.
        rows: States that those calls evaluated.
        reference_nfe: Calls that the public loop makes on the same path.
        steps: Policy steps.
        batch_rows: Number of items that were decoded together.
        seconds: This item's share of the time of its batch.
        compile_seconds: Seconds of compilation and of the warm-up call, if this is the
            first item of its shape; else 0.
        memory: Bytes by source (`memory.MEMORY_SOURCES`), if this is the first item of
            its shape; else None.
    """

    id: str
    digest: str
    right: bool
    extracted: str
    reason: str
    text: str
    token_ids: tuple[int, ...]
    committed_at: tuple[int, ...]
    finish_reason: str
    valid_tokens: int
    decoded_tokens: int
    nfe: Mapping[str, int]
    rows: int
    reference_nfe: int
    steps: int
    batch_rows: int
    seconds: float
    compile_seconds: float = 0.0
    memory: Mapping[str, int] | None = None


Header = Mapping[str, Any]
"""Settings of a run, as JSON values."""
WriteRecord = Callable[[Record], None]
"""Function that appends a record; when it returns, the record is on disk."""


def read_records(path: Path, header: Header) -> dict[str, Record]:
    """Read the finished items of a file.

    Args:
        path: The file.
        header: Settings of this run.

    Returns:
        The records by item id; empty if there is no file.

    Raises:
        ValueError: The file is of a run with other settings, or is broken before its
            last line.
    """
    return _parse(path, header)[0]


@contextlib.contextmanager
def record_writer(path: Path, header: Header) -> Iterator[WriteRecord]:
    """Open a file for appending, and write its header if it has none.

    Example:
        with record_writer(path, header) as write_record:
            write_record(record)

    Args:
        path: The file; a broken last line is cut off.
        header: Settings of this run.

    Returns:
        A context manager that gives the function that appends a record.

    Raises:
        ValueError: As `read_records`.
    """
    valid_bytes = _parse(path, header)[1]
    with open(path, "ab") as file:
        file.truncate(valid_bytes)
        if not valid_bytes:
            _write_line(file, {"header": header})

        def write_record(record: Record) -> None:
            _write_line(file, dataclasses.asdict(record))

        yield write_record


def _write_line(file, value: Mapping[str, Any]) -> None:
    line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
    with unbroken(f"a line of {file.name}"):
        file.write(line)
        # Flush hands the line to the system, fsync to the disk: it survives a power
        # cut.
        file.flush()
        os.fsync(file.fileno())


def _parse(path: Path, header: Header) -> tuple[dict[str, Record], int]:
    """The records of a file, and the number of bytes of its valid lines."""
    content = path.read_bytes() if path.exists() else b""
    lines = content.splitlines(keepends=True)
    values, valid_bytes = [], 0
    for number, line in enumerate(lines, start=1):
        value = _parse_line(line)
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
    records = (_record(value) for value in values[1:])
    return {record.id: record for record in records}, valid_bytes


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The object of a whole line; None for a broken one."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _record(value: dict[str, Any]) -> Record:
    for name in ("token_ids", "committed_at"):
        value[name] = tuple(value[name])
    return Record(**value)


def _check_header(path: Path, in_file: Any, header: Header) -> None:
    if not isinstance(in_file, dict):
        raise ValueError(f"{path} has no header; choose another --out or take it away")
    names = sorted({*in_file, *header})
    different = [name for name in names if in_file.get(name) != header.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{path} is of a run with {name}={in_file.get(name)!r}, and this one has "
            f"{header.get(name)!r}; choose another --out, or take the file away"
        )
