"""GRPO with and without the standard deviation, and supervised training beside it.

    python -m bench.grpo [--quick] [--seeds 3] [--minutes 3] [--start FOLDER]
        [--runs FILE] [--figure FILE] [--out FILE]

The talk divides the advantages of a group by their standard deviation ("std", GRPO) or
does not ("none", REINFORCE with the mean as baseline), and finds on GSM8K 92 and 91 %
of the easy problems right afterwards, and 81 and 76 % of the hard ones. Here both train
the demo model from a checkpoint on its way, and supervised training on the same
problems, with reference answers, is meant to take the same processor time.

The settings of `METHODS` are not fixed yet, and no result of them is reported: in
trials on development problems, from step 300 of the demo's recipe, reinforcement has
lowered the accuracy.

Every run is one JSON line of FILE; a run that is there is not made again, so that a
bench that was stopped goes on, and a file of other settings is refused. `--quick` takes
two steps from the packaged model, and shows only that everything runs.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

import jaxdave
from bench.harness import plots, report
from bench.harness.reinforce_runs import Method, held_out, run
from jaxdave.runtime.journal import journal_writer, read_journal
from jaxdave.training.reinforce.learner_config import ReinforceConfig
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig

SPLITS = {"easy": 2, "hard": 4}
"""By name: operations of a problem."""
HELD_OUT, QUICK_HELD_OUT = 600, 16
SEEDS = 3
MINUTES = 3.0
RESAMPLES = 4000
_LOSS = PolicyLossConfig(kl_weight=0.0, reduction="sequence")


def reinforced(advantages: str) -> ReinforceConfig:
    """The learner's settings: those of both updates, but for the division.

    Args:
        advantages: "std" or "none".

    Returns:
        The settings.
    """
    return ReinforceConfig(
        advantages=advantages,  # pyright: ignore
        group_size=8,
        rows_per_call=16,
        loss=_LOSS,
    )


METHODS = {
    name: Method(
        name=name,
        learning_rate=5e-5,
        steps_per_minute=20,
        reinforce=reinforced(name),
        prompts=16,
    )
    for name in ("std", "none")
} | {
    "supervised": Method(
        name="supervised",
        learning_rate=5e-5,
        steps_per_minute=40,
        reinforce=None,
        prompts=96,
    )
}


class Key(NamedTuple):
    """What a run is found by.

    Attributes:
        split: A key of `SPLITS`.
        method: A key of `METHODS`.
        seed: The run's seed.
    """

    split: str
    method: str
    seed: int


def keys_of(seeds: int) -> list[Key]:
    """The runs, the hard split first.

    Args:
        seeds: Seeds of each.

    Returns:
        Their keys.
    """
    return [
        Key(split, method, seed)
        for split in ("hard", "easy")
        for seed in range(seeds)
        for method in METHODS
        if split == "hard" or method != "supervised"
    ]


def header_of(start: str, minutes: float, quick: bool) -> dict[str, Any]:
    """What a file of runs is of: runs under other settings are not mixed with it.

    Args:
        start: The checkpoint.
        minutes: Of a run.
        quick: Whether two steps are taken instead.

    Returns:
        JSON values.
    """
    methods = {name: repr(method) for name, method in METHODS.items()}
    return {"start": start, "minutes": minutes, "quick": quick, "methods": methods}


def right(record: dict[str, Any], when: str) -> np.ndarray:
    """Which problems a run has answered.

    Args:
        record: The run.
        when: "before" or "after".

    Returns:
        float [problems], 1 or 0.
    """
    return np.array([float(one) for one in record[when]])


def interval(
    statistic: Callable[[np.ndarray, np.ndarray], float], seeds: int, problems: int
) -> tuple[float, float]:
    """The 95 % bootstrap interval of a statistic, over problems and over seeds.

    Args:
        statistic: From indices of seeds and of problems to a number.
        seeds: How many seeds there are; 1: problems only.
        problems: How many problems.

    Returns:
        Its 2.5th and 97.5th percentile.
    """
    rng = np.random.default_rng(0)
    found = [
        statistic(
            rng.integers(seeds, size=seeds), rng.integers(problems, size=problems)
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def gain_row(split: str, method: str, records: Sequence[dict[str, Any]]) -> dict:
    """What training has changed, in points of accuracy.

    Args:
        split: The split.
        method: The method.
        records: Runs of one seed, or of several.

    Returns:
        A row of the table.
    """
    before_SN = np.stack([right(record, "before") for record in records])
    after_SN = np.stack([right(record, "after") for record in records])
    gain_SN = 100 * (after_SN - before_SN)
    low, high = interval(lambda s, n: gain_SN[np.ix_(s, n)].mean(), *gain_SN.shape)
    seeds = [record["seed"] for record in records]
    return {
        "split": split,
        "method": method,
        "seed": seeds[0] if len(seeds) == 1 else "all",
        "problems": gain_SN.shape[1],
        "before %": round(100 * float(before_SN.mean()), 1),
        "after %": round(100 * float(after_SN.mean()), 1),
        "gain": round(float(gain_SN.mean()), 1),
        "95 %": f"{low:+.1f} to {high:+.1f}",
        "steps": records[0]["steps"],
        "seconds": round(float(np.mean([r["seconds"] for r in records]))),
    }


def difference_row(
    split: str,
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
) -> dict:
    """Two methods on the same problems, afterwards, in points of accuracy.

    Args:
        split: The split.
        first: Runs of a method, one for each seed.
        second: Runs of another.

    Returns:
        A row of the table.
    """
    a_SN, b_SN = (
        np.stack([right(record, "after") for record in records])
        for records in (first, second)
    )
    difference_SN = 100 * (a_SN - b_SN)
    low, high = interval(
        lambda s, n: difference_SN[np.ix_(s, n)].mean(), *difference_SN.shape
    )
    return {
        "split": split,
        "difference": f"{first[0]['method']} - {second[0]['method']}",
        "points": round(float(difference_SN.mean()), 1),
        "95 %": f"{low:+.1f} to {high:+.1f}",
        "of each seed": " ".join(f"{one:+.1f}" for one in difference_SN.mean(axis=1)),
    }


def tables(records: dict[Key, dict[str, Any]]) -> dict[str, list[dict]]:
    """The tables of some runs.

    Args:
        records: The runs.

    Returns:
        Rows by title.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, record in sorted(records.items()):
        groups.setdefault((key.split, key.method), []).append(record)
    gains = []
    for (split, method), found in groups.items():
        gains += [gain_row(split, method, [record]) for record in found]
        if len(found) > 1:
            gains.append(gain_row(split, method, found))
    differences = []
    for split in SPLITS:
        for pair in (("std", "none"), ("std", "supervised")):
            first, second = (groups.get((split, method), []) for method in pair)
            if first and len(first) == len(second):
                differences.append(difference_row(split, first, second))
    return {"Held-out accuracy": gains, "Methods beside each other": differences}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        arguments: Its words; None takes those of this process.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two steps, one seed")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each run")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="of one core, a run"
    )
    parser.add_argument("--start", help="folder of the checkpoint that runs start from")
    parser.add_argument("--runs", type=Path, help="JSON lines, one a run")
    parser.add_argument("--snapshots", type=Path, help="keep parameters of runs there")
    parser.add_argument("--figure", type=Path, help="PNG file of the figure")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parsed = parser.parse_args(arguments)
    if parsed.seeds < 1 or not parsed.minutes > 0:
        parser.error(
            f"seeds={parsed.seeds} and minutes={parsed.minutes} must be above 0"
        )
    if not (parsed.quick or parsed.start):
        parser.error(
            "give the checkpoint that runs start from: jaxdave train --recipe demo "
            "--steps 350 --out base, then --start base/model"
        )
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Words of the command line; None takes those of this process.
    """
    args = parse_arguments(arguments)
    start = args.start or "sdar-1m"
    results = report.start_report(start)
    model = jaxdave.load(start)
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    count = QUICK_HELD_OUT if args.quick else HELD_OUT
    problems = {split: held_out(ops, count) for split, ops in SPLITS.items()}
    header = header_of(start, args.minutes, args.quick)
    done = [] if args.runs is None else read_journal(args.runs, header)
    records = {Key(one["split"], one["method"], one["seed"]): one for one in done}
    before: dict[str, np.ndarray] = {}
    kept = (
        contextlib.nullcontext(None)
        if args.runs is None
        else journal_writer(args.runs, header)
    )
    with kept as write:
        for key in keys_of(1 if args.quick else args.seeds):
            if key in records:
                continue
            method = METHODS[key.method]
            steps = 2 if args.quick else round(args.minutes * method.steps_per_minute)
            folder = args.snapshots
            record = run(
                model,
                method,
                SPLITS[key.split],
                key.seed,
                steps,
                tokenizer,
                problems[key.split],
                before=before.get(key.split),
                snapshots=None if folder is None else folder / "-".join(map(str, key)),
            )
            record = {"split": key.split, **record}
            before[key.split] = right(record, "before")
            records[key] = record
            percent = 100 * right(record, "after").mean()
            print(f"{key}: {percent:.1f} %", file=sys.stderr)
            if write is not None:
                write(record)
    for title, rows in tables(records).items():
        results.add_table(title, rows)
    if args.figure is not None:
        plots.draw_reinforcement(list(records.values()), args.figure)
    results.finish(args.out)


if __name__ == "__main__":
    main()
