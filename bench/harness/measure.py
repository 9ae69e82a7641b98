"""The measures of `python -m bench`: their names, their targets, and the results book.

A measure is a quantity that the project has a target for. Its name is its key in the
code, in the results and on the command line (`--only loop-efficiency`); the table in
docs/results.md explains each.
"""

import dataclasses
from typing import Any, NamedTuple

from bench.harness.timing import MedianInterval
from jaxdave.runtime.machine import this_machine

IDENTICAL_TEXT = "identical-text"
NETWORK_CALLS = "network-calls"
LOOP_EFFICIENCY = "loop-efficiency"
WALL_CLOCK_SPEEDUP = "wall-clock-speedup"
ROOFLINE = "roofline"
DRAFT_COST = "draft-cost"
AUTO_DRAFT_LENGTH = "auto-draft-length"
DECODE_MEMORY = "decode-memory"
COMPILE_TIME = "compile-time"
WARM_START = "warm-start"
SEQUENCE_SCALING = "sequence-scaling"
BATCH_SCALING = "batch-scaling"
ENDED_ROWS = "ended-rows"

MEASURE_NAMES = {
    IDENTICAL_TEXT: "one text for every draft length, batch size and dtype",
    NETWORK_CALLS: "network calls of a decode",
    LOOP_EFFICIENCY: "share of a decode's time that is the network alone",
    WALL_CLOCK_SPEEDUP: "speedup in seconds over the speedup that the roofline allows",
    ROOFLINE: "least possible time of a call over its measured time",
    DRAFT_COST: "time that more drafts add to a call",
    AUTO_DRAFT_LENGTH: "draft_steps='auto' against the best fixed draft length",
    DECODE_MEMORY: "temporaries and fresh outputs of the compiled decode loop",
    COMPILE_TIME: "compilations, and compile time against the number of layers",
    WARM_START: "seconds of `jaxdave generate` with a warm cache beyond importing jax",
    SEQUENCE_SCALING: "time of a call at a long sequence over that at a short one",
    BATCH_SCALING: "tokens a second of a batch of eight over those of a batch of one",
    ENDED_ROWS: "cost of a step in which all rows of a batch but one have ended",
}
"""Every measure, and in a few words what it is."""


class Finding(NamedTuple):
    """One line of the results table; its fields are keys of the stored JSON.

    Attributes:
        measure: a key of `MEASURE_NAMES`; several, separated by "/", where measures
            that are taken together could not be taken.
        model: the model's label.
        what: the quantity, in words.
        found: its value.
        aim: the target, or "-" without one.
        verdict: "met", "missed", or "-" without a target.
    """

    measure: str
    model: str
    what: str
    found: str
    aim: str
    verdict: str


class Targets(NamedTuple):
    """Targets that depend on the kind of machine.

    Attributes:
        loop_efficiency_small: loop efficiency of models below 4 million weights, whose
            calls are so short that the loop around them shows.
        loop_efficiency: loop efficiency of all others.
        roofline: least possible time of a bare call over its measured time.
        auto_over_best: time with `draft_steps="auto"` over that of the best fixed
            draft length.
        fixed_draft_lengths: draft lengths that "auto" is compared with.
    """

    loop_efficiency_small: float
    loop_efficiency: float
    roofline: float
    auto_over_best: float
    fixed_draft_lengths: tuple[int, ...]


def machine_targets() -> Targets:
    """Look up the targets of this machine.

    Returns:
        Those of a CPU where JAX computes on one, else those of an accelerator.
    """
    if this_machine().is_cpu:
        return Targets(0.80, 0.98, 0.7, 1.05, (2, 4, 8))
    return Targets(0.80, 0.97, 0.8, 1.03, (4, 8, 16))


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much a run of `python -m bench` measures.

    Attributes:
        rounds: alternating rounds of every timing.
        draft_lengths: draft lengths timed on models below 4 million weights.
        large_draft_lengths: draft lengths timed on larger ones.
        numerics: numerics of every decode that does not say otherwise.
        num_problems: problems whose texts are compared.
    """

    rounds: int = 7
    draft_lengths: tuple[int, ...] = (1, 2, 4, 8, 16)
    large_draft_lengths: tuple[int, ...] = (1, 4, 8)
    numerics: str = "guarded"
    num_problems: int = 24


QUICK_PLAN = Plan(
    rounds=2, draft_lengths=(1, 8), large_draft_lengths=(1, 8), num_problems=4
)
"""The plan of `--quick`."""


@dataclasses.dataclass
class ResultsBook:
    """The findings of a run so far; measures add to it.

    Attributes:
        findings: lines of the results table, in the order of their measurement.
        points: rows of raw figures, by the name of their series; the plots and the
            JSON file have them.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    points: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def add(
        self,
        measure: str,
        model: str,
        what: str,
        value: Any,
        target: str = "-",
        is_met: bool | None = None,
    ) -> None:
        """Add a finding.

        Args:
            measure: name of the measure.
            model: label of the model.
            what: the quantity, in words.
            value: its value; floats are shown with three significant digits.
            target: the target, in words.
            is_met: True if the value meets it; None without a target.
        """
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        verdict = "-" if is_met is None else "met" if is_met else "missed"
        self.findings.append(Finding(measure, model, what, shown, target, verdict))

    def add_at_least(
        self,
        measure: str,
        model: str,
        what: str,
        value: float | MedianInterval,
        target: float,
    ) -> None:
        """Add a finding that should not be below its target.

        Args:
            measure: name of the measure.
            model: label of the model.
            what: the quantity, in words.
            value: a number, or a median with its interval: the median decides.
            target: the smallest value that meets it.
        """
        is_met = _point_estimate(value) >= target
        self.add(measure, model, what, value, f">= {target:g}", is_met)

    def add_at_most(
        self,
        measure: str,
        model: str,
        what: str,
        value: float | MedianInterval,
        target: float,
    ) -> None:
        """Add a finding that should not be above its target.

        Args:
            measure: name of the measure.
            model: label of the model.
            what: the quantity, in words.
            value: a number, or a median with its interval: the median decides.
            target: the largest value that meets it.
        """
        is_met = _point_estimate(value) <= target
        self.add(measure, model, what, value, f"<= {target:g}", is_met)

    def add_point(self, series: str, **point: Any) -> None:
        """Add a row of raw figures.

        Args:
            series: name of the series, e.g. "drafts".
            **point: the row.
        """
        self.points.setdefault(series, []).append(point)


def _point_estimate(value: float | MedianInterval) -> float:
    """The number that is compared with a target."""
    return value.median if isinstance(value, MedianInterval) else value
