"""`jaxdave eval`: load a model, run every cell, print and write the tables."""

import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdave.eval.report import figures, report, tables
from jaxdave.eval.run import plan, runner
from jaxdave.eval.run.cells import EvalCell
from jaxdave.eval.run.eval_config import EvalConfig
from jaxdave.eval.run.progress import ProgressDisplay, progress_display
from jaxdave.eval.run.records import Record
from jaxdave.eval.run.runner import VerdictCache
from jaxdave.io import checkpoint
from jaxdave.io.checkpoint import Model
from jaxdave.runtime.files import replace_file
from jaxdave.runtime.interrupts import unbroken
from jaxdave.runtime.locks import output_folder


def run(config: EvalConfig) -> None:
    """Evaluate and print; files go to the output folder, where there is one.

    Args:
        config: What to evaluate.

    Raises:
        ValueError: The options, the model, the data, the prompts or the records of an
            earlier run are wrong. Nothing has been written then.
    """
    if config.out is None:
        return _run(config)
    # Taken before anything is looked at: what an earlier run has finished decides what
    # this one does. A new folder is removed again if the input turns out to be wrong.
    with output_folder(config.out):
        _run(config)


def _run(config: EvalConfig) -> None:
    """Evaluate, in a folder that is this run's alone."""
    model = checkpoint.load(
        config.load.model,
        dtype=config.load.dtype,
        block_length=config.overrides.get("block_length"),
        quantize=config.load.quantize,
    )
    cells = plan.cells(config, model)
    with progress_display() as display:
        results = _run_cells(cells, model, display)
    values = report.make_report(config, results)
    if config.out is not None:
        _write(config.out, values)
    sys.stdout.write(tables.to_markdown(values))


def _run_cells(
    cells: Sequence[EvalCell], model: Model, display: ProgressDisplay
) -> report.CellRecords:
    """The records of every cell, in the order of the cells."""
    # A device reports one peak of its memory for the whole process, so the programs
    # with few drafts go first: each raises the peak to its own.
    order = sorted(cells, key=lambda cell: max(cell.decoder.spec.draft_steps))
    tick = display.add_counter("compiling", len(cells))
    compiled = {}
    for cell in order:
        compiled[id(cell)] = runner.compile_cell(cell, model)
        tick()
    results = []
    for _, group in itertools.groupby(cells, key=lambda cell: cell.task.name):
        verdicts: VerdictCache = {}
        same_task = list(group)
        iterators = [
            runner.run_batches(
                one, verdicts, display.add_cell(one.cell, one.done.values())
            )
            for one in (compiled[id(cell)] for cell in same_task)
        ]
        records = map(_in_item_order, same_task, runner.alternate(iterators))
        results += zip(same_task, records, strict=True)
    return results


def _in_item_order(cell: EvalCell, records: Sequence[Record]) -> tuple[Record, ...]:
    """Records in the order of the benchmark's items."""
    by_id = {record.id: record for record in records}
    return tuple(by_id[entry.item.id] for entry in cell.entries)


def _draw_figures(values: dict[str, Any]) -> dict[str, bytes]:
    """The figures of a report by file name."""
    files = {}
    if values["sweep"] is not None:
        for extension, content in figures.figure3(values).items():
            files[f"figure3.{extension}"] = content
    if values["trajectory"] is not None:
        name = re.sub(r"[^\w.-]", "_", values["trajectory"]["item"])
        for extension, content in figures.trajectory(values).items():
            files[f"trajectory-{name}.{extension}"] = content
    return files


def _write(out: Path, values: dict[str, Any]) -> None:
    """Write a report, and the tables and figures that are made from it."""
    name = "results" if values["sweep"] is None else "figure3"
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    files = {
        f"{name}.json": (text + "\n").encode(),
        f"{name}.md": tables.to_markdown(values).encode(),
        **_draw_figures(values),
    }
    with unbroken(f"the report in {out}"):
        for file, content in files.items():
            replace_file(out / file, content)
