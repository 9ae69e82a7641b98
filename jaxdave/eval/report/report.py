"""What a run has found, as one JSON value from which tables and figures are made."""

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
from jaxdave.eval.run.cells import Cell
from jaxdave.eval.run.eval_config import EvalConfig
from jaxdave.eval.run.plan import drawn_task
from jaxdave.eval.run.records import Record

FORMAT = 1
MEASURED = ("machine", "timing", "memory")
"""Keys, at any depth, of what differs from run to run; all else is the same again."""

Found = Sequence[tuple[Cell, tuple[Record, ...]]]


def stable(value: Any) -> Any:
    """A report without what differs from run to run (`MEASURED`)."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in MEASURED}
    return [stable(v) for v in value] if isinstance(value, list) else value


def report(config: EvalConfig, found: Found) -> dict[str, Any]:
    """The results of all cells, in their order."""
    first = found[0][0].header
    return {
        "format": FORMAT,
        "model": first["model"],
        "weights": first["weights"],
        "preset": first["preset"],
        "as_published": config.as_published,
        "sweep": config.sweep,
        "trajectory": config.trajectory and _trajectory(config.trajectory, found),
        "cells": [_cell(cell, own, found) for cell, own in found],
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Where and when this was: command, device, versions, load."""
    device = jax.devices()[0]
    return {
        "command": f"jaxdave {shlex.join(sys.argv[1:])}",
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxdave": jaxdave.__version__,
        },
        "load": [round(one, 2) for one in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _trajectory(item: str, found: Found) -> dict[str, Any]:
    """Static and FreeDave on one item; of several draft lengths the longest.

    sides: what to call it, the call that made each position known, calls in all.
    """
    task, sides = drawn_task(item, [cell for cell, _ in found]), {}
    for cell, own in found:
        if cell.task.name == task.name and cell.method.name in ("static", "freedave"):
            record = next(one for one in own if one.id == item)
            sides[cell.method.name] = {
                "title": cell.method.title(cell.settings),
                "committed_at": list(record.committed_at),
                "calls": record.nfe["total"],
            }
    return {"item": item, "sides": [sides["static"], sides["freedave"]]}


def _cell(cell: Cell, own: Sequence[Record], found: Found) -> dict[str, Any]:
    made: dict[str, Any] = {
        "task": cell.task.name,
        "kind": cell.task.kind,
        "method": cell.method.name,
        "title": cell.method.title(cell.settings),
        "drafted": cell.method.drafted,
        "draft_steps": cell.settings.draft_steps if cell.method.drafted else 1,
        "settings": dict(cell.header),
        **metrics.counts(own),
        "timing": metrics.times(own),
        "memory": _memory(own),
    }
    static = _of(found, cell, "static")
    if static is not None and cell.method.name != "static":
        calls, seconds = metrics.gains(own, static)
        made["tokens_per_nfe_gain"] = calls
        made["timing"]["speed_up"] = seconds
    for name in dict.fromkeys(("static", cell.method.base)):
        base = _of(found, cell, name)
        if base is not None:
            made.setdefault("same_text", {})[name] = _same(own, base)
    return made


def _of(found: Found, like: Cell, method: str) -> Mapping[str, Record] | None:
    """The records of a method on the same benchmark, by id; None: it was not run."""
    for cell, own in found:
        if (cell.task.name, cell.method.name) == (like.task.name, method):
            return {record.id: record for record in own}
    return None


def _same(own: Sequence[Record], base: Mapping[str, Record]) -> dict[str, Any]:
    apart = metrics.differences(own, base)
    same = len(own) - len(apart)
    return {
        "items": same,
        "share": same / len(own),
        "different": [one._asdict() for one in apart],
    }


def _memory(own: Sequence[Record]) -> dict[str, Any]:
    """The most that any shape of a cell took, by the best measure there is."""
    seen = [record.memory for record in own if record.memory]
    for source in memory.SOURCES:
        sizes = [one[source] for one in seen if source in one]
        if sizes:
            return {"bytes": max(sizes), "source": source}
    return {"bytes": None, "source": None}
