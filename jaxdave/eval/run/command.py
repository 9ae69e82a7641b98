"""`jaxdave eval`: a model loaded, every cell run, the tables printed and written."""

import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jaxdave.eval.report import figures, report, tables
from jaxdave.eval.run import plan, runner
from jaxdave.eval.run.cells import Cell
from jaxdave.eval.run.eval_config import EvalConfig
from jaxdave.eval.run.progress import Shown, watching
from jaxdave.eval.run.records import Record
from jaxdave.eval.run.runner import Verdicts
from jaxdave.io import checkpoint
from jaxdave.io.checkpoint import Model
from jaxdave.runtime.files import replace_file

LOCK = ".lock"


def run(config: EvalConfig) -> None:
    """Evaluate and print; files go to the output folder, where there is one.

    Raises ValueError, before anything is written, for what is wrong with the options,
    the model, the data, the prompts, and the records of an earlier run.
    """
    model = checkpoint.load(
        config.load.model,
        dtype=config.load.dtype,
        block_length=config.overrides.get("block_length"),
        quantize=config.load.quantize,
    )
    out = config.out
    with contextlib.ExitStack() as held:
        # Records of an earlier run are read with the cells.
        if out is not None and out.is_dir():
            held.enter_context(_alone(out))
        cells = plan.cells(config, model)
        if out is not None and not out.is_dir():
            held.enter_context(_alone(out))
        with watching() as shown:
            found = _decoded(cells, model, shown)
        made = report.report(config, found)
        if out is not None:
            _write(out, made)
    sys.stdout.write(tables.markdown(made))


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make the output folder and keep other runs out of it.

    Raises ValueError where one is in there, or nothing can be written.
    """
    _open(out)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"out={out} is being written to by another run; wait until it has ended, "
            "or choose another folder"
        ) from None
    try:
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        lock.release()


def _open(out: Path) -> None:
    """Make the output folder. Raises ValueError where nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable, reason = os.access(out, os.W_OK | os.X_OK), "it is read-only"
    except OSError as error:
        writable, reason = False, error.strerror
    if not writable:
        raise ValueError(
            f"out={out} cannot be written to ({reason}); choose another folder"
        )


def _decoded(cells: Sequence[Cell], model: Model, shown: Shown) -> report.Found:
    """The records of every cell, in the order of the cells."""
    # The device keeps one peak of its memory, so that small programs go first.
    order = sorted(cells, key=lambda cell: cell.decoder.spec.max_drafts)
    tick = shown.counted("compiling", len(cells))
    held = {}
    for cell in order:
        held[id(cell)] = runner.ready(cell, model)
        tick()
    found = []
    for _, group in itertools.groupby(cells, key=lambda cell: cell.task.name):
        known: Verdicts = {}
        some = list(group)
        turns = [
            runner.steps(one, known, shown.watch(one.cell, one.done.values()))
            for one in (held[id(cell)] for cell in some)
        ]
        found += zip(some, map(_by_item, some, runner.in_turn(turns)), strict=True)
    return found


def _by_item(cell: Cell, made: Sequence[Record]) -> tuple[Record, ...]:
    """Records in the order of the benchmark's items."""
    found = {record.id: record for record in made}
    return tuple(found[one.item.id] for one in cell.entries)


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
