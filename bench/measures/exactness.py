"""One text for every draft length and batch, and the cost of choosing the former."""

from typing import Any

import numpy as np

from bench import guard
from bench.harness import timing
from bench.harness.loading import load_model
from bench.harness.measure import (
    AUTO_DRAFT_LENGTH,
    IDENTICAL_TEXT,
    Plan,
    ResultsBook,
    machine_targets,
)
from bench.harness.models import BenchModel
from jaxdave.demo_tasks import problem_sets

DTYPES = ("float32", "bfloat16")


def measure_identical_text(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take identical-text on the trained model, and count rechecks.

    `bench.guard` and `bench.lossless` decode many more.

    Args:
        model: the demo model.
        plan: the number of problems.
        book: gets the findings.
    """
    loaded = load_model(model.config.name)
    problems = problem_sets.load("words_test")[: plan.num_problems]
    prompts = loaded.encode_prompts(problems)
    for numerics in ("exact", "guarded"):
        for dtype in DTYPES:
            rows = guard.compare_settings(
                loaded, dtype, prompts, 0.0, numerics, guard.SETTINGS
            )
            total, same, calls, rechecks = (
                sum(row[name] for row in rows)
                for name in ("decodes", "identical", "calls", "rechecks")
            )
            what = f"{numerics}, {dtype}: identical of {total}"
            book.add(IDENTICAL_TEXT, model.label, what, same, f"{total}", same == total)
            if numerics == "guarded":
                what = f"{numerics}, {dtype}: rechecks among all calls"
                share = rechecks / calls
                target = guard.MAX_RECHECK_SHARE
                book.add_at_most(IDENTICAL_TEXT, model.label, what, share, target)


def measure_auto_draft_length(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take auto-draft-length: against the best fixed draft length, and static.

    Args:
        model: the model.
        plan: rounds; twice as many are run, as the ratios are close to 1.
        book: gets the findings.
    """
    targets = machine_targets()
    names: list[Any] = ["auto", "static", *targets.fixed_draft_lengths]
    benches = [
        model.bench(1 if name == "static" else name, numerics="guarded")
        for name in names
    ]
    texts = {bench.decode().completions[0].token_ids for bench in benches}
    what = "texts, chosen or fixed"
    book.add(AUTO_DRAFT_LENGTH, model.label, what, len(texts), "1")
    seconds = timing.time_alternately(
        [bench.time_decode for bench in benches], 2 * plan.rounds
    )
    by_name = dict(zip(names, seconds.T, strict=True))

    def ratio(name: Any, other: Any) -> timing.MedianInterval:
        return timing.median_with_interval(by_name[name] / by_name[other])

    fixed = [name for name in names if name != "auto"]
    best = min(fixed, key=lambda name: float(np.median(by_name[name])))
    for what, other, target in (
        (f"auto / best fixed ({best})", best, targets.auto_over_best),
        ("auto / static", "static", 1.03),
    ):
        value = ratio("auto", other)
        book.add_at_most(AUTO_DRAFT_LENGTH, model.label, what, value, target)
    if model.acceptance is None:
        value = ratio("static", "auto")
        book.add_at_least(AUTO_DRAFT_LENGTH, model.label, "static / auto", value, 1.5)
