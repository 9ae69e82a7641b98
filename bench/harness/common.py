"""What every benchmark shares: its header, paired timing, tables, models, claims."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.problem import Problem
from jaxdave.io import checkpoint, hub
from jaxdave.io.tokenizer import Codec, load_codec
from jaxdave.models import transformer
from jaxdave.numerics.weight_layout import to_device_layout
from jaxdave.runtime.files import replace_file
from jaxdave.training.recipes import SDAR_1M

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
RESAMPLES = 2000


class Claim(NamedTuple):
    """A sentence that must be true, and whether it is."""

    sentence: str
    holds: bool


class Spread(NamedTuple):
    """A median of paired ratios and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class Report:
    """What a script found, as it goes to `--out`."""

    machine: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    claims: list[Claim] = dataclasses.field(default_factory=list)

    def table(self, title: str, rows: Sequence[dict[str, Any]]) -> None:
        """Keep a table and print it as Markdown."""
        self.tables[title] = list(rows)
        print(f"\n{title}\n")
        if rows:
            heads = list(rows[0])
            lines = [
                heads,
                ["---"] * len(heads),
                *([r[h] for h in heads] for r in rows),
            ]
            for line in lines:
                print("| " + " | ".join(_shown(cell) for cell in line) + " |")

    def finish(self, out: Path | None) -> None:
        """Write the report, print what holds, exit 1 if a claim does not."""
        self.machine["load_at_end"] = load_now()
        if out is not None:
            text = json.dumps(dataclasses.asdict(self), indent=1, default=str)
            replace_file(out, (text + "\n").encode())
        print(f"\nload at end: {self.machine['load_at_end']}")
        for claim in self.claims:
            print(f"{'holds' if claim.holds else 'FAILS'}: {claim.sentence}")
        if not all(claim.holds for claim in self.claims):
            sys.exit(1)


def parser(about: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every script has."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, help="write the figures as JSON")
    made.add_argument(
        "--weights",
        default=hub.DEFAULT_MODEL,
        help="the demo, a checkpoint folder, or `random` for untrained demo weights",
    )
    return made


def begin(weights: str) -> Report:
    """Print and keep: command, device, versions, load."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = {
        "command": f"python -m {_module()} {shlex.join(sys.argv[1:])}".strip(),
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores, "
        + (platform.processor() or platform.machine()),
        "versions": {"python": platform.python_version(), **versions},
        "weights": weights,
        "load": load_now(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    for name, value in machine.items():
        print(f"{name}: {value}")
    sys.stdout.flush()
    return Report(machine)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model to measure."""

    config: Any
    params: Any
    codec: Codec
    tables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def ids(self, problems: Sequence[Problem]) -> list[list[int]]:
        """The prompts of some problems."""
        return [self.codec.encode_prompt(p.prompt) for p in problems]


def load(weights: str) -> Loaded:
    """The model named on the command line; exits 2 with a sentence if there is none."""
    if weights == "random":
        folder = checkpoint.find_model(hub.DEFAULT_MODEL)[1]
        params = to_device_layout(transformer.init(SDAR_1M, 0), SDAR_1M)
        return Loaded(SDAR_1M, params, load_codec(folder, None))
    try:
        model = checkpoint.load(weights)
    except (ValueError, OSError) as error:
        print(f"cannot load {weights!r}: {error}", file=sys.stderr)
        sys.exit(2)
    return Loaded(model.config, model.params, model.codec, model.tables)


def problems(limit: int | None = None) -> dict[str, list[Problem]]:
    """The frozen test sets, each cut to `limit` problems."""
    return {name: problem_sets.load(name)[:limit] for name in problem_sets.SETS}


def seconds(function: Callable[[], Any], repeats: int = 1) -> float:
    """The median time of a call, its arrays included."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def alternate(timers: Sequence[Callable[[], float]], rounds: int) -> np.ndarray:
    """Seconds [rounds, timers]: every timer once a round, in turning order.

    A timer runs something and returns what it took. The first round is a warm-up and
    is thrown away.
    """
    found = np.zeros((rounds + 1, len(timers)))
    for turn in range(rounds + 1):
        order = range(len(timers)) if turn % 2 else reversed(range(len(timers)))
        for index in order:
            found[turn, index] = timers[index]()
    return found[1:]


def spread(ratios: np.ndarray) -> Spread:
    """The median of paired ratios with a bootstrap interval, the same each time."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return Spread(float(np.median(ratios)), float(low), float(high))


def _shown(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:.0f}"


def load_now() -> str:
    """The load averages of this machine."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]
