"""How the demo times its two decodes."""

from types import SimpleNamespace
from typing import Any

import pytest

from jaxdave.cli import demo_measure


class Fake:
    """A sampler whose answers take the given seconds, in turn."""

    def __init__(self, name: str, seconds: list[float], log: list[str]) -> None:
        self.name, self.seconds, self.log = name, iter(seconds), log

    def __call__(self, prompt: str) -> Any:
        self.log.append(self.name)
        return SimpleNamespace(seconds=next(self.seconds))


def test_the_median_of_warm_decodes_in_turn(monkeypatch):
    log = []
    # The first one is cold; of the others the third is in the middle.
    static = Fake("static", [9.0, 0.5, 0.1, 0.3, 0.2, 0.4], log)
    freedave = Fake("freedave", [9.0, 0.1, 0.1, 0.1, 0.2, 0.2], log)
    found = demo_measure._decode(static, freedave, "x")  # pyright: ignore
    assert (found.static.seconds, found.freedave.seconds) == (0.3, 0.1)
    assert found.repeats == 5 and log == ["static", "freedave"] * 6


def test_a_slow_model_is_timed_once(monkeypatch):
    clock = iter([0.0, 8.0])
    monkeypatch.setattr(demo_measure.time, "perf_counter", lambda: next(clock))
    slow = [Fake(name, [4.0] * 2, []) for name in ("static", "freedave")]
    found = demo_measure._decode(*slow, "x")  # pyright: ignore
    assert found.repeats == 1 and found.static.seconds == 4.0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_problems_are_of_both_kinds(count):
    families = [problem.family for problem in demo_measure.select_problems(count)]
    assert families.count("words") - families.count("lists") in (0, 1)
    assert families[0] == "words" and len(families) == count
