"""GRPO with and without the standard deviation, and supervised training beside it.

    python -m bench.grpo [--quick] [--seeds 3] [--splits hard,easy] [--runs FILE]
        [--figure FILE] [--out FILE]

The talk divides the advantages of a group by their standard deviation ("std", GRPO) or
does not ("none", REINFORCE with the mean as baseline), and finds on GSM8K 92 and 91 %
of the easy problems right afterwards, and 81 and 76 % of the hard ones.

Fixed before the run:

- Problems: word problems of 5 operations, more than the packaged models were trained
  on (hard), and of 3 (easy); training problems of the train side, 600 held-out problems
  of the test side of each, answered at temperature 0 with the static policy.
- Checkpoint: the packaged `sdar-1m` after 60 supervised steps of 32 problems of 5
  operations (AdamW, 2e-5, seed 77). The packaged model leaves an operation out, so that
  hardly any answer to a hard problem is right and rewards do not vary; the checkpoint
  hesitates between four operations and five: 26 % of 256 hard development problems are
  right, and 61 % of 64 easy ones. Its held-out accuracy is "before %" of the table.
- Runs: 24 steps of 16 prompts and 8 answers each, drawn at temperature 1.5 by the
  static policy with 4 drafts and exact numerics; reward 1 for a right answer; the loss
  of recorded trajectories (TraceRL), answers counting the same, no divergence; AdamW,
  2e-5, 5 steps of warm-up. Three seeds of both updates. Supervised training on
  reference answers, otherwise as the checkpoint's, for the mean processor time of the
  reinforced runs of its split.
- Tried on development problems: this rate at temperatures 1 and 1.5 (26 % to 53 and
  62 % after 20 steps, without the deviation); a checkpoint after 50 steps, of which 9 %
  were right, at twice the rate (14 % after 16 steps). The comparison of the updates was
  not tried.
- Statistics: change of accuracy in points, and its difference between methods after the
  run, with 95 % bootstrap intervals over problems and seeds. Aim: a gain of at least 5
  points on the hard split.

Every run is one JSON line of FILE; a run that is there is not made again, so that a
bench that was stopped goes on, and a file of other settings is refused. `--quick` takes
two steps of everything, and shows only that it runs.
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
from bench.harness.reinforce_runs import (
    Method,
    accuracy,
    bits,
    cold_start,
    held_out,
    run,
)
from jaxdave.runtime.journal import journal_writer, read_journal
from jaxdave.training.reinforce.learner_config import ReinforceConfig
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig

MODEL = "sdar-1m"
SPLITS = {"hard": 5, "easy": 3}
"""By name: operations of a problem."""
HELD_OUT, QUICK_HELD_OUT = 600, 16
SEEDS = 3
START_OPS, START_STEPS, STEPS, QUICK_STEPS = 5, 60, 24, 2
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
        learning_rate=2e-5,
        reinforce=reinforced(name),
        prompts=16,
    )
    for name in ("std", "none")
} | {
    "supervised": Method(
        name="supervised",
        learning_rate=2e-5,
        reinforce=None,
        prompts=32,
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


def keys_of(splits: Sequence[str], seeds: int) -> list[Key]:
    """The runs, reinforced ones of a split first.

    Args:
        splits: Keys of `SPLITS`.
        seeds: Seeds of each.

    Returns:
        Their keys.
    """
    return [
        Key(split, method, seed)
        for split in splits
        for method in METHODS
        for seed in range(seeds)
    ]


def header_of(quick: bool) -> dict[str, Any]:
    """What a file of runs is of: runs under other settings are not mixed with it.

    Args:
        quick: Whether two steps are taken instead.

    Returns:
        JSON values.
    """
    methods = {name: repr(method) for name, method in METHODS.items()}
    return {"quick": quick, "splits": SPLITS, "steps": STEPS, "methods": methods}


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
        "mean reward": _mean_reward(records),
        "steps": round(float(np.mean([r["steps"] for r in records]))),
        "seconds": round(float(np.mean([r["seconds"] for r in records]))),
    }


def _mean_reward(records: Sequence[dict[str, Any]]) -> str:
    """Over all steps of runs: which of two has learnt sooner."""
    rewards = [s["reward"] for r in records for s in r["curve"] if "reward" in s]
    return f"{np.mean(rewards):.3f}" if rewards else "-"


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
        "--splits", default=",".join(SPLITS), help="which, separated by commas"
    )
    parser.add_argument("--runs", type=Path, help="JSON lines, one a run")
    parser.add_argument("--figure", type=Path, help="PNG file of the figure")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parsed = parser.parse_args(arguments)
    if parsed.seeds < 1:
        parser.error(f"seeds={parsed.seeds} must be at least 1")
    parsed.splits = parsed.splits.split(",")
    for split in parsed.splits:
        if split not in SPLITS:
            parser.error(f"split {split!r} is unknown; choose of {', '.join(SPLITS)}")
    return parsed


def mean_seconds(records: dict[Key, dict[str, Any]], split: str) -> float:
    """The processor time of the reinforced runs of a split.

    Args:
        records: The runs.
        split: The split; it has some.

    Returns:
        Their mean, in seconds.
    """
    found = [
        record["seconds"]
        for key, record in records.items()
        if key.split == split and METHODS[key.method].reinforce is not None
    ]
    return float(np.mean(found))


def make_runs(
    keys: Sequence[Key],
    records: dict[Key, dict[str, Any]],
    write: Callable[[dict[str, Any]], None],
    *,
    quick: bool,
) -> dict[Key, dict[str, Any]]:
    """Make the runs that are missing.

    Args:
        keys: All runs, in their order.
        records: Those that are there.
        write: Takes every new one.
        quick: Two steps of everything.

    Returns:
        All runs.
    """
    records = dict(records)
    if all(key in records for key in keys):
        return records
    model = jaxdave.load(MODEL)
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    start_steps, steps = (QUICK_STEPS,) * 2 if quick else (START_STEPS, STEPS)
    start = cold_start(model, START_OPS, start_steps, tokenizer)
    before: dict[str, np.ndarray] = {}
    for key in keys:
        if key in records:
            continue
        ops, method = SPLITS[key.split], METHODS[key.method]
        problems = held_out(ops, QUICK_HELD_OUT if quick else HELD_OUT)
        if key.split not in before:
            before[key.split] = accuracy(model, start, problems)
        is_supervised = method.reinforce is None
        record = run(
            model,
            start,
            method,
            ops,
            key.seed,
            tokenizer,
            problems,
            steps=None if is_supervised else steps,
            seconds=mean_seconds(records, key.split) if is_supervised else None,
        )
        record = {"split": key.split, **record, "before": bits(before[key.split])}
        records[key] = record
        write(record)
        percent = 100 * right(record, "after").mean()
        print(f"{key}: {percent:.1f} %", file=sys.stderr, flush=True)
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Words of the command line; None takes those of this process.
    """
    args = parse_arguments(arguments)
    results = report.start_report(MODEL)
    header = header_of(args.quick)
    done = [] if args.runs is None else read_journal(args.runs, header)
    records = {Key(one["split"], one["method"], one["seed"]): one for one in done}
    kept = (
        contextlib.nullcontext(lambda record: None)
        if args.runs is None
        else journal_writer(args.runs, header)
    )
    keys = keys_of(args.splits, 1 if args.quick else args.seeds)
    with kept as write:
        records = make_runs(keys, records, write, quick=args.quick)
    for title, rows in tables(records).items():
        results.add_table(title, rows)
    if args.figure is not None:
        plots.draw_reinforcement(list(records.values()), args.figure)
    results.finish(args.out)


if __name__ == "__main__":
    main()
