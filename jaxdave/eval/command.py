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
from jaxdave.eval.wanted import Wanted, preset_of
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
    made = report.report(found, preset_of(wanted).name, wanted.as_published)
    if wanted.out is not None:
        _write(wanted.out, made, _pictures(wanted, made, found))
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


def _pictures(
    wanted: Wanted, made: dict[str, Any], found: report.Found
) -> dict[str, bytes]:
    """The figures by file name."""
    files = {}
    if wanted.sweep is not None:
        for form, content in figures.figure3(made).items():
            files[f"figure3.{form}"] = content
    if wanted.trajectory is not None:
        name = re.sub(r"[^\w.-]", "_", wanted.trajectory)
        for form, content in _trajectory(wanted.trajectory, made, found).items():
            files[f"trajectory-{name}.{form}"] = content
    return files


def _trajectory(item: str, made, found: report.Found) -> dict[str, bytes]:
    """Static and FreeDave on one item; of several draft lengths the first."""
    task = plan.drawn_task(item, tuple(cell for cell, _ in found))
    sides = {}
    for cell, own in found:
        if cell.task.name == task.name and cell.method.name in ("static", "freedave"):
            record = next(one for one in own if one.id == item)
            title = cell.method.title(cell.settings)
            side = title, record.committed_at, record.nfe["total"]
            sides.setdefault(cell.method.name, side)
    pair = [sides["static"], sides["freedave"]]
    return figures.trajectory(f"{made['model']}, {item}", pair)


def _write(out: Path, made: dict[str, Any], pictures: dict[str, bytes]) -> None:
    text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False)
    files = {
        "results.json": (text + "\n").encode(),
        "results.md": tables.markdown(made).encode(),
        **pictures,
    }
    for name, content in files.items():
        replace_file(out / name, content)
