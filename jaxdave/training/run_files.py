"""What a training run keeps in its folder: checkpoints, metrics, a picture of the loss.

A run that was killed, at any point, goes on from its last checkpoint as if nothing had
happened: metrics of later steps are dropped, and computed again.
"""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxdave.runtime.event_loops import drop_late_results
from jaxdave.runtime.files import replace_file
from jaxdave.runtime.journal import parse_line
from jaxdave.runtime.messages import one_line
from jaxdave.training.update import TrainState

_LOGGER = logging.getLogger("jaxdave")
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
PICTURE = "loss.svg"
_REASON = 120
"""Characters of an error that are repeated."""


class Checkpoint(NamedTuple):
    """Where a run stood after a step.

    Attributes:
        state: Parameters and all else that the step has changed.
        position: Where its data stood: a JSON value.
    """

    state: TrainState
    position: Any


class CheckpointFiles:
    """The checkpoints of a run: written in the background, each whole or not there.

    Args:
        folder: The run's folder.
        keep: The latest so many are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder.absolute() / CHECKPOINTS
        self.saved: int | None = None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            # What a kill has left unfinished.
            cleanup_tmp_directories=True,
        )
        with self._one_line("opened"):
            self.manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                # Named, so that what is stored can be looked at before it is read.
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "position": ocp.JsonCheckpointHandler(),
                },
            )
            self.saved = self.manager.latest_step()
        # Its threads log and print every failure with a traceback, beside raising it.
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(drop_late_results())
        self._quiet.callback(logging.getLogger("absl").removeFilter, _is_not_of_orbax)
        logging.getLogger("absl").addFilter(_is_not_of_orbax)

    def left(self) -> str:
        """What is on disk, in words."""
        return (
            "nothing is saved" if self.saved is None else f"step {self.saved} is saved"
        )

    def save(self, step: int, state: TrainState, position: Any) -> None:
        """Begin to write a checkpoint, after the one before it is on disk.

        Args:
            step: Steps so far.
            state: It is copied before this returns.
            position: Where the data stands, a JSON value.

        Raises:
            ValueError: This one or the one before it cannot be written; those before
                are as they were.
        """
        self.wait()
        with self._one_line("written"):
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore
                    position=ocp.args.JsonSave({"position": position}),  # pyright: ignore
                ),
            )

    def wait(self) -> None:
        """Wait until what was begun is on disk.

        Raises:
            ValueError: It could not be written.
        """
        with self._one_line("written"):
            self.manager.wait_until_finished()
            self.saved = self.manager.latest_step()

    def restore(self, template: TrainState) -> Checkpoint | None:
        """Read the latest checkpoint.

        Args:
            template: A state of the same shapes, dtypes and shardings.

        Returns:
            The checkpoint; None: there is none.

        Raises:
            ValueError: It is of another model or optimiser, or cannot be read.
        """
        if self.saved is None:
            return None
        with self._one_line("read"):
            self._check_shapes(self.saved, template)
            shapes = jax.tree.map(_abstract, template)
            restored = self.manager.restore(
                self.saved,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(shapes),  # pyright: ignore
                    position=ocp.args.JsonRestore(),  # pyright: ignore
                ),
            )
        # orbax returns the type that it is asked for, and is annotated otherwise.
        state: Any = restored["state"]
        return Checkpoint(state, restored["position"]["position"])

    def close(self) -> None:
        """Wait for what is being written, and let go of the folder.

        Raises:
            ValueError: It could not be written.
        """
        try:
            self.wait()
        finally:
            self.manager.close()
            self._quiet.close()

    def _check_shapes(self, step: int, template: TrainState) -> None:
        """Refuse a checkpoint of another model, which orbax would say in many lines."""
        metadata = self.manager.item_metadata(step)["state"]
        tree = getattr(metadata, "tree", metadata)
        stored = {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if hasattr(leaf, "shape")
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(template):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if stored.get(name, leaf.shape) != leaf.shape:
                raise ValueError(
                    f"{self.folder / str(step)}: {name} has shape {stored[name]}, and "
                    f"this run needs {leaf.shape}; train it in another folder"
                )
            if name not in stored:
                raise ValueError(
                    f"{self.folder / str(step)}: {name} is not in it, which this run "
                    "needs; train it in another folder"
                )

    @contextlib.contextmanager
    def _one_line(self, done: str) -> Iterator[None]:
        """Errors of orbax and of the disk as one line that says what is left."""
        try:
            yield
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith(
                str(self.folder)
            ):
                raise
            reason = one_line(error)
            if len(reason) > _REASON:
                # The system's own word is at the end of it.
                reason = f"...{reason[-_REASON:]}"
            raise ValueError(
                f"{self.folder}: a checkpoint could not be {done} ({reason}); "
                f"{self.left()}: mend that and start again to go on from there"
            ) from error


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


class MetricsFile:
    """The metrics of every step, as JSON lines that can be read while a run goes on.

    Args:
        folder: The run's folder.
        step: Steps so far: lines of later ones are dropped.

    Raises:
        ValueError: What is there is no file of metrics.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / METRICS
        lines = self.path.read_bytes().splitlines(True) if self.path.exists() else []
        self.records = [
            record
            for number, line in enumerate(lines, 1)
            if (record := self._parse(line, number, len(lines)))["step"] <= step
        ]
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        replace_file(self.path, text.encode())

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write the metrics of some steps.

        Args:
            records: One for each step, with its "step"; JSON values.
        """
        self.records += records
        text = "".join(json.dumps(record) + "\n" for record in records)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def draw(self) -> None:
        """Draw the loss of every step, where matplotlib is installed."""
        points = [(r["step"], r["loss"]) for r in self.records if "loss" in r]
        held_out = [
            (r["step"], r["validation_loss"])
            for r in self.records
            if "validation_loss" in r
        ]
        if points:
            draw_loss(self.path.with_name(PICTURE), points, held_out)

    def _parse(self, line: bytes, number: int, count: int) -> dict[str, Any]:
        """A line; the last one may be cut, and then counts as one of a later step."""
        record = parse_line(line)
        if record is not None and isinstance(record.get("step"), int):
            return record
        if record is None and number == count:
            return {"step": math.inf}
        raise ValueError(
            f"{self.path}, line {number}: {line[:40]!r} is no record of a step; "
            "move the file away"
        )


def draw_loss(
    path: Path,
    points: list[tuple[int, float]],
    held_out: list[tuple[int, float]] | None = None,
) -> None:
    """Draw a loss over steps, as it is and smoothed, if matplotlib is installed.

    Args:
        path: The SVG file.
        points: (step, loss).
        held_out: The same of texts that are not trained; None or empty: not drawn.
    """
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        _LOGGER.info("%s is not drawn: pip install 'jaxdave[train]'", path.name)
        return
    import io

    steps, losses = zip(*points, strict=True)
    smooth, mean = [], None
    for loss in losses:
        mean = loss if mean is None else 0.95 * mean + 0.05 * loss
        smooth.append(mean)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9ec5e8", linewidth=0.8, label="each step")
    axes.plot(steps, smooth, color="#1f5f99", label="smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="#c0504d", label="held out")
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    replace_file(path, content.getvalue())


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float | int]:
    """Scalars of a device as numbers of Python.

    Args:
        metrics: Scalars by name.

    Returns:
        The same, as int and float.
    """
    return {
        name: jax.device_get(value).item() if hasattr(value, "dtype") else value
        for name, value in metrics.items()
    }
