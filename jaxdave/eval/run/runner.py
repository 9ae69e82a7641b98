"""Decoding and grading a benchmark by one method, so that a kill loses nothing."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxdave.distributed.processes import ALONE, Processes, own_share
from jaxdave.distributed.rounds import SharedRounds
from jaxdave.engine.generation import generate
from jaxdave.engine.placement import placement_of
from jaxdave.engine.results import Completion, Result
from jaxdave.engine.streaming import stream
from jaxdave.eval.deviations import GradedOutput
from jaxdave.eval.run import memory, records
from jaxdave.eval.run.cells import (
    EvalCell,
    PromptedItem,
    batch_shape,
    make_batches,
    read_finished,
)
from jaxdave.eval.run.memory import WarmupCost
from jaxdave.eval.run.records import Record
from jaxdave.eval.types import Task
from jaxdave.grading.types import Verdict
from jaxdave.io.checkpoint import Model

OnRecord = Callable[[Record], None]
"""Function that is called with every new record."""
VerdictCache = dict[tuple[str, str], Verdict]
"""Verdicts of one benchmark by item id and text."""


class CompiledCell(NamedTuple):
    """A cell that can be decoded without compiling.

    Attributes:
        cell: The cell.
        model: The model that decodes it.
        done: Records of an earlier run, by item id.
        warmups: Cost of the first call of every shape, by shape.
        processes: The processes that share its batches.
    """

    cell: EvalCell
    model: Model
    done: Mapping[str, Record]
    warmups: Mapping[tuple[int, int], WarmupCost]
    processes: Processes = ALONE


def compile_cell(
    cell: EvalCell, model: Model, processes: Processes = ALONE
) -> CompiledCell:
    """Compile every shape that this process needs of a cell, and make a first call.

    Args:
        cell: The cell.
        model: The model that decodes it.
        processes: The processes that share its batches. What the first of them has in
            its file counts.

    Returns:
        The compiled cell, with the records of an earlier run.

    Raises:
        ValueError: As `cells.read_finished`.
    """
    finished = processes.agree(lambda: read_finished(cell))
    if processes.count > 1:
        values = processes.exchange(records.to_values(finished.values()))[0]
        finished = {record.id: record for record in records.from_values(values)}
    warmups = {}
    spec = placement_of(model.params).spec_of(cell.decoder.spec)
    for batch in _own_batches(cell, finished, processes):
        if batch is None:
            continue
        shape = batch_shape(cell, batch)
        if shape not in warmups:

            def first_call(batch: list[PromptedItem] = batch) -> None:
                with processes.running():
                    _call_once(_decode_arguments(cell, model, batch))

            warmups[shape] = memory.measure_warmup(spec, first_call)
    return CompiledCell(cell, model, finished, warmups, processes)


def run_batches(
    compiled: CompiledCell, verdicts: VerdictCache, on_record: OnRecord
) -> Iterator[tuple[Record, ...]]:
    """Decode and grade a cell batch by batch, every process a batch at a time.

    Args:
        compiled: The cell.
        verdicts: Verdicts of the same benchmark so far, extended in place: methods that
            give the same text share its grade.
        on_record: Called with every new record.

    Yields:
        The records of an earlier run, then those of each batch of all processes, which
        are on disk when they are yielded.
    """
    yield tuple(compiled.done.values())
    warmups, processes = dict(compiled.warmups), compiled.processes
    with _record_writer(compiled.cell) as write_record:

        def write(found: tuple[Record, ...]) -> None:
            for record in found:
                write_record(record)
                on_record(record)

        shared = SharedRounds(processes)
        for batch in _own_batches(compiled.cell, compiled.done, processes):
            run = tuple
            if batch is not None:
                run = functools.partial(_run_batch, compiled, batch, verdicts, warmups)
            found = shared.exchange(run, records.to_values, records.from_values)
            shared.attempt(functools.partial(write, found))
            yield found
        shared.end()


def alternate(
    iterators: Sequence[Iterator[tuple[Record, ...]]],
) -> list[tuple[Record, ...]]:
    """Exhaust several iterators in turn: one batch of each, to and fro.

    Whatever else the machine does then slows all methods alike. The direction changes
    after every round, so that none is always first.

    Args:
        iterators: One iterator of batches per cell.

    Returns:
        All records of each.
    """
    results: list[list[Record]] = [[] for _ in iterators]
    order = list(range(len(iterators)))
    while order:
        unfinished = []
        for at in order:
            batch = next(iterators[at], None)
            if batch is not None:
                results[at].extend(batch)
                unfinished.append(at)
        order = unfinished[::-1]
    return [tuple(result) for result in results]


def _own_batches(
    cell: EvalCell, done: Mapping[str, Record], processes: Processes
) -> Iterator[list[PromptedItem] | None]:
    """A process's batches without the items that are done, one or None a round."""
    batches = [
        [entry for entry in batch if entry.item.id not in done]
        for batch in make_batches(cell)
    ]
    return own_share([batch for batch in batches if batch], processes)


@contextlib.contextmanager
def _record_writer(cell: EvalCell) -> Iterator[records.WriteRecord]:
    if cell.path is None:
        yield lambda record: None
        return
    with records.record_writer(cell.path, cell.header) as write_record:
        yield write_record


def _decode_arguments(
    cell: EvalCell, model: Model, batch: Sequence[PromptedItem]
) -> dict[str, Any]:
    """Arguments of `generate` and `stream` for a batch."""
    return {
        "decoder": cell.decoder,
        "params": model.params,
        "prompts": [entry.prompt for entry in batch],
        "seed": cell.settings.seed,
        # Noise is keyed by the place in the benchmark, not in the batch.
        "requests": [entry.index for entry in batch],
    }


def _call_once(arguments: dict[str, Any]) -> None:
    """Prefill and one call of the very program that `generate` runs."""
    for update in stream(**arguments):
        if update.call:
            return


def _run_batch(
    compiled: CompiledCell,
    batch: Sequence[PromptedItem],
    verdicts: VerdictCache,
    warmups: dict[tuple[int, int], WarmupCost],
) -> tuple[Record, ...]:
    """Decode and grade one batch; the first of a shape carries the shape's warm-up."""
    cell = compiled.cell
    result = generate(**_decode_arguments(cell, compiled.model, batch))
    outputs = [
        _graded_output(compiled, entry, row)
        for entry, row in zip(batch, result.completions, strict=True)
    ]
    grades = _grade(cell.task, batch, [output.text for output in outputs], verdicts)
    first, *rest = (
        _record(cell, *parts, result)
        for parts in zip(batch, outputs, grades, result.completions, strict=True)
    )
    warmup = warmups.pop(batch_shape(cell, batch), WarmupCost(0.0, None))
    first = dataclasses.replace(
        first,
        compile_seconds=warmup.seconds + result.compile_seconds,
        memory=warmup.memory,
    )
    return first, *rest


def _graded_output(
    compiled: CompiledCell, entry: PromptedItem, row: Completion
) -> GradedOutput:
    """What is graded and counted; the text begins with the opening from the prompt."""
    output = compiled.cell.extract_output(compiled.model.codec, entry.prompt, row)
    return output._replace(text=entry.answer_prefix + output.text)


def _grade(
    task: Task,
    batch: Sequence[PromptedItem],
    texts: Sequence[str],
    verdicts: VerdictCache,
) -> list[Verdict]:
    """The verdicts of some texts; only texts that are not in the cache are graded."""
    keys = [(entry.item.id, text) for entry, text in zip(batch, texts, strict=True)]
    new = [at for at, key in enumerate(keys) if key not in verdicts]
    items = tuple(batch[at].item for at in new)
    grades = task.grade(items, tuple(texts[at] for at in new)) if new else ()
    verdicts.update(zip((keys[at] for at in new), grades, strict=True))
    return [verdicts[key] for key in keys]


def _record(
    cell: EvalCell,
    entry: PromptedItem,
    output: GradedOutput,
    verdict: Verdict,
    row: Completion,
    result: Result,
) -> Record:
    nfe = row.nfe
    branching = cell.decoder.spec.policy.scoring
    branches = 1 if branching is None else branching.count
    # A verify call evaluates each of its drafts in each branch; other calls evaluate
    # one state.
    sizes = zip(cell.decoder.spec.draft_steps, row.sizes, strict=True)
    verified = sum(size * count for size, count in sizes) * branches
    return Record(
        id=entry.item.id,
        digest=entry.digest,
        right=verdict.correct,
        extracted=verdict.extracted,
        reason=verdict.reason,
        text=output.text,
        token_ids=row.token_ids,
        committed_at=row.committed_at,
        finish_reason=row.finish_reason,
        valid_tokens=output.tokens,
        decoded_tokens=row.decoded_tokens,
        nfe=nfe.counts(),
        rows=nfe.total - nfe.verify + verified,
        reference_nfe=row.reference_nfe,
        steps=row.steps,
        proposed_drafts=row.proposed_drafts,
        accepted_drafts=row.accepted_drafts,
        batch_rows=len(result.completions),
        seconds=result.seconds / len(result.completions),
    )
