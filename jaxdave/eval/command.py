"""`jaxdave eval`: load a model, run every cell, print and write the tables."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxdave.distributed.processes import ALONE, Processes, check_same
from jaxdave.engine.placement import placement_of
from jaxdave.eval.report import figures, report, tables
from jaxdave.eval.run import eval_config, plan, rescore, runner
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


def run(config: EvalConfig, processes: Processes = ALONE) -> None:
    """Evaluate and print; files go to the output folder, where there is one.

    Args:
        config: What to evaluate.
        processes: The processes that share the batches of every cell. The first one
            writes and prints.

    Raises:
        ValueError: The options, the model, the data, the prompts or the records of an
            earlier run are wrong. Nothing has been written then.
    """
    if config.rescore is not None:
        return _in_folder(config.out, lambda: _rescore(config))
    if processes.is_first:
        return _in_folder(config.out, lambda: _run(config, processes), processes)
    # The others have no folder: what the first has in its files counts for all.
    processes.agree(lambda: None)
    _run(dataclasses.replace(config, out=None), processes)


def _in_folder(
    out: Path | None, work: Callable[[], None], processes: Processes = ALONE
) -> None:
    """Do something with the output folder held for this run."""
    if out is None:
        processes.agree(lambda: None)
        return work()
    # Taken before anything is looked at: what an earlier run has finished decides what
    # this one does. A new folder is removed again if the input turns out to be wrong.
    with contextlib.ExitStack() as stack:
        processes.agree(lambda: stack.enter_context(output_folder(out)))
        work()


def _run(config: EvalConfig, processes: Processes) -> None:
    """Evaluate, in a folder that is this run's alone."""

    def planned() -> tuple[Model, Sequence[EvalCell]]:
        model = checkpoint.load(
            config.load.model,
            dtype=config.load.dtype,
            block_length=config.overrides.get("block_length"),
            quantize=config.load.quantize,
            mesh=config.load.mesh,
        )
        return model, plan.cells(config, model)

    model, cells = processes.agree(planned)
    headers = processes.exchange([cell.header for cell in cells])
    check_same("settings, data and model", headers)
    is_shared = placement_of(model.params).spans_processes
    processes = dataclasses.replace(processes, share_model=is_shared)
    with contextlib.ExitStack() as stack:
        console = None
        if not processes.is_first:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            console = Console(file=nowhere)
        display = stack.enter_context(progress_display(console))
        results = _run_cells(cells, model, display, processes)
    if not processes.is_first:
        return
    values = report.make_report(config, results)
    if config.out is not None:
        _write(config.out, _report_files(values))
    sys.stdout.write(tables.to_markdown(values))


def _rescore(config: EvalConfig) -> None:
    """Grade the samples of an earlier run again, and write them as that run has."""
    cells = rescore.read_cells(config)
    if config.trajectory is not None:
        plan.drawn_task(config.trajectory, cells)
        if not {"static", "freedave"} <= {cell.method.name for cell in cells}:
            raise ValueError(
                "a trajectory shows static and freedave side by side; "
                f"{config.rescore} has not both"
            )
    for cell in cells if config.out is not None else ():
        rescore.check_target(cell, config.out / cell.path.name)  # pyright: ignore
    config = rescore.rescored_config(config, cells)
    eval_config.check_figures(config)
    graded = rescore.grade_again(cells)
    values = report.make_report(config, graded)
    if config.out is not None:
        samples = {
            cell.path.name: rescore.sample_file(cell, records)
            for cell, records in graded
        }
        _write(config.out, {**samples, **_report_files(values)})
    sys.stdout.write(tables.to_markdown(values))


def _run_cells(
    cells: Sequence[EvalCell],
    model: Model,
    display: ProgressDisplay,
    processes: Processes,
) -> report.CellRecords:
    """The records of every cell, in the order of the cells."""
    # A device reports one peak of its memory for the whole process, so the programs
    # with few drafts go first: each raises the peak to its own.
    order = sorted(cells, key=lambda cell: max(cell.decoder.spec.draft_steps))
    tick = display.add_counter("compiling", len(cells))
    compiled = {}
    for cell in order:
        compiled[id(cell)] = runner.compile_cell(cell, model, processes)
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


def _report_files(values: dict[str, Any]) -> dict[str, bytes]:
    """A report, and the tables and figures that are made from it, by file name."""
    name = "results" if values["sweep"] is None else "figure3"
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    return {
        f"{name}.json": (text + "\n").encode(),
        f"{name}.md": tables.to_markdown(values).encode(),
        **_draw_figures(values),
    }


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Write files, each in one step; an interrupt waits until all are there."""
    with unbroken(f"the report in {out}"):
        for file, content in files.items():
            replace_file(out / file, content)
