"""What an evaluation runs, checked as far as it can be without a model."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdave.engine.decode_config import (
    DEFAULT_THRESHOLD,
    DecodeConfig,
    LoadConfig,
    check_batch_size,
)
from jaxdave.eval.benchmarks import demo
from jaxdave.eval.benchmarks import registry as benchmark_registry
from jaxdave.eval.protocols import registry as protocol_registry
from jaxdave.eval.run.methods import METHODS, Method
from jaxdave.eval.types import Preset, Task

SWEEP = (1, 2, 4, 8, 16, 32)
"""Draft steps of the paper's Figure 3."""
SWEEPS = ("draft_steps",)
USUAL_PRESET = "paper-2025"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What `jaxdave eval` runs.

    Attributes:
        load: The model.
        overrides: Fields of `DecodeConfig` that go before those of the preset; a value
            of None leaves the preset's.
        tasks: Names of benchmarks.
        methods: Names of ways to decode, the rows of the tables.
        preset: The published protocol; None: the demo's for its own tasks, else the
            FreeDave paper's.
        as_published: With the defects of the published harness.
        data_dir: Folder of the benchmark files; None: from the Hub.
        limit: Only the first items of each benchmark; None: all.
        out: Folder for items, tables and figures; None: nothing is written.
        allow_code_execution: Code that the model writes may be run.
        sweep: "draft_steps" decodes with drafts at every length of `SWEEP`; or None.
        trajectory: Id of an item whose positions are drawn against calls; or None.
        batch_size: Prompts decoded together.
        rescore: Folder or file of an earlier run, whose samples are graded again
            instead of a decode; None: decode.
        asked_tasks: The tasks that samples may be of; None: any.
    """

    load: LoadConfig = LoadConfig()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ("demo-math", "demo-code")
    methods: tuple[str, ...] = ("static", "threshold", "freedave")
    preset: str | None = None
    as_published: bool = False
    data_dir: Path | None = None
    limit: int | None = None
    out: Path | None = None
    allow_code_execution: bool = False
    sweep: str | None = None
    trajectory: str | None = None
    batch_size: int = 1
    rescore: Path | None = None
    asked_tasks: tuple[str, ...] | None = None

    @property
    def has_figures(self) -> bool:
        """True if figures are drawn."""
        return self.sweep is not None or self.trajectory is not None


def check(config: EvalConfig) -> None:
    """Check what can be checked without the model.

    Args:
        config: What is to be run.

    Raises:
        ValueError: A name is unknown, a value is out of range, or two exclude each
            other.
    """
    if config.rescore is not None:
        return _check_rescore(config)
    methods = methods_of(config)
    _check_tasks(config)
    preset_of(config)
    _check_folders(config)
    check_figures(config)
    check_batch_size(config.batch_size)
    for method in methods:
        method.choose(decode_config(config, {}), DEFAULT_THRESHOLD)
    _check_trajectory(config)


def _check_rescore(config: EvalConfig) -> None:
    """Refuse options of a decode, which a run that decodes nothing would ignore."""
    usual = EvalConfig()
    names = ("methods", "preset", "as_published", "limit", "sweep", "batch_size")
    given = [name for name in names if getattr(config, name) != getattr(usual, name)]
    for record, values in (
        (LoadConfig(), config.load.to_dict()),
        (DecodeConfig(), config.overrides),
    ):
        given += [name for name, x in values.items() if x != getattr(record, name)]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')} says what is decoded, and --rescore "
            "decodes nothing; leave one of them out"
        )
    for name in config.asked_tasks or ():
        if name not in benchmark_registry.NAMES:
            raise ValueError(
                f"task {name!r} is unknown; use one of "
                f"{', '.join(benchmark_registry.NAMES)}"
            )
    _check_folders(config)
    check_figures(config)


def _check_tasks(config: EvalConfig) -> None:
    for task in tasks_of(config):
        if task.runs_code and not config.allow_code_execution:
            raise ValueError(
                f"task {task.name} runs code that the model writes; say "
                "--allow-code-execution, best inside a container"
            )


def _check_folders(config: EvalConfig) -> None:
    limit, out, data_dir = config.limit, config.out, config.data_dir
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1; leave it out for all")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file and must be a folder; choose another")
    if data_dir is not None and not data_dir.is_dir():
        raise ValueError(
            f"data_dir={data_dir} is no folder; give the one with the benchmark files"
        )


def check_figures(config: EvalConfig) -> None:
    """Check what figures need.

    Args:
        config: What is to be run.

    Raises:
        ValueError: There is no folder for them, or nothing to draw them with.
    """
    if config.sweep is not None and config.sweep not in SWEEPS:
        raise ValueError(f"sweep={config.sweep!r} is unknown; use {', '.join(SWEEPS)}")
    if config.has_figures and config.out is None:
        raise ValueError("figures are files, so say where with --out FOLDER")
    if config.has_figures and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib; pip install 'jaxdave[eval]'")


def _check_trajectory(config: EvalConfig) -> None:
    if config.sweep is not None and not any(m.drafted for m in methods_of(config)):
        raise ValueError(
            f"sweep={config.sweep!r} is over drafts, and "
            f"methods={','.join(config.methods)} have none; add freedave"
        )
    has_both = {"static", "freedave"} <= {*config.methods}
    if config.trajectory is not None and not has_both:
        raise ValueError(
            "a trajectory shows static and freedave side by side; add both to --methods"
        )


def methods_of(config: EvalConfig) -> tuple[Method, ...]:
    """The methods by name.

    Args:
        config: What is to be run.

    Returns:
        The methods, in their order.

    Raises:
        ValueError: There is no such method.
    """
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown:
        raise ValueError(f"method {unknown[0]!r} is unknown; use {', '.join(METHODS)}")
    return tuple(METHODS[name] for name in config.methods)


def tasks_of(config: EvalConfig) -> tuple[Task, ...]:
    """The benchmarks by name.

    Args:
        config: What is to be run.

    Returns:
        The benchmarks, in their order.

    Raises:
        ValueError: There is no such benchmark.
    """
    return tuple(
        benchmark_registry.open_task(
            name,
            preset=_preset_name(config),
            as_published=config.as_published,
            allow_code_execution=config.allow_code_execution,
        )
        for name in config.tasks
    )


def preset_of(config: EvalConfig) -> Preset:
    """The preset by name.

    Args:
        config: What is to be run.

    Returns:
        The preset.

    Raises:
        ValueError: There is no such preset.
    """
    return protocol_registry.open_preset(
        _preset_name(config), folder=config.data_dir, as_published=config.as_published
    )


def _preset_name(config: EvalConfig) -> str:
    if config.preset is not None:
        return config.preset
    return "demo" if {*config.tasks} <= {*demo.TASKS} else USUAL_PRESET


def decode_config(config: EvalConfig, preset: Mapping[str, Any]) -> DecodeConfig:
    """The settings of a decode: the user's, then a preset's, then the defaults.

    Args:
        config: What is to be run.
        preset: Fields of `DecodeConfig` that a preset gives.

    Returns:
        The configuration of a decode, before a method changes it.

    Raises:
        ValueError: A field is unknown or out of range.
    """
    own = {name: x for name, x in config.overrides.items() if x is not None}
    # The methods alone say what has a threshold (`Method.choose`).
    own.pop("threshold", None)
    # A policy says itself how many tokens a step commits.
    own |= {"tokens_per_step": None} if "policy" in own else {}
    return DecodeConfig.from_dict({**preset, **own})
