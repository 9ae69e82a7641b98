"""M3, M4, M5, M6, M11: decodes and bare calls of every draft length, in turn."""

from typing import NamedTuple

import numpy as np

from bench.harness import common, machine
from bench.harness.measure import Book, Plan, aims
from bench.harness.models import Subject
from bench.harness.network_only import Bench
from bench.harness.scripted_drafts import fewest_calls
from jaxdave.engine.results import Completion
from jaxdave.runtime.platform import on_cpu

_SMALL = 4_000_000
"""Weights below which a call is short, and is repeated."""
_WHOLE = (1, 8)
"""Draft lengths whose loop efficiency is measured."""


class Timed(NamedTuple):
    """One draft length: its decode, and seconds of every round.

    prefill: None where it was not timed.
    """

    d: int
    bench: Bench
    row: Completion
    wall: np.ndarray
    call: np.ndarray
    prefill: np.ndarray | None


def measure(subject: Subject, plan: Plan, book: Book) -> None:
    """All measures of this module on one model."""
    timed, rates = _timed(subject, plan)
    _points(subject, timed, rates, book)
    _calls(subject, timed, book)
    _efficiency(subject, timed, book)
    _conversion(subject, timed, rates, book)
    _roofline(subject, timed, rates, book)
    _slope(subject, timed, rates, book)


def _timed(subject: Subject, plan: Plan) -> tuple[list[Timed], machine.Rates]:
    small = sum(machine.matrices(subject.config)) < _SMALL
    again = 5 if small else 1
    names, timers, decodes = [], [], []
    for d in plan.drafts if small else plan.large:
        bench = subject.bench(d, numerics=plan.numerics)
        decodes.append((d, bench, bench.result().completions[0]))
        wanted = ("call", "prefill") if d in _WHOLE else ("call",)
        parts = bench.parts(*wanted, at=bench.begun())
        names += [(d, "wall"), *((d, name) for name in parts)]
        timers.append(bench.generate)
        timers += [lambda f=f: common.seconds(f, again) for f in parts.values()]
    probes = machine.probes(subject.params["norm"]["scale"].dtype)
    found = common.alternate([*timers, *probes], plan.rounds)
    taken = dict(zip(names, found.T, strict=False))
    timed = [
        Timed(
            d, bench, row, taken[d, "wall"], taken[d, "call"], taken.get((d, "prefill"))
        )
        for d, bench, row in decodes
    ]
    return timed, machine.rates(found[:, len(timers) :], subject.weight)


def _points(subject: Subject, timed: list[Timed], rates, book: Book) -> None:
    for one in timed:
        spec = one.bench.decoder.spec
        book.add(
            "drafts",
            model=subject.name,
            acceptance=subject.acceptance,
            d=one.d,
            same_text=one.row.token_ids == timed[0].row.token_ids,
            calls=one.row.nfe.total,
            tokens=one.row.valid_tokens,
            wall_s=_median(one.wall),
            call_s=_median(one.call),
            query_tokens=machine.query_tokens(spec),
            floor_s=_median(_floor(subject, one, rates)),
            gflops=_median(rates.flops) / 1e9,
            gbytes=_median(rates.bytes) / 1e9,
        )


def _calls(subject: Subject, timed: list[Timed], book: Book) -> None:
    plain = timed[0].row
    same = all(one.row.token_ids == plain.token_ids for one in timed)
    book.note("M1", subject.label, "same text at every d timed", same, "True", same)
    book.note(
        "M3", subject.label, "static: policy steps a call",
        plain.steps / plain.nfe.total, "1", plain.steps == plain.nfe.total,
    )  # fmt: skip
    for one in timed[1:]:
        calls = one.row.nfe.total
        if subject.acceptance is None:
            found = plain.nfe.total / calls
            book.note("M3", subject.label, f"d={one.d}: times fewer calls", found, "-")
            continue
        begin, room = len(one.bench.prompts[0]), subject.room
        least = fewest_calls(begin, room, one.d, subject.acceptance)
        what = f"d={one.d}: calls over rounds of the script"
        book.at_most("M3", subject.label, what, calls / least, 1.02)


def _efficiency(subject: Subject, timed: list[Timed], book: Book) -> None:
    small = sum(machine.matrices(subject.config)) < _SMALL
    aim = aims().small if small else aims().large
    for one in timed:
        if one.prefill is None:
            continue
        share = (one.row.nfe.verify * one.call + one.prefill) / one.wall
        what = f"d={one.d}: bare calls over wall"
        book.at_least("M4", subject.label, what, common.spread(share), aim)


def _conversion(subject: Subject, timed: list[Timed], rates, book: Book) -> None:
    """Gain in seconds over gain in calls, and over what the floors of calls promise."""
    plain = timed[0]
    for one in timed[1:]:
        gain = plain.wall / one.wall
        fewer = plain.row.nfe.total / one.row.nfe.total
        what = f"d={one.d}: static's wall over FreeDave's"
        book.note("M5", subject.label, what, common.spread(gain), "-")
        promised = fewer * _floor(subject, plain, rates) / _floor(subject, one, rates)
        what = f"d={one.d}: wall gain over the roofline's (calls: {fewer:.2f}x)"
        book.at_least("M5", subject.label, what, common.spread(gain / promised), 0.9)


def _roofline(subject: Subject, timed: list[Timed], rates, book: Book) -> None:
    for one in timed:
        share = _floor(subject, one, rates) / one.call
        tokens = machine.query_tokens(one.bench.decoder.spec)
        what = f"d={one.d}, {tokens} tokens: floor over bare call"
        book.at_least("M6", subject.label, what, common.spread(share), aims().roofline)


def _slope(subject: Subject, timed: list[Timed], rates, book: Book) -> None:
    """What more drafts add to a call: on a CPU over what their operations take."""
    plain = timed[0]
    first = _work(subject, plain).flops
    for one in timed[1:]:
        grown = one.call / plain.call
        what = f"d={one.d}: a bare call over that of d=1"
        if on_cpu():
            more = _work(subject, one).flops - first
            grown = (one.call - plain.call) / (more / rates.flops)
            what = f"d={one.d}: seconds added over those of a plain product"
        book.at_most("M11", subject.label, what, common.spread(grown), 1.1)


def _floor(subject: Subject, one: Timed, rates: machine.Rates) -> np.ndarray:
    return rates.floor(_work(subject, one))


def _work(subject: Subject, one: Timed) -> machine.Work:
    spec = one.bench.decoder.spec
    return machine.call_work(subject.config, spec, subject.weight)


def _median(values: np.ndarray) -> float:
    return float(np.median(values))
