"""Decodes and bare calls of every draft length, timed in the same rounds.

Takes identical-text, network-calls, loop-efficiency, wall-clock-speedup, roofline and
draft-cost: all are ratios of the same times.
"""

from typing import NamedTuple

import numpy as np

from bench.harness import machine, timing
from bench.harness.measure import (
    DRAFT_COST,
    IDENTICAL_TEXT,
    LOOP_EFFICIENCY,
    NETWORK_CALLS,
    ROOFLINE,
    WALL_CLOCK_SPEEDUP,
    Plan,
    ResultsBook,
    machine_targets,
)
from bench.harness.models import BenchModel
from bench.harness.network_only import DecodeBench
from bench.harness.scripted_drafts import scripted_calls
from jaxdave.engine.results import Completion
from jaxdave.runtime.machine import this_machine

_SMALL = 4_000_000
"""Weights below which a call is so short that it is repeated to be timed."""

_EFFICIENCY_DRAFT_LENGTHS = (1, 8)
"""Draft lengths whose loop efficiency is measured."""


class TimedDecode(NamedTuple):
    """The times of one draft length.

    Attributes:
        d: the draft length.
        bench: the decode.
        row: its result.
        wall: seconds of a whole decode, `[rounds]`.
        call: seconds of a bare call, `[rounds]`.
        prefill: seconds of a bare prefill, `[rounds]`; None where it was not timed.
    """

    d: int
    bench: DecodeBench
    row: Completion
    wall: np.ndarray
    call: np.ndarray
    prefill: np.ndarray | None


def measure_drafting(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take all measures of this module.

    Args:
        model: the model.
        plan: draft lengths, numerics and rounds.
        book: gets the findings and the points "drafts".
    """
    decodes, rates = _time_decodes(model, plan)
    _add_points(model, decodes, rates, book)
    _add_calls(model, decodes, book)
    _add_efficiency(model, decodes, book)
    _add_speedup(model, decodes, rates, book)
    _add_roofline(model, decodes, rates, book)
    _add_draft_cost(model, decodes, rates, book)


def _is_small(model: BenchModel) -> bool:
    return sum(machine.matrix_sizes(model.config)) < _SMALL


def _time_decodes(
    model: BenchModel, plan: Plan
) -> tuple[list[TimedDecode], machine.Rates]:
    """Time every draft length and the machine's rates in the same rounds."""
    is_small = _is_small(model)
    repeats = 5 if is_small else 1
    names, timers, decodes = [], [], []
    for d in plan.draft_lengths if is_small else plan.large_draft_lengths:
        bench = model.bench(d, numerics=plan.numerics)
        decodes.append((d, bench, bench.decode().completions[0]))
        part_names = (
            ("call", "prefill") if d in _EFFICIENCY_DRAFT_LENGTHS else ("call",)
        )
        parts = bench.compile_parts(*part_names, state=bench.prefill())
        names += [(d, "wall"), *((d, name) for name in parts)]
        timers.append(bench.time_decode)
        timers += [lambda f=f: timing.time_call(f, repeats) for f in parts.values()]
    rate_timers = machine.rate_timers(model.params["norm"]["scale"].dtype)
    seconds = timing.time_alternately([*timers, *rate_timers], plan.rounds)
    # The last three columns are the rates'; `names` covers those before them.
    by_name = dict(zip(names, seconds.T, strict=False))
    timed = [
        TimedDecode(
            d=d,
            bench=bench,
            row=row,
            wall=by_name[d, "wall"],
            call=by_name[d, "call"],
            prefill=by_name.get((d, "prefill")),
        )
        for d, bench, row in decodes
    ]
    rates = machine.rates_from_times(seconds[:, len(timers) :], model.itemsize)
    return timed, rates


def _add_points(
    model: BenchModel,
    decodes: list[TimedDecode],
    rates: machine.Rates,
    book: ResultsBook,
) -> None:
    for one in decodes:
        spec = one.bench.decoder.spec
        book.add_point(
            "drafts",
            model=model.name,
            acceptance=model.acceptance,
            d=one.d,
            same_text=one.row.token_ids == decodes[0].row.token_ids,
            calls=one.row.nfe.total,
            tokens=one.row.valid_tokens,
            wall_s=_median(one.wall),
            call_s=_median(one.call),
            query_tokens=machine.query_tokens(spec),
            floor_s=_median(_min_seconds(model, one, rates)),
            gflops=_median(rates.flops) / 1e9,
            gbytes=_median(rates.bytes) / 1e9,
        )


def _add_calls(
    model: BenchModel, decodes: list[TimedDecode], book: ResultsBook
) -> None:
    """identical-text and network-calls."""
    static = decodes[0].row
    is_same = all(one.row.token_ids == static.token_ids for one in decodes)
    what = "same text at every d timed"
    book.add(IDENTICAL_TEXT, model.label, what, is_same, "True", is_same)
    book.add(
        NETWORK_CALLS,
        model.label,
        "static: policy steps a call",
        static.steps / static.nfe.total,
        "1",
        static.steps == static.nfe.total,
    )
    for one in decodes[1:]:
        calls = one.row.nfe.total
        if model.acceptance is None:
            fewer = static.nfe.total / calls
            what = f"d={one.d}: times fewer calls"
            book.add(NETWORK_CALLS, model.label, what, fewer)
            continue
        expected = scripted_calls(
            prompt_length=len(one.bench.prompts[0]),
            max_new_tokens=model.max_new_tokens,
            block_length=one.bench.decoder.spec.layout.block_length,
            draft_steps=one.d,
            acceptance=model.acceptance,
        )
        what = f"d={one.d}: calls over rounds of the script"
        book.add_at_most(NETWORK_CALLS, model.label, what, calls / expected, 1.02)


def _add_efficiency(
    model: BenchModel, decodes: list[TimedDecode], book: ResultsBook
) -> None:
    targets = machine_targets()
    small = _is_small(model)
    target = targets.loop_efficiency_small if small else targets.loop_efficiency
    for one in decodes:
        if one.prefill is None:
            continue
        share = (one.row.nfe.verify * one.call + one.prefill) / one.wall
        what = f"d={one.d}: bare calls over wall"
        interval = timing.median_with_interval(share)
        book.add_at_least(LOOP_EFFICIENCY, model.label, what, interval, target)


def _add_speedup(
    model: BenchModel,
    decodes: list[TimedDecode],
    rates: machine.Rates,
    book: ResultsBook,
) -> None:
    """Speedup in seconds, over fewer calls times how much dearer each may be."""
    static = decodes[0]
    for one in decodes[1:]:
        speedup = static.wall / one.wall
        fewer = static.row.nfe.total / one.row.nfe.total
        what = f"d={one.d}: static's wall over FreeDave's"
        interval = timing.median_with_interval(speedup)
        book.add(WALL_CLOCK_SPEEDUP, model.label, what, interval)
        roofline_speedup = (
            fewer * _min_seconds(model, static, rates) / _min_seconds(model, one, rates)
        )
        what = f"d={one.d}: wall gain over the roofline's (calls: {fewer:.2f}x)"
        interval = timing.median_with_interval(speedup / roofline_speedup)
        book.add_at_least(WALL_CLOCK_SPEEDUP, model.label, what, interval, 0.9)


def _add_roofline(
    model: BenchModel,
    decodes: list[TimedDecode],
    rates: machine.Rates,
    book: ResultsBook,
) -> None:
    for one in decodes:
        share = _min_seconds(model, one, rates) / one.call
        tokens = machine.query_tokens(one.bench.decoder.spec)
        what = f"d={one.d}, {tokens} tokens: floor over bare call"
        interval = timing.median_with_interval(share)
        target = machine_targets().roofline
        book.add_at_least(ROOFLINE, model.label, what, interval, target)


def _add_draft_cost(
    model: BenchModel,
    decodes: list[TimedDecode],
    rates: machine.Rates,
    book: ResultsBook,
) -> None:
    """The time that more drafts add to a call.

    On an accelerator a call is bound by reading the weights, so more drafts should add
    nothing. A CPU is bound by operations: there the time is compared with what the
    additional ones take in a plain product.
    """
    static = decodes[0]
    static_flops = _work(model, static).flops
    for one in decodes[1:]:
        ratio = one.call / static.call
        what = f"d={one.d}: a bare call over that of d=1"
        if this_machine().is_cpu:
            more = _work(model, one).flops - static_flops
            ratio = (one.call - static.call) / (more / rates.flops)
            what = f"d={one.d}: seconds added over those of a plain product"
        interval = timing.median_with_interval(ratio)
        book.add_at_most(DRAFT_COST, model.label, what, interval, 1.1)


def _min_seconds(
    model: BenchModel, one: TimedDecode, rates: machine.Rates
) -> np.ndarray:
    return rates.min_seconds(_work(model, one))


def _work(model: BenchModel, one: TimedDecode) -> machine.Work:
    return machine.call_work(model.config, one.bench.decoder.spec, model.itemsize)


def _median(values: np.ndarray) -> float:
    return float(np.median(values))
