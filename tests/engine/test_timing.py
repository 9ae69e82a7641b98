"""Measured call times: noise shows, is doubted, and decoding corrects it."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.core.state import default_runtime_params
from jaxdave.drafting.draft_length import choose_num_drafts
from jaxdave.engine import autotune, measurements, timing
from jaxdave.engine.measurements import Measurements
from jaxdave.engine.timing import SeenDecode, Timing
from jaxdave.models.router import route

QUIET = Measurements((0.010, 0.012), (0.0,) * 6, prefill=0.02, spread=0.02)


class Clock:
    """A machine on which work takes what it is told, in place of `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Spec:
    """What timing needs of a spec."""

    draft_steps = (1, 4)
    numerics = None

    def runtime(self, drafts: int, calls: int = 0):
        return default_runtime_params(drafts, calls, 2)


class Machine:
    """Draft lengths with their true seconds of a round, and what disturbs them."""

    def __init__(self, monkeypatch, seconds, noise=lambda count: 1.0):
        self.clock, self.seconds, self.noise = Clock(), seconds, noise
        self.runs: list[int] = []
        monkeypatch.setattr(timing, "time", self.clock)
        self.spec: Any = Spec()
        self.new_state: Any = lambda _: 0
        self.params = {"w": jnp.ones(1)}

    def run(self, params, runtime, state):
        index = int(runtime.forced_index)
        factor = self.noise(len(self.runs))
        self.clock.now += int(runtime.max_calls) * self.seconds[index] * factor
        self.runs.append(index)
        return state

    def time(self) -> Timing:
        return timing.time_lengths(self.spec, self.run, self.params, self.new_state)

    def tune(self) -> tuple[float, ...]:
        runtime, _ = autotune.tuned_params(
            self.spec,
            self.spec.runtime(4),
            self.run,
            self.params,
            self.new_state,
            "shapes",
        )
        return tuple(float(value) for value in runtime.seconds_Z)


@pytest.fixture(autouse=True)
def no_memory(monkeypatch):
    """Nothing of other tests is known, and what is kept is in `stored`."""
    stored = {}
    monkeypatch.setattr(autotune, "MEASUREMENTS", {})
    monkeypatch.setattr(autotune, "_CHECKS", {})
    monkeypatch.setattr(autotune, "_measurement_key", lambda *_: "name")
    monkeypatch.setattr(measurements, "read", lambda name, _: stored.get(name))
    monkeypatch.setattr(measurements, "write", stored.__setitem__)
    return stored


def test_a_quiet_machine_is_timed_three_times(monkeypatch):
    machine = Machine(monkeypatch, (0.01, 0.02))
    found = machine.time()
    assert found.seconds == pytest.approx((0.01, 0.02)) and found.spread < 1e-6
    # In turn, so that a busy spell meets all lengths.
    assert machine.runs == [0, 1] * 3


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_a_busy_spell_is_outlasted(monkeypatch, first):
    """Three of the first runs take three times as long, of whatever length."""
    spell = range(first, first + 3)
    machine = Machine(monkeypatch, (0.01, 0.012), lambda n: 3.0 if n in spell else 1.0)
    found = machine.time()
    assert found.seconds == pytest.approx((0.01, 0.012))
    assert len(machine.runs) <= 2 * timing.MAX_REPEATS


def test_noise_shows_and_is_doubted(monkeypatch):
    factors = [3, 1.2, 2.5, 1.9, 1.3, 3.5, 2.8, 1.7, 2.1]
    machine = Machine(monkeypatch, (0.01, 0.012), lambda n: factors[n % 9])
    found = machine.time()
    assert found.spread > timing.QUIET_SPREAD
    assert len(machine.runs) == 2 * timing.MAX_REPEATS
    doubted = QUIET._replace(spread=found.spread)
    assert timing.is_doubted(doubted) and not timing.is_doubted(QUIET)
    assert not timing.is_doubted(doubted._replace(tries=timing.MAX_TRIES))


def test_the_next_process_measures_again_what_was_noisy(monkeypatch, no_memory):
    """Noise that hits one length alone would decide for ever which one is used."""
    noisy = lambda n: (1, 8, 1, 5, 1, 9)[n % 6]  # noqa: E731
    machine = Machine(monkeypatch, (0.01, 0.012), noisy)
    assert machine.tune()[1] > 0.05
    assert no_memory["name"].spread > timing.QUIET_SPREAD
    # Another process, on a machine that is quiet by now.
    autotune.MEASUREMENTS.clear()
    machine.noise, machine.runs = lambda n: 1.0, []
    assert machine.tune() == pytest.approx((0.01, 0.012))
    assert machine.runs == [0, 1] * 3
    assert no_memory["name"].tries == 2
    # And what is quiet is believed.
    autotune.MEASUREMENTS.clear()
    machine.runs = []
    assert machine.tune() == pytest.approx((0.01, 0.012)) and machine.runs == []


def test_timings_are_merged_by_what_noise_can_do():
    noisy = QUIET._replace(seconds=(0.02, 0.03), spread=0.5)
    quiet = Timing((0.01, 0.011), 0.01, 0.01)
    assert timing.merged(noisy, quiet).seconds == quiet.seconds
    other = Timing((0.03, 0.02), 0.01, 0.4)
    merged = timing.merged(noisy, other)
    assert (merged.seconds, merged.spread) == ((0.02, 0.02), 0.4)
    assert merged.error == noisy.error and merged.tries == 2
    # Decoding says that calls take longer: a busy machine is no proof of that.
    assert timing.merged(QUIET, other, is_too_fast=True).seconds == QUIET.seconds
    assert timing.merged(QUIET, quiet, is_too_fast=True).seconds == quiet.seconds


@pytest.mark.parametrize(
    ("seconds", "direction"),
    [(0.05, -1), (0.075, 0), (0.12, 0), (0.25, 0), (0.26, 0), (0.5, 1)],
)
def test_what_a_decode_may_take(seconds, direction):
    """4 calls of 1 draft, 5 of 4 and 1 recheck: 0.10 s, 0.112 and 0.132 with all."""
    seen = SeenDecode(seconds, (4, 5), other_calls=1)
    assert timing.contradiction(QUIET, seen) == direction


def test_what_decoding_contradicts_is_measured_again(monkeypatch, no_memory):
    slow = QUIET._replace(seconds=(0.01, 0.08))
    no_memory["name"] = slow
    machine = Machine(monkeypatch, (0.01, 0.012))
    see = lambda seconds: autotune.observe(  # noqa: E731
        machine.spec, machine.params, "shapes", SeenDecode(seconds, (2, 10), 0)
    )
    assert machine.tune() == pytest.approx(slow.seconds) and machine.runs == []
    see(0.8)  # as measured
    assert machine.tune() == pytest.approx(slow.seconds) and machine.runs == []
    see(0.15)  # much less: the measurement was made on a busy machine
    assert machine.tune() == pytest.approx((0.01, 0.012))
    assert no_memory["name"].seconds == pytest.approx((0.01, 0.012))
    # Much more: once or twice may be a busy spell.
    machine.seconds, machine.runs = (0.05, 0.06), []
    for _ in range(autotune.CONTRADICTIONS):
        assert machine.runs == []
        see(0.8)
        machine.tune()
    assert machine.tune() == pytest.approx((0.05, 0.06))
    # A machine that is never quiet is not measured for ever.
    machine.runs = []
    for _ in range(50):
        see(0.001)
        machine.tune()
    assert len(machine.runs) == 2 * timing.REPEATS * (autotune.MAX_CHECKS - 2)


class ManyLengths(Spec):
    """A spec of four draft lengths."""

    draft_steps = (1, 2, 4, 8)

    def runtime(self, drafts: int, calls: int = 0):
        return default_runtime_params(drafts, calls, 4)


def chosen_drafts(monkeypatch, bytes_of_calls) -> int:
    """The draft length that "auto" takes on a machine bound by memory."""
    machine = Machine(monkeypatch, [size / 4e12 for size in bytes_of_calls])
    machine.spec = ManyLengths()
    runtime, _ = autotune.tuned_params(
        machine.spec, machine.spec.runtime(8), machine.run, machine.params,
        machine.new_state, "shapes",
    )  # fmt: skip
    # A row of whose drafts two of three were accepted.
    rows: Any = SimpleNamespace(
        acceptance_counts=jnp.array([20.0, 10.0]), done=jnp.array(False)
    )
    index = choose_num_drafts(machine.spec.draft_steps, runtime, rows)
    return machine.spec.draft_steps[int(index)]


def test_auto_takes_fewer_drafts_for_a_mixture(monkeypatch, no_memory):
    """SDAR-30B-A3B's layers beside a dense model of as many active weights.

    What a call costs is measured, so that it includes the experts which its tokens
    touch: those of 4 tokens without drafts, of about 48 with 8.
    """
    config = ExpertsConfig(count=128, per_token=8, inter=768, renormalize=True)
    matrix, others = 3 * 2048 * 768 * 2, 18.9e6 * 2
    tokens = {1: 4, 2: 8, 4: 20, 8: 48}
    draws = np.random.default_rng(0)

    def touched(count: int) -> int:
        logits = draws.normal(size=(count, config.count)).astype(np.float32)
        return len(np.unique(route(jnp.asarray(logits), None, config).expert_SC))

    mixture = [48 * (others + matrix * touched(count)) for count in tokens.values()]
    assert 3 < mixture[-1] / mixture[0] < 5
    dense = [48 * (others + matrix * config.per_token)] * len(tokens)
    assert chosen_drafts(monkeypatch, dense) == 8
    # Nothing is remembered of the other model.
    autotune.MEASUREMENTS.clear()
    no_memory.clear()
    assert chosen_drafts(monkeypatch, mixture) == 1
