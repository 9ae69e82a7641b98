"""M1 and M14: one text for every draft length and batch, and what choosing costs."""

from typing import Any

import numpy as np

from bench import guard
from bench.harness import common
from bench.harness.measure import Book, Plan, aims
from bench.harness.models import Subject
from bench.harness.network_only import Bench
from jaxdave.demo_tasks import problem_sets

DTYPES = ("float32", "bfloat16")


def exactness(subject: Subject, plan: Plan, book: Book) -> None:
    """M1 of the trained model, guard calls counted. `bench.guard` decodes more."""
    loaded = common.load(subject.config.name)
    prompts = loaded.ids(problem_sets.load("words_test")[: plan.problems])
    for numerics in ("exact", "guarded"):
        for dtype in DTYPES:
            rows = guard.table(loaded, dtype, prompts, 0.0, numerics)
            total, same, calls, guards = (
                sum(row[name] for row in rows)
                for name in ("decodes", "identical", "calls", "guard calls")
            )
            what = f"{numerics}, {dtype}: identical of {total}"
            book.note("M1", subject.label, what, same, f"{total}", same == total)
            if numerics == "guarded":
                what = f"{numerics}, {dtype}: guard calls among all"
                share = guards / calls
                book.at_most("M1", subject.label, what, share, guard.MOST_GUARDS)


def regret(subject: Subject, plan: Plan, book: Book) -> None:
    """M14: choosing the draft length against the best fixed one, and against static."""
    names: list[Any] = ["auto", "static", *aims().fixed]
    benches = [_bench(subject, name) for name in names]
    texts = {bench.result().completions[0].token_ids for bench in benches}
    book.note("M14", subject.label, "texts, chosen or fixed", len(texts), "1")
    found = common.alternate([bench.generate for bench in benches], 2 * plan.rounds)
    taken = dict(zip(names, found.T, strict=True))
    fixed = [name for name in names if name != "auto"]
    best = min(fixed, key=lambda name: float(np.median(taken[name])))
    against = lambda name: common.spread(taken["auto"] / taken[name])  # noqa: E731
    what = f"auto / best fixed ({best})"
    book.at_most("M14", subject.label, what, against(best), aims().regret)
    book.at_most("M14", subject.label, "auto / static", against("static"), 1.03)
    quick = common.spread(taken["static"] / taken["auto"])
    if subject.acceptance is None:
        book.at_least("M14", subject.label, "static / auto", quick, 1.5)


def _bench(subject: Subject, name: Any) -> Bench:
    return subject.bench(1 if name == "static" else name, numerics="guarded")
