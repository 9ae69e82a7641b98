"""`jaxdave eval`: a model loaded, every cell run, the tables printed and written."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdave import checkpoint
from jaxdave.checkpoint import Model
from jaxdave.eval import figures, plan, report, runner, tables
from jaxdave.eval.progress import Bar, watching
from jaxdave.eval.records import Record
from jaxdave.eval.runner import Cell, Verdicts
from jaxdave.eval.wanted import Wanted
from jaxdave.files import replace_file


def run(wanted: Wanted) -> None:
    """Evaluate and print; files go to the output folder, where there is one.

    Raises ValueError, before anything is written, for what is wrong with the options,
    the model, the data, the prompts, and the records of an earlier run.
    """
    model = checkpoint.load(
        wanted.model, dtype=wanted.dtype, block_length=wanted.block_length,
        quantize=wanted.quantize,
    )  # fmt: skip
    cells = plan.cells(wanted, model)
    if wanted.out is not None:
        wanted.out.mkdir(parents=True, exist_ok=True)
    with watching() as bar:
        found = _decoded(cells, model, bar)
    made = report.report(wanted, found)
    if wanted.out is not None:
        _write(wanted.out, made)
    sys.stdout.write(tables.markdown(made))


def _decoded(cells: Sequence[Cell], model: Model, bar: Bar) -> report.Found:
    """The records of every cell, in the order of the cells."""
    known: dict[str, Verdicts] = {}
    # The device keeps one peak of its memory, so that small programs go first.
    order = sorted(range(len(cells)), key=lambda at: _slots(cells[at]))
    found: dict[int, tuple[Record, ...]] = {}
    for at in order:
        cell = cells[at]
        watch = bar(f"{cell.task.name} {cell.method.title(cell.settings)}", cell)
        grades = known.setdefault(cell.task.name, {})
        found[at] = runner.run(cell, model, grades, watch)
    return [(cell, found[at]) for at, cell in enumerate(cells)]


def _slots(cell: Cell) -> int:
    return cell.decoder.program.most


def _pictures(made: dict[str, Any]) -> dict[str, bytes]:
    """The figures of a report by file name."""
    files = {}
    if made["sweep"] is not None:
        for form, content in figures.figure3(made).items():
            files[f"figure3.{form}"] = content
    if made["trajectory"] is not None:
        name = re.sub(r"[^\w.-]", "_", made["trajectory"]["item"])
        for form, content in figures.trajectory(made).items():
            files[f"trajectory-{name}.{form}"] = content
    return files


def _write(out: Path, made: dict[str, Any]) -> None:
    """Write a report, and the tables and figures that are made from it."""
    name = "results" if made["sweep"] is None else "figure3"
    text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False)
    files = {
        f"{name}.json": (text + "\n").encode(),
        f"{name}.md": tables.markdown(made).encode(),
        **_pictures(made),
    }
    for file, content in files.items():
        replace_file(out / file, content)
