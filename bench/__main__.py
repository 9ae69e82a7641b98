"""Take the project's measures on every model, in one table, with figures.

    python -m bench [--sizes demo 1M 30M 135M 4B 8B] [--only loop-efficiency roofline]
        [--out DIR] [--quick] [--rounds N]
    python -m bench --show [DIR]

The measures are explained in docs/results.md. Ratios are medians of
alternating rounds with a 95 % bootstrap interval. "scripted 0.8": the weights are
random and their predictions mean nothing, so the acceptance of drafts is scripted, with
that probability a token (bench/harness/scripted_drafts.py). "missed" is a finding, not
a failure: the exit code is 0.

A whole run writes bench.json, calls.png, steps.png and memory.png to bench/results, or
to DIR. A partial run (--only, --sizes, --quick or --rounds) is stored only where --out
says, and never in bench/results, which keeps the results of the last whole run.
"""

import argparse
import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.decode import prompts_of_one_length
from bench.harness import models, report, stored_results
from bench.harness.measure import (
    AUTO_DRAFT_LENGTH,
    BATCH_SCALING,
    COMPILE_TIME,
    DECODE_MEMORY,
    DRAFT_COST,
    ENDED_ROWS,
    IDENTICAL_TEXT,
    LOOP_EFFICIENCY,
    MEASURE_NAMES,
    NETWORK_CALLS,
    QUICK_PLAN,
    ROOFLINE,
    SEQUENCE_SCALING,
    WALL_CLOCK_SPEEDUP,
    WARM_START,
    Finding,
    Plan,
    ResultsBook,
)
from bench.harness.models import BenchModel
from bench.measures import drafting, exactness, memory, scaling
from jaxdave.runtime.machine import this_machine

RESULTS = Path(__file__).parent / "results"
"""Results of the last whole run."""


class MeasureEntry(NamedTuple):
    """A function that takes some measures.

    Attributes:
        names: the measures it takes.
        sizes: the models it takes them on.
        run: the function; it adds its findings to the book.
    """

    names: tuple[str, ...]
    sizes: tuple[str, ...]
    run: Callable[[BenchModel, Plan, ResultsBook], None]


# A new measure gets an entry here, a name in harness/measure.py, and a line in
# docs/results.md.
MEASURES = (
    MeasureEntry(
        names=(
            IDENTICAL_TEXT,
            NETWORK_CALLS,
            LOOP_EFFICIENCY,
            WALL_CLOCK_SPEEDUP,
            ROOFLINE,
            DRAFT_COST,
        ),
        sizes=models.SIZES,
        run=drafting.measure_drafting,
    ),
    MeasureEntry((IDENTICAL_TEXT,), ("demo",), exactness.measure_identical_text),
    MeasureEntry(
        (AUTO_DRAFT_LENGTH,), ("demo", "4B"), exactness.measure_auto_draft_length
    ),
    MeasureEntry((DECODE_MEMORY,), models.SIZES, memory.measure_draft_memory),
    MeasureEntry((DECODE_MEMORY,), ("1M",), memory.measure_memory_growth),
    MeasureEntry((COMPILE_TIME,), ("1M",), memory.measure_compile_time),
    MeasureEntry((WARM_START,), ("demo",), memory.measure_warm_start),
    MeasureEntry(
        (SEQUENCE_SCALING,),
        ("1M", "30M", "135M", "4B", "8B"),
        scaling.measure_sequence_scaling,
    ),
    MeasureEntry((BATCH_SCALING,), ("demo",), scaling.measure_batch_scaling),
    MeasureEntry((ENDED_ROWS,), ("demo",), scaling.measure_ended_rows),
)


def default_sizes() -> tuple[str, ...]:
    """Choose the models that suit this machine.

    Returns:
        On a CPU all but the large ones; elsewhere the demo and the large ones.
    """
    large = ("4B", "8B")
    if this_machine().is_cpu:
        return tuple(size for size in models.SIZES if size not in large)
    return ("demo", *large)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        arguments: its words; None takes those of this process.

    Returns:
        The options. `out` is the folder to store in, None for a partial run that
        stores nothing.

    Raises:
        SystemExit: with status 2, if a partial run is to be stored in `bench/results`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="measures:\n"
        + "\n".join(f"  {name:20}{text}" for name, text in MEASURE_NAMES.items()),
    )
    parser.add_argument("--sizes", nargs="+", choices=models.SIZES, metavar="SIZE")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=tuple(MEASURE_NAMES),
        metavar="MEASURE",
        help="with those that are taken from the same decodes",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to store")
    parser.add_argument("--quick", action="store_true", help="demo, two rounds")
    parser.add_argument("--rounds", type=int, help="alternating rounds")
    parser.add_argument(
        "--show",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="DIR",
        help="print the table of a stored run and measure nothing",
    )
    args = parser.parse_args(arguments)
    is_partial = bool(args.only or args.sizes or args.quick or args.rounds is not None)
    if is_partial and args.out and args.out.resolve() == RESULTS.resolve():
        parser.error(
            f"--out {args.out} keeps the results of whole runs; give another folder, "
            "or leave out --only, --sizes, --quick and --rounds"
        )
    if not is_partial and args.out is None:
        args.out = RESULTS
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the measures that the command line asks for.

    Args:
        arguments: words of the command line; None takes those of this process.
    """
    args = parse_arguments(arguments)
    if args.show:
        rows = [row._asdict() for row in stored_results.read_findings(args.show)]
        report.Report({}).add_table(f"Measures stored in {args.show}", rows)
        return
    plan = QUICK_PLAN if args.quick else Plan()
    if args.rounds is not None:
        plan = dataclasses.replace(plan, rounds=args.rounds)
    sizes = args.sizes or (("demo", "1M") if args.quick else default_sizes())
    header = report.start_report(", ".join(sizes))
    header.machine["commit"] = report.git_commit()
    header.machine["numerics"] = plan.numerics
    print(f"commit: {header.machine['commit']}")
    book = ResultsBook()
    for size in sizes:
        model = models.bench_model(size, prompts_of_one_length)
        for entry in MEASURES:
            is_chosen = not args.only or not set(args.only).isdisjoint(entry.names)
            if size in entry.sizes and is_chosen:
                run_measure(entry, model, plan, book)
                if args.out:
                    stored_results.write_unfinished(header, book, args.out)
    print_findings(header, book.findings)
    if args.out:
        paths = stored_results.write_finished(header, book, args.out)
        print("wrote", ", ".join(map(str, paths)))
    else:
        print("a partial run: nothing is stored without --out")


def run_measure(
    entry: MeasureEntry, model: BenchModel, plan: Plan, book: ResultsBook
) -> None:
    """Take the measures of one entry on one model.

    An exception becomes a finding, so that it does not cost the measures after it.

    Args:
        entry: the measures.
        model: the model.
        plan: how much is measured.
        book: gets the findings.
    """
    start = time.perf_counter()
    names = "/".join(entry.names)
    try:
        entry.run(model, plan, book)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        book.add(names, model.label, "could not be measured", reason, "-", False)
    seconds = time.perf_counter() - start
    print(
        f"{names} on {model.name}: {seconds:.0f} s, load {report.load_averages()}",
        file=sys.stderr,
        flush=True,
    )


def print_findings(header: report.Report, findings: Sequence[Finding]) -> None:
    """Print the table of all findings, and how many targets are met.

    Args:
        header: the run's report, which gets the table.
        findings: the findings.
    """
    header.add_table("Measures", [finding._asdict() for finding in findings])
    count = {
        verdict: sum(finding.verdict == verdict for finding in findings)
        for verdict in ("met", "missed")
    }
    load = report.load_averages()
    print(f"\n{count['met']} met, {count['missed']} missed; load {load}")


if __name__ == "__main__":
    main()
