"""What a measure is: findings for the one table, and points for figures and JSON."""

import dataclasses
from typing import Any, NamedTuple

from bench.harness import common
from jaxdave.runtime.platform import on_cpu


class Finding(NamedTuple):
    """A line of the table. verdict: "met", "missed", or "-" where there is no aim."""

    measure: str
    model: str
    what: str
    found: str
    aim: str
    verdict: str


class Aims(NamedTuple):
    """What is aimed at, where it depends on the machine (performance.md section 6).

    small, large: loop efficiency (M4); roofline: M6; regret: of choosing the draft
    length (M14); fixed: draft lengths that it is held against.
    """

    small: float
    large: float
    roofline: float
    regret: float
    fixed: tuple[int, ...]


def aims() -> Aims:
    """The aims on this machine."""
    if on_cpu():
        return Aims(0.80, 0.98, 0.7, 1.05, (2, 4, 8))
    return Aims(0.80, 0.97, 0.8, 1.03, (4, 8, 16))


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is run.

    rounds: alternating pairs; drafts, large: draft lengths of small and of large
    models; numerics: of every decode that does not say otherwise; problems: for M1.
    """

    rounds: int = 7
    drafts: tuple[int, ...] = (1, 2, 4, 8, 16)
    large: tuple[int, ...] = (1, 4, 8)
    numerics: str = "guarded"
    problems: int = 24


QUICK = Plan(rounds=2, drafts=(1, 8), large=(1, 8), problems=4)


@dataclasses.dataclass
class Book:
    """What has been found so far; measures add to it."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    points: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def note(
        self, measure: str, model: str, what: str, found: Any, aim: str, holds=None
    ) -> None:
        """One finding; holds: whether it is what was aimed at."""
        shown = f"{found:.3g}" if isinstance(found, float) else str(found)
        verdict = "-" if holds is None else "met" if holds else "missed"
        self.findings.append(Finding(measure, model, what, shown, aim, verdict))

    def at_least(self, measure: str, model: str, what: str, found, aim: float) -> None:
        """A finding (a number or a `Spread`) that should not be below the aim."""
        value = found.median if isinstance(found, common.Spread) else found
        self.note(measure, model, what, found, f">= {aim:g}", value >= aim)

    def at_most(self, measure: str, model: str, what: str, found, aim: float) -> None:
        """A finding that should not be above the aim."""
        value = found.median if isinstance(found, common.Spread) else found
        self.note(measure, model, what, found, f"<= {aim:g}", value <= aim)

    def add(self, name: str, **point: Any) -> None:
        """One point of a figure, or a row of raw figures."""
        self.points.setdefault(name, []).append(point)
