"""One row of a table before it is decoded: what is asked, by which settings."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdave.engine.batching import bucket_length
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import Decoder
from jaxdave.eval.protocols.deviations import Output, answer
from jaxdave.eval.run import records
from jaxdave.eval.run.methods import Method
from jaxdave.eval.run.records import Header, Record
from jaxdave.eval.types import Prompt, Task
from jaxdave.grading.types import Item
from jaxdave.io.tokenizer import Codec


class Entry(NamedTuple):
    """An item as it is asked. index: its place in the benchmark; it keys the noise."""

    item: Item
    index: int
    prompt: list[int]
    prefill: str
    digest: str


class Cell(NamedTuple):
    """One row of a table: a benchmark by one method. path: None keeps nothing.

    output: as in `Habits`.
    """

    task: Task
    method: Method
    settings: DecodeConfig
    decoder: Decoder
    entries: tuple[Entry, ...]
    path: Path | None
    header: Header
    output: Callable[..., Output] = answer
    batch_size: int = 1


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


def batches(cell: Cell) -> list[list[Entry]]:
    """The entries by the bucket of their prompts, so that few shapes are compiled.

    The largest first, so that memory that does not suffice shows at once. They are the
    same whatever has been decoded already.
    """
    ordered = sorted(cell.entries, key=lambda one: -_bucket(cell, one))
    size = cell.batch_size
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def shape(cell: Cell, batch: Sequence[Entry]) -> tuple[int, int]:
    """What a batch is compiled for: its rows, and the bucket of its prompts."""
    return len(batch), max(_bucket(cell, one) for one in batch)


def _bucket(cell: Cell, one: Entry) -> int:
    return bucket_length(len(one.prompt) + cell.decoder.spec.layout.window_length)
