"""Records of finished items, in a journal: what a kill has cut off is decoded again."""

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdave.runtime.files import read_regular
from jaxdave.runtime.journal import (
    Header,
    journal_content,
    journal_writer,
    parse_line,
    read_journal,
)

FORMAT = 3
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
        proposed_drafts: Drafts that those calls evaluated beside the policy's own next
            state (`Completion`).
        accepted_drafts: Those of them that the policy confirmed.
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
    proposed_drafts: int
    accepted_drafts: int
    batch_rows: int
    seconds: float
    compile_seconds: float = 0.0
    memory: Mapping[str, int] | None = None


WriteRecord = Callable[[Record], None]
"""Function that appends a record; when it returns, the record is on disk."""


def read_samples(path: Path) -> tuple[Header, tuple[Record, ...]]:
    """Read a whole file of an earlier run, whatever its settings.

    Args:
        path: The file.

    Returns:
        (its header, its records in their order).

    Raises:
        ValueError: It cannot be read, is none of this format, broken or not whole, or
            has an item twice or none at all.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    lines = content.split(b"\n")
    if lines.pop():
        raise ValueError(
            f"{path} was cut off in its last line; let the run end first (the same "
            "command with the same --out goes on)"
        )
    values = []
    for number, line in enumerate(lines, start=1):
        value = parse_line(line + b"\n")
        if value is None:
            raise ValueError(f"{path}, line {number}: broken JSON; give whole samples")
        values.append(value)
    header = values[0].get("header") if values else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise ValueError(
            f"{path} is no file of samples of format {FORMAT} (its format is "
            f"{found!r}); make it anew with jaxdave eval --out"
        )
    found = tuple(
        _record(path, number, value) for number, value in enumerate(values[1:], 2)
    )
    ids = [record.id for record in found]
    twice = next((id for id in ids if ids.count(id) > 1), None)
    if twice is not None or not ids:
        raise ValueError(
            f"{path} has {'no item' if twice is None else f'item {twice!r} twice'}; "
            "give whole samples"
        )
    return header, found


def file_content(header: Header, found: Sequence[Record]) -> bytes:
    """A file of records as `record_writer` writes it.

    Args:
        header: Settings of the run.
        found: The records.

    Returns:
        The content of the file.
    """
    return journal_content(header, map(dataclasses.asdict, found))


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
    values = enumerate(read_journal(path, header), 2)
    records = (_record(path, number, value) for number, value in values)
    return {record.id: record for record in records}


def to_values(found: Iterable[Record]) -> list[dict[str, Any]]:
    """Records as JSON values.

    Args:
        found: The records.

    Returns:
        An object for each of them.
    """
    return [dataclasses.asdict(record) for record in found]


def from_values(values: Iterable[Mapping[str, Any]]) -> tuple[Record, ...]:
    """The records of JSON values, the inverse of `to_values`.

    Args:
        values: Objects, as another process of this run has made them.

    Returns:
        The records.
    """
    tuples = ("token_ids", "committed_at")
    return tuple(
        Record(**{**value, **{name: tuple(value[name]) for name in tuples}})
        for value in values
    )


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
    read_records(path, header)
    with journal_writer(path, header) as write:
        yield lambda record: write(dataclasses.asdict(record))


def _record(path: Path, number: int, value: dict[str, Any]) -> Record:
    wrong = sorted({*_KINDS}.symmetric_difference(value))
    wrong = wrong or [name for name in _KINDS if not _fits(value[name], name)]
    if wrong:
        raise ValueError(
            f"{path}, line {number}: it is no record of an item ({wrong[0]}); take the "
            "file away, and its items are decoded again"
        )
    for name in ("token_ids", "committed_at"):
        value[name] = tuple(value[name])
    return Record(**value)


_KINDS: dict[str, type] = {
    name: typing.get_origin(kind) or kind
    for name, kind in typing.get_type_hints(Record).items()
} | {"nfe": dict, "memory": dict}
"""The types of a record's fields; a tuple's are whole numbers."""
_COUNTS = frozenset(("prefill", "verify", "commit", "refresh", "recheck", "total"))


def _fits(value: Any, name: str) -> bool:
    """True if a value of JSON is one of a field of `Record`."""
    kind = _KINDS[name]
    if name == "memory" and value is None:
        return True
    if kind is tuple:
        return isinstance(value, list) and all(type(one) is int for one in value)
    if kind is dict:
        if not isinstance(value, dict) or (name == "nfe" and not _COUNTS <= set(value)):
            return False
        return all(type(count) is int for count in value.values())
    return type(value) is kind or (kind is float and type(value) is int)
