"""Every measure on every model, in one table, with figures.

    python -m bench [--sizes demo 1M 30M 135M 4B 8B] [--only M3 M7] [--out DIR]
        [--quick]

Ratios are medians of alternating rounds with a 95 % bootstrap interval. "scripted 0.8":
the weights are random and mean nothing, so whether drafts hold is scripted, with that
probability a token (`bench/scripted.py`). "missed" is a finding, not a failure: the
exit code is 0. Writes DIR/bench.json, calls.png, steps.png and memory.png.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.decode import equal_lengths
from bench.harness import common, measure, models, plots
from bench.harness.measure import Book, Plan
from bench.harness.models import Subject
from bench.measures import drafting, exactness, memory, scaling
from jaxdave.runtime.files import replace_file
from jaxdave.runtime.platform import on_cpu

RESULTS = Path(__file__).parent / "results"


class Entry(NamedTuple):
    """A measure: what it finds, on which models, and how."""

    finds: tuple[str, ...]
    sizes: tuple[str, ...]
    run: Callable[[Subject, Plan, Book], None]


# A measure that is to be run goes into this list; it adds to the book.
MEASURES = (
    Entry(("M1", "M3", "M4", "M5", "M6", "M11"), models.SIZES, drafting.measure),
    Entry(("M1",), ("demo",), exactness.exactness),
    Entry(("M14",), ("demo", "4B"), exactness.regret),
    Entry(("M7",), models.SIZES, memory.memory),
    Entry(("M7",), ("1M",), memory.dependence),
    Entry(("M8",), ("1M",), memory.compiling),
    Entry(("M8",), ("demo",), memory.warm_start),
    Entry(("M9",), ("1M", "30M", "135M", "4B", "8B"), scaling.sequence),
    Entry(("M10",), ("demo",), scaling.batch),
    Entry(("M10",), ("demo",), scaling.ended_rows),
)


def usual() -> tuple[str, ...]:
    """The models that a machine is meant for."""
    large = ("4B", "8B")
    if on_cpu():
        return tuple(size for size in models.SIZES if size not in large)
    return ("demo", *large)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    named = sorted({name for entry in MEASURES for name in entry.finds})
    parser.add_argument("--sizes", nargs="+", choices=models.SIZES, metavar="SIZE")
    parser.add_argument("--only", nargs="+", choices=named, metavar="M")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="demo, two rounds")
    parser.add_argument("--rounds", type=int, help="alternating rounds")
    return parser.parse_args()


def main() -> None:
    """Run what was asked for."""
    args = arguments()
    plan = measure.QUICK if args.quick else Plan()
    if args.rounds is not None:
        plan = dataclasses.replace(plan, rounds=args.rounds)
    sizes = args.sizes or (("demo", "1M") if args.quick else usual())
    report = common.begin(", ".join(sizes))
    report.machine["commit"] = commit()
    report.machine["numerics"] = plan.numerics
    print(f"commit: {report.machine['commit']}")
    book, made = Book(), []
    for size in sizes:
        subject = models.subject(size, equal_lengths)
        for entry in MEASURES:
            if size in entry.sizes and (not args.only or {*args.only} & {*entry.finds}):
                timed(entry, subject, plan, book)
                # A run that is cut off leaves what it has done.
                made = store(report, book, args.out)
    show(report, book)
    print("wrote", ", ".join(map(str, made)))


def timed(entry: Entry, subject: Subject, plan: Plan, book: Book) -> None:
    """One measure on one model; what goes wrong in it is a line of the table."""
    start = time.perf_counter()
    try:
        entry.run(subject, plan, book)
    except Exception as error:
        traceback.print_exc()
        name = "/".join(entry.finds)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        book.note(name, subject.label, "could not be measured", reason, "-", False)
    seconds = time.perf_counter() - start
    about = f"{'/'.join(entry.finds)} on {subject.name}: {seconds:.0f} s"
    print(f"{about}, load {common.load_now()}", file=sys.stderr, flush=True)


def store(report: common.Report, book: Book, out: Path) -> list[Path]:
    """Write what has been found so far: JSON and figures."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [finding._asdict() for finding in book.findings]
    machine = report.machine | {"load_at_end": common.load_now()}
    told = {**machine, "findings": rows, "points": book.points}
    text = json.dumps(told, indent=1, default=str)
    replace_file(out / "bench.json", (text + "\n").encode())
    title = f"{machine['device']}, {machine['date']}, load {machine['load_at_end']}"
    return [out / "bench.json", *plots.draw(book.points, out, title)]


def show(report: common.Report, book: Book) -> None:
    """Print the one table."""
    rows = [finding._asdict() for finding in book.findings]
    report.table("Measures (aims: performance.md section 6 and issue 5)", rows)
    count = {v: sum(row["verdict"] == v for row in rows) for v in ("met", "missed")}
    print(f"\n{count['met']} met, {count['missed']} missed; load {common.load_now()}")


def commit() -> str:
    """The git commit of this tree, marked where files differ from it."""

    def ask(*command: str) -> str:
        told = subprocess.run(
            ("git", *command), capture_output=True, text=True,
            cwd=Path(__file__).parent, check=False,
        )  # fmt: skip
        return told.stdout.strip()

    dirty = " (changed)" if ask("status", "--porcelain", "-uno") else ""
    return (ask("rev-parse", "--short", "HEAD") or "unknown") + dirty


if __name__ == "__main__":
    main()
