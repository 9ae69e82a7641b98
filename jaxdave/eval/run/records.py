"""What is kept of every finished item: JSON lines that survive a kill.

The first line of a file is its header, the settings of the run. A line is on the disk
before the next item is begun; a last line that was cut off is dropped, and its item
decoded again.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Record:
    """One item, decoded and graded.

    digest: of its prompt's ids and its reference. text, valid_tokens: what was graded,
    and counted as output (`Habits.output`). decoded_tokens, reference_nfe,
    committed_at, steps: as in `Completion`. nfe: calls by kind. rows: states that the
    calls have evaluated. batch_rows: how many were decoded together; seconds: this
    item's share of their time. compile_seconds, memory: of the warm-up call that was
    made for this item's shape, 0 and None where there was none.
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
Add = Callable[[Record], None]


def read(path: Path, header: Header) -> dict[str, Record]:
    """The finished items of a file, by id; none where there is no file.

    Raises ValueError for a file of a run with other settings, and for one that is
    broken before its last line.
    """
    return _parsed(path, header)[0]


@contextlib.contextmanager
def adding(path: Path, header: Header) -> Iterator[Add]:
    """A function that adds a record to a file and returns when it is on the disk.

    Errors as `read`.
    """
    good = _parsed(path, header)[1]
    with open(path, "ab") as file:
        file.truncate(good)
        if not good:
            _put(file, {"header": header})
        yield lambda record: _put(file, dataclasses.asdict(record))


def _put(file, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _parsed(path: Path, header: Header) -> tuple[dict[str, Record], int]:
    """The records of a file, and after how many bytes its good lines end."""
    content = path.read_bytes() if path.exists() else b""
    lines = content.splitlines(keepends=True)
    values, good = [], 0
    for number, line in enumerate(lines, start=1):
        value = _value(line)
        if value is None and number < len(lines):
            raise ValueError(
                f"{path}, line {number}: broken JSON; take the file away, and its "
                "items are decoded again"
            )
        if value is not None:
            values.append(value)
            good += len(line)
    if values:
        _check_header(path, values[0].get("header"), header)
    records = (_record(value) for value in values[1:])
    return {record.id: record for record in records}, good


def _value(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _record(value: dict[str, Any]) -> Record:
    for name in ("token_ids", "committed_at"):
        value[name] = tuple(value[name])
    return Record(**value)


def _check_header(path: Path, found: Any, header: Header) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{path} has no header; choose another --out or take it away")
    names = sorted({*found, *header})
    odd = [name for name in names if found.get(name) != header.get(name)]
    if odd:
        name = odd[0]
        raise ValueError(
            f"{path} is of a run with {name}={found.get(name)!r}, and this one has "
            f"{header.get(name)!r}; choose another --out, or take the file away"
        )
