"""The results of a run as one JSON value, from which tables and figures are made."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import jaxdave
from jaxdave.eval.report import metrics
from jaxdave.eval.run import memory
from jaxdave.eval.run.cells import ReportCell
from jaxdave.eval.run.eval_config import EvalConfig
from jaxdave.eval.run.plan import drawn_task
from jaxdave.eval.run.records import Record

FORMAT = 1
"""Version of the format of results files."""
MEASURED_KEYS = ("machine", "timing", "memory")
"""Keys, at any depth, of values that differ from run to run."""

CellRecords = Sequence[tuple[ReportCell, tuple[Record, ...]]]
"""The cells of a run with their records, in the order of the tables."""


def reproducible_part(value: Any) -> Any:
    """Remove from a report what differs from run to run (`MEASURED_KEYS`).

    Example:
        >>> reproducible_part({"right": 3, "timing": {"seconds": 1.5}})
        {'right': 3}

    Args:
        value: A report, or a part of one.

    Returns:
        A copy; two runs with the same settings agree on it.
    """
    if isinstance(value, dict):
        return {
            k: reproducible_part(v) for k, v in value.items() if k not in MEASURED_KEYS
        }
    if isinstance(value, list):
        return [reproducible_part(v) for v in value]
    return value


def make_report(config: EvalConfig, results: CellRecords) -> dict[str, Any]:
    """Make the report of a run.

    Args:
        config: What was evaluated.
        results: The cells with their records, at least one.

    Returns:
        JSON values; the content of results.json or figure3.json.
    """
    first = results[0][0].header
    return {
        "format": FORMAT,
        "model": first["model"],
        "weights": first["weights"],
        "preset": first["preset"],
        "as_published": config.as_published,
        "sweep": config.sweep,
        "trajectory": config.trajectory and _trajectory(config.trajectory, results),
        "cells": [_cell_report(cell, records, results) for cell, records in results],
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Describe where and when this run was made.

    Returns:
        Command, device, versions, load averages and date.
    """
    device = jax.local_devices()[0]
    return {
        "command": f"jaxdave {shlex.join(sys.argv[1:])}",
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxdave": jaxdave.__version__,
        },
        "load": [round(average, 2) for average in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _trajectory(item: str, results: CellRecords) -> dict[str, Any]:
    """Static and FreeDave on one item: title, call of each position, calls in all.

    Of several draft lengths the last, which is the largest, is shown.
    """
    task, sides = drawn_task(item, [cell for cell, _ in results]), {}
    for cell, records in results:
        if cell.task.name == task.name and cell.method.name in ("static", "freedave"):
            record = next(record for record in records if record.id == item)
            sides[cell.method.name] = {
                "title": cell.method.title(cell.settings),
                "committed_at": list(record.committed_at),
                "calls": record.nfe["total"],
            }
    return {"item": item, "sides": [sides["static"], sides["freedave"]]}


def _cell_report(
    cell: ReportCell, records: Sequence[Record], results: CellRecords
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "task": cell.task.name,
        "kind": cell.task.kind,
        "method": cell.method.name,
        "title": cell.method.title(cell.settings),
        "drafted": cell.method.drafted,
        "draft_steps": cell.settings.draft_steps if cell.method.drafted else 1,
        "settings": dict(cell.header),
        **metrics.count_metrics(records),
        "timing": metrics.timing_metrics(records),
        "memory": _peak_memory(records),
    }
    static = _records_of(results, cell, "static")
    if static is not None and cell.method.name != "static":
        tokens_per_call, tokens_per_second = metrics.gain_metrics(records, static)
        values["tokens_per_nfe_gain"] = tokens_per_call
        values["timing"]["speed_up"] = tokens_per_second
    # Beside static's, the text is compared with that of the method that this one must
    # reproduce, which for freedave-threshold is threshold's.
    for name in dict.fromkeys(("static", cell.method.base)):
        base = _records_of(results, cell, name)
        if base is not None:
            values.setdefault("same_text", {})[name] = _same_text(records, base)
    return values


def _records_of(
    results: CellRecords, like: ReportCell, method: str
) -> Mapping[str, Record] | None:
    """The records of a method on the same benchmark, by id; None: it was not run."""
    for cell, records in results:
        if (cell.task.name, cell.method.name) == (like.task.name, method):
            return {record.id: record for record in records}
    return None


def _same_text(records: Sequence[Record], base: Mapping[str, Record]) -> dict[str, Any]:
    """Number and share of the items with the same text, and the items that differ."""
    differences = metrics.text_differences(records, base)
    same = len(records) - len(differences)
    return {
        "items": same,
        "share": same / len(records),
        "different": [difference._asdict() for difference in differences],
    }


def _peak_memory(records: Sequence[Record]) -> dict[str, Any]:
    """The largest memory of any shape of a cell, by the best measure there is."""
    measured = [record.memory for record in records if record.memory]
    for source in memory.MEMORY_SOURCES:
        sizes = [by_source[source] for by_source in measured if source in by_source]
        if sizes:
            return {"bytes": max(sizes), "source": source}
    return {"bytes": None, "source": None}
