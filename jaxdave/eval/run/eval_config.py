"""What a command line wants evaluated, checked as far as it goes without a model."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdave.engine import decode_config
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.eval.benchmarks import demo
from jaxdave.eval.benchmarks import registry as benchmark_registry
from jaxdave.eval.protocols import registry as protocol_registry
from jaxdave.eval.run.methods import METHODS, Method
from jaxdave.eval.types import Preset, Task

SWEEP = (1, 2, 4, 8, 16, 32)
"""Draft lengths of the paper's Figure 3."""
SWEEPS = ("draft_steps",)
USUAL_PRESET = "paper-2025"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The options of `jaxdave eval`; None: the preset's or the model's own."""

    model: str | None = None
    tasks: tuple[str, ...] = ("demo-math", "demo-code")
    methods: tuple[str, ...] = ("static", "threshold", "freedave")
    preset: str | None = None
    as_published: bool = False
    data_dir: Path | None = None
    limit: int | None = None
    out: Path | None = None
    allow_code_execution: bool = False
    threshold: float | None = None
    draft_steps: str | None = None
    draft: str = "tree"
    policy: str | None = None
    sweep: str | None = None
    trajectory: str | None = None
    block_length: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 1
    seed: int = 0
    dtype: str = "float32"
    quantize: str | None = None
    numerics: str = "guarded"

    @property
    def draws(self) -> bool:
        """Whether there will be figures."""
        return self.sweep is not None or self.trajectory is not None


def check(wanted: Wanted) -> None:
    """Raise ValueError for what is wrong whatever the model is."""
    w = wanted
    methods_of(w)
    _check_tasks(w)
    preset_of(w)
    if w.limit is not None and w.limit < 1:
        raise ValueError(f"limit={w.limit} must be at least 1; leave it out for all")
    if w.out is not None and w.out.exists() and not w.out.is_dir():
        raise ValueError(f"out={w.out} is a file and must be a folder; choose another")
    if w.data_dir is not None and not w.data_dir.is_dir():
        raise ValueError(
            f"data_dir={w.data_dir} is no folder; give the one with the benchmark files"
        )
    if w.sweep is not None and w.sweep not in SWEEPS:
        raise ValueError(f"sweep={w.sweep!r} is unknown; use {', '.join(SWEEPS)}")
    if w.draws and w.out is None:
        raise ValueError("figures are files, so say where with --out FOLDER")
    if w.draws and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib; pip install 'jaxdave[eval]'")
    for method in methods_of(w):
        decode_config.check_config(method.choose(settings(w, {}), 0.9))
    _check_drawn(w)


def _check_tasks(w: Wanted) -> None:
    for task in tasks_of(w):
        if task.runs_code and not w.allow_code_execution:
            raise ValueError(
                f"task {task.name} runs code that the model writes; say "
                "--allow-code-execution, best inside a container"
            )


def _check_drawn(w: Wanted) -> None:
    if w.sweep is not None and not any(m.drafted for m in methods_of(w)):
        raise ValueError(
            f"sweep={w.sweep!r} is over drafts, and methods={','.join(w.methods)} "
            "have none; add freedave"
        )
    if w.trajectory is not None and not {"static", "freedave"} <= {*w.methods}:
        raise ValueError(
            "a trajectory shows static and freedave side by side; add both to --methods"
        )


def methods_of(wanted: Wanted) -> tuple[Method, ...]:
    """The methods by name. Raises ValueError for one that does not exist."""
    odd = [name for name in wanted.methods if name not in METHODS]
    if odd:
        raise ValueError(f"method {odd[0]!r} is unknown; use {', '.join(METHODS)}")
    return tuple(METHODS[name] for name in wanted.methods)


def tasks_of(wanted: Wanted) -> tuple[Task, ...]:
    """The tasks by name. Raises ValueError for one that does not exist."""
    given = {
        "preset": _preset_name(wanted),
        "as_published": wanted.as_published,
        "allow_code_execution": wanted.allow_code_execution,
    }
    return tuple(benchmark_registry.open_task(name, **given) for name in wanted.tasks)


def preset_of(wanted: Wanted) -> Preset:
    """The preset by name. Raises ValueError for one that does not exist."""
    return protocol_registry.open_preset(
        _preset_name(wanted), folder=wanted.data_dir, as_published=wanted.as_published
    )


def _preset_name(wanted: Wanted) -> str:
    usual = "demo" if {*wanted.tasks} <= {*demo.TASKS} else USUAL_PRESET
    return usual if wanted.preset is None else wanted.preset


def settings(wanted: Wanted, given: Mapping[str, Any]) -> DecodeConfig:
    """The decoders' settings: the command line's before those that a preset gives.

    Raises ValueError for a setting that no decoder has.
    """
    w, fields = wanted, {field.name for field in dataclasses.fields(DecodeConfig)}
    odd = sorted({*given} - fields)
    if odd:
        raise ValueError(f"a preset asks for {odd[0]!r}, which no decoder has")
    asked = {
        "draft_steps": w.draft_steps and decode_config.parse_draft_steps(w.draft_steps),
        "block_length": w.block_length,
        "max_new_tokens": w.max_new_tokens,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    own = {
        name: getattr(w, name)
        for name in "model draft policy batch_size seed dtype quantize numerics".split()
    }
    # A policy says itself how many tokens a step commits.
    own |= {} if w.policy is None else {"tokens_per_step": None}
    return DecodeConfig(**{**given, **asked, **own})
