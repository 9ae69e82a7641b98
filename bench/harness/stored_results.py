"""Writing and reading the results of `python -m bench`.

A run writes `bench.json` and the figures when it has finished. Until then its findings
are in `unfinished.json` beside them, so a run that is cut off loses nothing and leaves
the results of the last finished run as they were.
"""

import json
from pathlib import Path
from typing import Any

from bench.harness import plots
from bench.harness.measure import (
    AUTO_DRAFT_LENGTH,
    BATCH_SCALING,
    COMPILE_TIME,
    DECODE_MEMORY,
    DRAFT_COST,
    ENDED_ROWS,
    IDENTICAL_TEXT,
    LOOP_EFFICIENCY,
    NETWORK_CALLS,
    ROOFLINE,
    SEQUENCE_SCALING,
    WALL_CLOCK_SPEEDUP,
    WARM_START,
    Finding,
    ResultsBook,
)
from bench.harness.report import Report, load_averages
from jaxdave.runtime.files import replace_file

FINISHED, UNFINISHED = "bench.json", "unfinished.json"

FORMER_CODES = {
    "M1": IDENTICAL_TEXT,
    "M3": NETWORK_CALLS,
    "M4": LOOP_EFFICIENCY,
    "M5": WALL_CLOCK_SPEEDUP,
    "M6": ROOFLINE,
    "M7": DECODE_MEMORY,
    "M8": COMPILE_TIME,
    "M9": SEQUENCE_SCALING,
    "M10": BATCH_SCALING,
    "M11": DRAFT_COST,
    "M14": AUTO_DRAFT_LENGTH,
}
"""Codes that results stored before December 2026 have in place of names."""

# Two codes stood for two measures each; the second one is told by its wording.
_SPLIT_CODES = {
    "M8": ("beyond importing jax", WARM_START),
    "M10": ("live row", ENDED_ROWS),
}


def current_name(measure: str, what: str) -> str:
    """Translate the measure of a stored finding.

    Args:
        measure: a name, or one of `FORMER_CODES`.
        what: the quantity of the finding, in words.

    Returns:
        The name; an unknown one as it is.

    Example:
        >>> current_name("M4", "d=8: bare calls over wall")
        'loop-efficiency'
    """
    phrase, name = _SPLIT_CODES.get(measure, ("", ""))
    if name and phrase in what:
        return name
    return FORMER_CODES.get(measure, measure)


def read_findings(folder: Path) -> list[Finding]:
    """Read the findings of a finished run.

    Args:
        folder: the folder that the run has written to.

    Returns:
        The findings, under the present names of their measures.

    Raises:
        OSError: if no finished run is in the folder.
    """
    stored = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    findings = [Finding(**row) for row in stored["findings"]]
    return [
        finding._replace(measure=current_name(finding.measure, finding.what))
        for finding in findings
    ]


def write_unfinished(report: Report, book: ResultsBook, folder: Path) -> None:
    """Write what a run has measured so far, beside any finished results.

    Args:
        report: the run's header.
        book: its findings and points so far.
        folder: where to write; made if it does not exist.
    """
    _write(report.machine, book, folder / UNFINISHED)


def write_finished(report: Report, book: ResultsBook, folder: Path) -> list[Path]:
    """Write the results and figures of a finished run in place of an earlier one's.

    Args:
        report: the run's header.
        book: its findings and points.
        folder: where to write; made if it does not exist.

    Returns:
        The files written.
    """
    machine = report.machine | {"load_at_end": load_averages()}
    _write(machine, book, folder / FINISHED)
    (folder / UNFINISHED).unlink(missing_ok=True)
    title = f"{machine['device']}, {machine['date']}, load {machine['load_at_end']}"
    return [folder / FINISHED, *plots.draw_figures(book.points, folder, title)]


def _write(machine: dict[str, Any], book: ResultsBook, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    findings = [finding._asdict() for finding in book.findings]
    content = {**machine, "findings": findings, "points": book.points}
    text = json.dumps(content, indent=1, default=str)
    replace_file(path, (text + "\n").encode())
