"""Decoding and grading a benchmark by one method, so that a kill loses nothing."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdave.checkpoint import Model
from jaxdave.cli_settings import Settings
from jaxdave.decoders import Decoder
from jaxdave.eval import memory, records
from jaxdave.eval.methods import Method
from jaxdave.eval.records import Header, Record
from jaxdave.eval.types import Item, Prompt, Task, Verdict
from jaxdave.result import Result, Row
from jaxdave.run import bucket, generate, stream
from jaxdave.text import Codec


class Entry(NamedTuple):
    """An item as it is asked. index: its place in the benchmark; it keys the noise."""

    item: Item
    index: int
    prompt: list[int]
    prefill: str
    digest: str


class Cell(NamedTuple):
    """One row of a table: a benchmark by one method. path: None keeps nothing."""

    task: Task
    method: Method
    settings: Settings
    decoder: Decoder
    entries: tuple[Entry, ...]
    path: Path | None
    header: Header


Watch = Callable[[Record], None]
Verdicts = dict[tuple[str, str], Verdict]


def entry(codec: Codec, task: Task, item: Item, index: int, asked: Prompt) -> Entry:
    """An item with its prompt in ids. Raises ValueError, naming it, for a bad one."""
    try:
        ids = encoded(codec, asked)
    except ValueError as error:
        raise ValueError(f"{task.name}, item {item.id}: {error}") from error
    facts = json.dumps([ids, item.gold, item.data], sort_keys=True, default=str)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    return Entry(item, index, ids, asked.prefill, digest)


def encoded(codec: Codec, asked: Prompt) -> list[int]:
    """The ids of a prompt, the opening of its answer included."""
    if isinstance(asked.asked, str):
        ids = codec.encode_text(asked.asked + asked.prefill)
    else:
        ids = codec.encode_messages(asked.asked)
        ids = ids + codec.encode_text(asked.prefill) if asked.prefill else ids
    return ids[: asked.longest]


def finished(cell: Cell) -> dict[str, Record]:
    """What an earlier run has left of a cell, by item id.

    Raises ValueError for a file of other settings, of other prompts, or broken.
    """
    if cell.path is None:
        return {}
    found = records.read(cell.path, cell.header)
    for one in cell.entries:
        if one.item.id in found and found[one.item.id].digest != one.digest:
            raise ValueError(
                f"{cell.path} has item {one.item.id} with another prompt or "
                "reference; choose another --out, or take the file away"
            )
    return {e.item.id: found[e.item.id] for e in cell.entries if e.item.id in found}


def run(cell: Cell, model: Model, known: Verdicts, watch: Watch) -> tuple[Record, ...]:
    """The records of all entries, in order; those of an earlier run are not made again.

    known: grades of this benchmark's texts so far; the same text is graded once.
    watch: told every record, the old ones first.
    """
    done = finished(cell)
    for record in done.values():
        watch(record)
    warm: set[tuple[int, int]] = set()
    with _kept(cell) as add:
        for batch in batches(cell):
            batch = [one for one in batch if one.item.id not in done]
            for record in _batch(cell, model, batch, known, warm) if batch else ():
                add(record)
                done[record.id] = record
                watch(record)
    return tuple(done[one.item.id] for one in cell.entries)


def batches(cell: Cell) -> list[list[Entry]]:
    """The entries by the bucket of their prompts, so that few shapes are compiled.

    They are the same whatever has been decoded already.
    """
    ordered = sorted(cell.entries, key=lambda one: _bucket(cell, one))
    size = cell.settings.batch_size
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def _bucket(cell: Cell, one: Entry) -> int:
    return bucket(len(one.prompt) + cell.decoder.program.grid.window_length)


@contextlib.contextmanager
def _kept(cell: Cell) -> Iterator[records.Add]:
    if cell.path is None:
        yield lambda record: None
        return
    with records.adding(cell.path, cell.header) as add:
        yield add


def _batch(cell: Cell, model: Model, batch, known: Verdicts, warm) -> list[Record]:
    """One batch decoded and graded; its shape is compiled before the clock starts."""
    common = {
        "decoder": cell.decoder,
        "params": model.params,
        "prompts": [one.prompt for one in batch],
        "seed": cell.settings.seed,
        "requests": [one.index for one in batch],
    }
    shape = len(batch), max(_bucket(cell, one) for one in batch)
    compiling, used = 0.0, None
    if shape not in warm:
        compiling, used = memory.warmed(cell.decoder, lambda: _one_call(common))
        warm.add(shape)
    result = generate(**common)
    compiling += result.compile_seconds
    texts = [
        one.prefill + model.codec.decode(row.token_ids)
        for one, row in zip(batch, result.rows, strict=True)
    ]
    verdicts = _graded(cell.task, batch, texts, known)
    made = [
        _record(cell, *parts, result)
        for parts in zip(batch, texts, verdicts, result.rows, strict=True)
    ]
    used = memory.peak(used)
    return [
        dataclasses.replace(made[0], compile_seconds=compiling, memory=used),
        *made[1:],
    ]


def _one_call(common: dict[str, Any]) -> None:
    """The prefill and one call of the very program that `generate` runs."""
    for update in stream(**common):
        if update.call:
            return


def _graded(task: Task, batch, texts: Sequence[str], known: Verdicts):
    """The verdicts of some texts; a text that was seen before keeps its verdict."""
    keys = [(one.item.id, text) for one, text in zip(batch, texts, strict=True)]
    new = [at for at, key in enumerate(keys) if key not in known]
    items = tuple(batch[at].item for at in new)
    verdicts = task.grade(items, tuple(texts[at] for at in new)) if new else ()
    known.update(zip((keys[at] for at in new), verdicts, strict=True))
    return [known[key] for key in keys]


def _record(
    cell: Cell, one: Entry, text: str, verdict: Verdict, row: Row, result: Result
) -> Record:
    nfe = row.nfe
    branching = cell.decoder.program.policy.branching
    states = 1 if branching is None else branching.count
    sizes = zip(cell.decoder.program.sizes, row.sizes, strict=True)
    drafted = sum(size * count for size, count in sizes) * states
    return Record(
        id=one.item.id,
        digest=one.digest,
        right=verdict.right,
        extracted=verdict.extracted,
        reason=verdict.reason,
        text=text,
        token_ids=row.token_ids,
        committed_at=row.committed_at,
        finish_reason=row.finish_reason,
        valid_tokens=row.valid_tokens,
        decoded_tokens=row.decoded_tokens,
        nfe=nfe.counts(),
        rows=nfe.total - nfe.verify + drafted,
        reference_nfe=row.reference_nfe,
        steps=row.steps,
        batch_rows=len(result.rows),
        seconds=result.seconds / len(result.rows),
    )
