"""Decoding and grading a benchmark by one method, so that a kill loses nothing."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxdave.engine.generation import generate, stream
from jaxdave.engine.results import Completion, Result
from jaxdave.eval.protocols.deviations import Output
from jaxdave.eval.run import memory, records
from jaxdave.eval.run.cells import Cell, Entry, batches, finished, shape
from jaxdave.eval.run.memory import Warm
from jaxdave.eval.run.records import Record
from jaxdave.eval.types import Task
from jaxdave.grading.types import Verdict
from jaxdave.io.checkpoint import Model

Watch = Callable[[Record], None]
Verdicts = dict[tuple[str, str], Verdict]


class Ready(NamedTuple):
    """A cell that can be decoded without compiling.

    done: what an earlier run has left. warm: what its shapes took to compile.
    """

    cell: Cell
    model: Model
    done: Mapping[str, Record]
    warm: Mapping[tuple[int, int], Warm]


def ready(cell: Cell, model: Model) -> Ready:
    """A cell whose every shape has been compiled and has made its first call."""
    done, warm = finished(cell), {}
    for batch in _left(cell, done):
        if shape(cell, batch) not in warm:
            call = lambda batch=batch: _one_call(_asked(cell, model, batch))  # noqa: E731
            warm[shape(cell, batch)] = memory.warmed(cell.decoder, call)
    return Ready(cell, model, done, warm)


def steps(held: Ready, known: Verdicts, watch: Watch) -> Iterator[tuple[Record, ...]]:
    """The records of a cell, those of an earlier run first, then batch by batch.

    A batch is on the disk when it is yielded. known: grades of this benchmark's texts
    so far; the same text is graded once. watch: told every record that is made.
    """
    yield tuple(held.done.values())
    warm = dict(held.warm)
    with _kept(held.cell) as add:
        for batch in _left(held.cell, held.done):
            made = _batch(held, batch, known, warm)
            for record in made:
                add(record)
                watch(record)
            yield made


def in_turn(turns: Sequence[Iterator[tuple[Record, ...]]]) -> list[tuple[Record, ...]]:
    """All that some cells yield: a batch of each, then a batch of each, to and fro.

    So whatever else the machine does falls on all of them alike.
    """
    found: list[list[Record]] = [[] for _ in turns]
    order = list(range(len(turns)))
    while order:
        open_ones = []
        for at in order:
            made = next(turns[at], None)
            if made is not None:
                found[at].extend(made)
                open_ones.append(at)
        order = open_ones[::-1]
    return [tuple(one) for one in found]


def _left(cell: Cell, done: Mapping[str, Record]) -> Iterator[list[Entry]]:
    """The batches less what is done."""
    for batch in batches(cell):
        left = [one for one in batch if one.item.id not in done]
        if left:
            yield left


@contextlib.contextmanager
def _kept(cell: Cell) -> Iterator[records.Add]:
    if cell.path is None:
        yield lambda record: None
        return
    with records.adding(cell.path, cell.header) as add:
        yield add


def _asked(cell: Cell, model: Model, batch: Sequence[Entry]) -> dict[str, Any]:
    """What `generate` and `stream` are given for a batch."""
    return {
        "decoder": cell.decoder,
        "params": model.params,
        "prompts": [one.prompt for one in batch],
        "seed": cell.settings.seed,
        "requests": [one.index for one in batch],
    }


def _one_call(asked: dict[str, Any]) -> None:
    """The prefill and one call of the very program that `generate` runs."""
    for update in stream(**asked):
        if update.call:
            return


def _batch(held: Ready, batch, known: Verdicts, warm: dict) -> tuple[Record, ...]:
    """One batch decoded and graded; the first of a shape tells what that took."""
    cell = held.cell
    result = generate(**_asked(cell, held.model, batch))
    outputs = [
        _output(held, one, row)
        for one, row in zip(batch, result.completions, strict=True)
    ]
    verdicts = _graded(cell.task, batch, [out.text for out in outputs], known)
    first, *rest = (
        _record(cell, *parts, result)
        for parts in zip(batch, outputs, verdicts, result.completions, strict=True)
    )
    seconds, used = warm.pop(shape(cell, batch), Warm(0.0, None))
    seconds += result.compile_seconds
    first = dataclasses.replace(first, compile_seconds=seconds, memory=used)
    return first, *rest


def _output(held: Ready, one: Entry, row: Completion) -> Output:
    """What is graded and counted; the opening that was given is part of the text."""
    out = held.cell.output(held.model.codec, one.prompt, row)
    return out._replace(text=one.prefill + out.text)


def _graded(task: Task, batch, texts: Sequence[str], known: Verdicts):
    """The verdicts of some texts; a text that was seen before keeps its verdict."""
    keys = [(one.item.id, text) for one, text in zip(batch, texts, strict=True)]
    new = [at for at, key in enumerate(keys) if key not in known]
    items = tuple(batch[at].item for at in new)
    verdicts = task.grade(items, tuple(texts[at] for at in new)) if new else ()
    known.update(zip((keys[at] for at in new), verdicts, strict=True))
    return [known[key] for key in keys]


def _record(
    cell: Cell,
    one: Entry,
    out: Output,
    verdict: Verdict,
    row: Completion,
    result: Result,
) -> Record:
    nfe = row.nfe
    branching = cell.decoder.spec.policy.scoring
    states = 1 if branching is None else branching.count
    sizes = zip(cell.decoder.spec.draft_lengths, row.sizes, strict=True)
    drafted = sum(size * count for size, count in sizes) * states
    return Record(
        id=one.item.id,
        digest=one.digest,
        right=verdict.right,
        extracted=verdict.extracted,
        reason=verdict.reason,
        text=out.text,
        token_ids=row.token_ids,
        committed_at=row.committed_at,
        finish_reason=row.finish_reason,
        valid_tokens=out.tokens,
        decoded_tokens=row.decoded_tokens,
        nfe=nfe.counts(),
        rows=nfe.total - nfe.verify + drafted,
        reference_nfe=row.reference_nfe,
        steps=row.steps,
        batch_rows=len(result.completions),
        seconds=result.seconds / len(result.completions),
    )
