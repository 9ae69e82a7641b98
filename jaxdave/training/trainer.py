"""The training loop, for every method: step, report, save, go on after a kill.

What a step does is its caller's: `Steps` has the data and the compiled update. The loop
waits for no step: metrics are fetched when they are written, some steps later.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.progress import Progress

from jaxdave.training.run_files import (
    CheckpointFiles,
    MetricsFile,
    plain_numbers,
)
from jaxdave.training.update import TrainState


class Steps(Protocol):
    """The steps of a run, one after another."""

    def __call__(self, state: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        """Take one step.

        Args:
            state: The state before; it may be donated.

        Returns:
            The state after it, and scalars to report by name, on the device or not.
            "loss" is among them.
        """
        ...

    def position(self) -> Any:
        """Where the data stands, a JSON value."""
        ...

    def move_to(self, position: Any) -> None:
        """Go on with the data from where it stood.

        Args:
            position: What `position` has returned, maybe in another process.
        """
        ...

    def validate(self, state: TrainState) -> Mapping[str, Any]:
        """Compute what is reported beside steps.

        Args:
            state: The state.

        Returns:
            Scalars by name; empty where there are none.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long a run is, and when it saves.

    Attributes:
        steps: Steps of the whole run.
        save_every: Steps between checkpoints.
        keep: The latest so many checkpoints stay.
        log_every: Steps between looks at the metrics.
        validate_every: Steps between validations; None: as `save_every`.

    Raises:
        ValueError: One of them is below 1.
    """

    steps: int
    save_every: int = 100
    keep: int = 2
    log_every: int = 10
    validate_every: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name}={value} must be at least 1")


def fit(
    steps: Steps, state: TrainState, folder: Path, config: LoopConfig
) -> TrainState:
    """Run, or go on with, a training.

    Args:
        steps: What is done in a step.
        state: The state before the first one; it gives shapes and shardings of later
            ones.
        folder: Where checkpoints and metrics are written, and looked for.
        config: How long, and when to save.

    Returns:
        The state after the last step. A run that was killed at any point ends, when it
        is started again, with the same bits as one that was not.

    Raises:
        ValueError: The loss is not finite, or a checkpoint cannot be written or read.
    """
    # What was begun is worth finishing, whatever ends the loop.
    with contextlib.closing(CheckpointFiles(folder, config.keep)) as files:
        if (last := files.restore(state)) is not None:
            state = last.state
            steps.move_to(last.position)
        return _run(steps, state, folder, config, files)


def _run(
    steps: Steps,
    state: TrainState,
    folder: Path,
    config: LoopConfig,
    files: CheckpointFiles,
) -> TrainState:
    """The steps from where a state stands to the last one."""
    is_first = jax.process_index() == 0
    begin = int(state.step)
    log = MetricsFile(folder, begin) if is_first else None
    pending: list[tuple[int, Mapping[str, Any]]] = []
    since = time.monotonic()

    def report() -> dict[str, Any]:
        """Fetch and write the metrics of the steps since the last report."""
        nonlocal pending, since
        # After the device has computed them: only then is the time theirs.
        records = [{"step": at} | plain_numbers(one) for at, one in pending]
        now = time.monotonic()
        for record in records:
            record["seconds"] = round((now - since) / len(records), 6)
        since, pending = now, []
        for record in records:
            # An update that is not finite is left out, and nothing would be learnt.
            for name in ("loss", "grad_norm"):
                if not math.isfinite(record.get(name, 0.0)):
                    files.wait()
                    raise ValueError(
                        f"the {name} of step {record['step']} is {record[name]}; lower "
                        f"learning_rate, or look at the data ({files.left()})"
                    )
        if log is not None:
            log.append(records)
        return records[-1] if records else {}

    # Results are for stdout; where nobody looks there is the file of metrics.
    console = Console(stderr=True)
    is_shown = is_first and console.is_terminal
    with Progress(console=console, disable=not is_shown) as progress:
        task = progress.add_task("training", total=config.steps, completed=begin)
        for done in range(begin + 1, config.steps + 1):
            state, metrics = steps(state)
            is_last = done == config.steps
            if is_last or done % (config.validate_every or config.save_every) == 0:
                metrics = dict(metrics) | dict(steps.validate(state))
            pending.append((done, metrics))
            saves = is_last or done % config.save_every == 0
            if saves or done % config.log_every == 0:
                progress.update(task, completed=done, description=_say(report()))
            if saves:
                files.save(done, state, steps.position())
                if log is not None:
                    log.draw()
                since = time.monotonic()
    return state


def _say(record: Mapping[str, Any]) -> str:
    """The progress bar's text."""
    if not record:
        return "training"
    text = f"loss {record['loss']:.4g}"
    if record.get("tokens") and record.get("seconds"):
        text += f", {record['tokens'] / record['seconds']:,.0f} tokens/s"
    return text
