"""Grading the samples of an earlier run again: no model is loaded, nothing is decoded.

A run's files of records hold the texts that were graded, and in their headers what they
were decoded with. So today's graders can be asked about them, of the items of the same
benchmark, and everything else is told as the run has measured it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.eval.benchmarks import registry as benchmark_registry
from jaxdave.eval.run import records
from jaxdave.eval.run.eval_config import EvalConfig
from jaxdave.eval.run.methods import METHODS, Method
from jaxdave.eval.run.records import Header, Record
from jaxdave.eval.types import Task
from jaxdave.grading.types import Item, Verdict
from jaxdave.runtime.files import read_json

RESULTS = ("results.json", "figure3.json")
"""Reports of a run, by which its cells are ordered."""
_TITLE_FIELDS = ("method", "draft_steps", "tokens_per_step", "threshold", "policy")
"""What tables say of a configuration."""
_OF_ALL = ("model", "weights", "preset", "as_published")
"""What all cells of a report have in common."""


class SampledCell(NamedTuple):
    """One row of an earlier run's tables, as its file has it.

    Attributes:
        task: The benchmark, with today's grader.
        method: The way it was decoded.
        settings: What tables say of the settings.
        header: All settings, as the file has them.
        items: The items whose answers the file has, in the order of the benchmark.
        path: The file.
        samples: Its records, in the order of the file.
    """

    task: Task
    method: Method
    settings: DecodeConfig
    header: Header
    items: tuple[Item, ...]
    path: Path
    samples: tuple[Record, ...]

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Ids of the items."""
        return tuple(item.id for item in self.items)

    @property
    def draft_steps(self) -> Any:
        """Drafts of a call, as reports name them."""
        return self.settings.draft_steps if self.method.drafted else 1


def read_cells(config: EvalConfig) -> tuple[SampledCell, ...]:
    """Read the samples of an earlier run.

    Args:
        config: What is rescored; its `rescore` is a file of records, or a folder.

    Returns:
        The cells in the order of the run's report; of the names where there is none.

    Raises:
        ValueError: There are no samples, a file is broken, or it is of another task, of
            another run than the others or of other items.
    """
    assert config.rescore is not None
    cells = [_read_cell(config, path) for path in _sample_files(config.rescore)]
    first = cells[0]
    for cell in cells:
        for name in _OF_ALL:
            if cell.header[name] != first.header[name]:
                raise ValueError(
                    f"{cell.path} is of a run with {name}={cell.header[name]!r}, and "
                    f"{first.path.name} has {first.header[name]!r}; rescore one of "
                    "them at a time"
                )
        like = next(one for one in cells if one.task.name == cell.task.name)
        if cell.item_ids != like.item_ids:
            raise ValueError(
                f"{cell.path} has {len(cell.items)} items, and {like.path.name} "
                f"{len(like.items)} or others; let the run end first, or rescore one "
                "file"
            )
    return tuple(sorted(cells, key=_sort_key(config.rescore)))


def rescored_config(config: EvalConfig, cells: Sequence[SampledCell]) -> EvalConfig:
    """What the report of rescored cells says of their run.

    Args:
        config: What is rescored.
        cells: The cells.

    Returns:
        The configuration with the run's protocol and sweep.
    """
    rows = {(cell.task.name, cell.method.name) for cell in cells}
    return dataclasses.replace(
        config,
        as_published=cells[0].header["as_published"],
        sweep="draft_steps" if len(rows) < len(cells) else None,
    )


def grade_again(
    cells: Sequence[SampledCell],
) -> list[tuple[SampledCell, tuple[Record, ...]]]:
    """Grade every sample by today's grader of its benchmark.

    Args:
        cells: The cells.

    Returns:
        The cells with their records, in the order of the benchmark's items.
    """
    verdicts: dict[tuple[str, str, str], Verdict] = {}
    for cell in cells:
        by_id = {item.id: item for item in cell.items}
        # Methods that have given the same text share its grade.
        new = {
            (cell.task.name, one.id, one.text): by_id[one.id] for one in cell.samples
        }
        new = {key: item for key, item in new.items() if key not in verdicts}
        texts = tuple(text for *_, text in new)
        grades = cell.task.grade(tuple(new.values()), texts) if new else ()
        verdicts.update(zip(new, grades, strict=True))

    def regraded(cell: SampledCell) -> tuple[Record, ...]:
        graded = {}
        for one in cell.samples:
            verdict = verdicts[cell.task.name, one.id, one.text]
            graded[one.id] = dataclasses.replace(
                one,
                right=verdict.correct,
                extracted=verdict.extracted,
                reason=verdict.reason,
            )
        return tuple(graded[id] for id in cell.item_ids)

    return [(cell, regraded(cell)) for cell in cells]


def sample_file(cell: SampledCell, graded: Sequence[Record]) -> bytes:
    """The content of a cell's file with other grades.

    Args:
        cell: The cell.
        graded: Its records, in any order.

    Returns:
        The header and the records, in the order of the file that was read.
    """
    by_id = {record.id: record for record in graded}
    return records.file_content(cell.header, [by_id[one.id] for one in cell.samples])


def check_target(cell: SampledCell, target: Path) -> None:
    """Refuse to write over the samples of something else.

    Args:
        cell: What will be written.
        target: Where it goes.

    Raises:
        ValueError: A file is there that has other samples, or is none of samples.
    """
    if not target.exists() or target.samefile(cell.path):
        return
    header, there = records.read_samples(target)
    texts = {one.id: one.text for one in there}
    if header != cell.header or texts != {one.id: one.text for one in cell.samples}:
        raise ValueError(
            f"{target} has other samples than {cell.path}; choose another --out"
        )


def _sample_files(source: Path) -> list[Path]:
    if not source.exists():
        raise ValueError(
            f"rescore={source} is not there; give the --out folder of an earlier run, "
            "or one of its .jsonl files"
        )
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    if not files:
        raise ValueError(
            f"rescore={source} has no samples (*.jsonl); give the --out folder of an "
            "earlier run"
        )
    return files


def _read_cell(config: EvalConfig, path: Path) -> SampledCell:
    header, samples = records.read_samples(path)
    try:
        method = METHODS[header["row"]]
        fields = {name: header[name] for name in _TITLE_FIELDS}
        settings = DecodeConfig.from_dict(fields)
        method.title(settings)
        if not all(isinstance(header[name], str) for name in ("task", "preset")):
            raise ValueError("task and preset are no names")
        if any(name not in header for name in _OF_ALL):
            raise ValueError("model or weights are missing")
        task = benchmark_registry.open_task(
            header["task"],
            preset=header["preset"],
            as_published=bool(header["as_published"]),
            allow_code_execution=config.allow_code_execution,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has a header that is none of an evaluation ({error}); give a file "
            "of samples"
        ) from error
    if config.asked_tasks is not None and task.name not in config.asked_tasks:
        raise ValueError(
            f"{path} is of task {task.name}, and --tasks names "
            f"{', '.join(config.asked_tasks)}; leave --tasks out, or give other samples"
        )
    if task.runs_code and not config.allow_code_execution:
        raise ValueError(
            f"{path}: task {task.name} runs code that the model wrote; say "
            "--allow-code-execution, best inside a container"
        )
    ids = {one.id for one in samples}
    items = tuple(item for item in task.items(config.data_dir) if item.id in ids)
    unknown = sorted(ids - {item.id for item in items})
    if unknown:
        raise ValueError(
            f"{path} has item {unknown[0]!r}, which is none of task {task.name}; give "
            "samples of that task"
        )
    return SampledCell(
        task=task,
        method=method,
        settings=settings,
        header=header,
        items=items,
        path=path,
        samples=samples,
    )


def _sort_key(source: Path):
    """Orders cells as the run's report does; without one, by benchmark and method."""
    reported = []
    for name in RESULTS if source.is_dir() else ():
        # The order is all that is read of it, so that a broken report is no matter.
        try:
            report = read_json(source / name, optional=True)
            reported += [
                (cell["task"], cell["method"], cell["draft_steps"])
                for cell in report.get("cells", ())
            ]
        except (ValueError, TypeError, KeyError):
            continue

    def key(cell: SampledCell) -> tuple[Any, ...]:
        own = cell.task.name, cell.method.name, cell.draft_steps
        place = reported.index(own) if own in reported else len(reported)
        steps = own[2] if isinstance(own[2], int) else 0
        names = benchmark_registry.NAMES.index(own[0]), [*METHODS].index(own[1])
        return place, *names, steps

    return key
