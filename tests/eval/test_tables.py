"""What an evaluation prints and draws, from reports made by hand."""

import re

import pytest
from helpers import eval_runs
from rich.console import Console
from rich.progress import Task, TaskID

from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.eval.benchmarks import demo
from jaxdave.eval.report import figures, report, tables
from jaxdave.eval.run import memory, progress, runner
from jaxdave.eval.run.cells import EvalCell
from jaxdave.eval.run.methods import METHODS

STATIC = [eval_runs.record(f"i{n}", seconds=0.5) for n in range(4)]
FAST = [
    eval_runs.record(
        f"i{n}", seconds=0.25, right=n > 0,
        nfe={**eval_runs.NFE, "verify": 1, "total": 2}, memory={"program": 9},
    )
    for n in range(4)
]  # fmt: skip


def span(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}


def two_tables(**changes) -> dict:
    """Static and FreeDave on one benchmark of each kind."""
    cells = []
    for task, kind in (("gsm8k", "math"), ("mbpp", "code")):
        same = {"static": {"items": 4, "share": 1.0, "different": []}}
        cells.append(eval_runs.cell(task, kind, "static", 1, STATIC, same_text=same))
        apart = [{"id": "i2", "at": 17}]
        same = {"static": {"items": 3, "share": 0.75, "different": apart}}
        fast = eval_runs.cell(task, kind, "freedave", 8, FAST, same_text=same)
        fast["tokens_per_nfe_gain"] = span(2.0)
        fast["timing"]["speed_up"] = span(2.0)
        cells.append({**fast, **changes})
    return eval_runs.report(*cells)


def test_tables_are_the_papers():
    text = tables.to_markdown(two_tables())
    first, second = text.index("Table 1: mathematics"), text.index("Table 2: code")
    assert "gsm8k" in text[first:second] and "mbpp" not in text[first:second]
    rows = [line for line in text.splitlines() if line.startswith("| gsm8k (4)")]
    assert rows == [
        "| gsm8k (4) | static 1 | 100.0 [51.0, 100.0] | 6 | 0.75 |",
        "| gsm8k (4) | freedave 8 | 75.0 [30.1, 95.4] | 12 (2.00 [2.00, 2.00]x) "
        "| 1.5 (2.00 [2.00, 2.00]x) |",
    ]
    (details,) = [line for line in text.splitlines() if "| 75.0 % |" in line][:1]
    assert details == (
        "| gsm8k | freedave 8 | 2 | 8 | 4 | 4 | 0 | 0 | 100 | 12 of 24 (50 %) | 24 "
        "| 75.0 % | i2 at 17 | 6.6 MB | 0.0 |"
    )
    assert text.endswith("Peak memory: " + memory.MEMORY_SOURCES["program"] + ".\n")
    assert text.startswith("`jaxdave eval`\n\ntiny, preset demo, float32")


def test_tables_without_static_or_rates_have_dashes():
    nothing = {"value": None, "low": None, "high": None}
    cell = eval_runs.cell("gsm8k", "math", "freedave", 8, FAST)
    cell["timing"]["speed_up"] = nothing
    cell["memory"] = {"bytes": None, "source": None}
    text = tables.to_markdown(eval_runs.report(cell))
    assert "12 (- [-, -]x)" in text and "| - | - | - | 0.0 |" in text
    assert "Table 2" not in text and "Peak memory" not in text


def sweep(**changes) -> dict:
    cells = [
        eval_runs.cell("gsm8k", "math", "freedave", d, FAST, **changes)
        for d in (2, 4, 8)
    ]
    static = eval_runs.cell("gsm8k", "math", "static", 1, STATIC)
    return eval_runs.report(static, *cells)


def test_pictures_are_the_same_bytes_and_follow_their_numbers():
    first, again = figures.figure3(sweep()), figures.figure3(sweep())
    assert first == again and set(first) == set(figures.FORMATS)
    other = figures.figure3(sweep(memory={"bytes": 7_000_000, "source": "program"}))
    assert all(first[form] != other[form] for form in figures.FORMATS)
    for content in first.values():
        assert not re.search(rb"20\d\d-\d\d-\d\d|dc:date", content)
    unknown = figures.figure3(sweep(memory={"bytes": None, "source": None}))
    assert unknown["png"].startswith(b"\x89PNG")


def test_trajectories_are_the_same_bytes():
    sides = [
        {"title": "static", "committed_at": [0, 1, 3, 2], "calls": 4},
        {"title": "FreeDave", "committed_at": [0, 1, 1, 1], "calls": 2},
    ]

    def draw(sides):
        drawing = {"item": "gsm8k-0", "sides": sides}
        return figures.trajectory({"model": "tiny", "trajectory": drawing})

    first = draw(sides)
    assert first == draw(sides) != draw(sides[::-1])
    assert b"gsm8k-0" in first["svg"]


def test_figures_ignore_the_users_own_settings(tmp_path, monkeypatch):
    import matplotlib

    first = figures.figure3(sweep())
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.hashsalt": "mine"}):
        assert figures.figure3(sweep()) == first


@pytest.mark.parametrize(
    ("stats", "program", "expected"),
    [
        (None, {"program": 5}, {"bytes": 5, "source": "program"}),
        ({"peak_bytes_in_use": 9}, {"program": 5},
         {"bytes": 9, "source": "device_peak"}),
        ({"bytes_in_use": 9}, {"program": 5}, {"bytes": 5, "source": "program"}),
        (None, {}, {"bytes": 7, "source": "process_peak"}),
    ],
)  # fmt: skip
def test_memory_says_how_it_was_measured(monkeypatch, stats, program, expected):
    class Device:
        def memory_stats(self):
            return stats

    monkeypatch.setattr("jax.local_devices", lambda: [Device()])
    monkeypatch.setattr(memory, "process_peak_bytes", lambda: 7)
    monkeypatch.setattr(memory, "_program_bytes", lambda decoder: program)
    warm = memory.measure_warmup(None, lambda: None)  # pyright: ignore
    assert warm.seconds > 0
    small = eval_runs.record(memory={"program": 2} if program else None)
    cell_records = [eval_runs.record(), eval_runs.record(memory=warm.memory), small]
    assert report._peak_memory(cell_records) == expected
    assert expected["source"] in {None, *memory.MEMORY_SOURCES}


def test_progress_shows_how_right_and_how_long():
    console = Console(force_terminal=True, width=100, color_system=None)
    task, method = demo.TASKS["demo-math"], METHODS["freedave"]
    cell = EvalCell(task, method, DecodeConfig(draft_steps=8), *[()] * 4)  # pyright: ignore
    cell = cell._replace(entries=(None,) * 4)  # pyright: ignore
    with console.capture() as capture, progress.progress_display(console) as display:
        display.add_counter("compiling", 1)()
        on_record = display.add_cell(cell, FAST[:1])
        for record in FAST[1:]:
            on_record(record)
    text = capture.get()
    assert "compiling" in text and "1/1" in text and "left" in text
    assert "demo-math FreeDave d=8" in text and "4/4" in text
    assert "75.0 % right" in text


@pytest.mark.parametrize(
    ("done", "completed", "text"),
    [
        (0, 0, "-:--:-- left"),
        (80, 80, "-:--:-- left"),
        (100, 100, "0:00:00 left"),
        # Two items of this run took 100 s, whatever an earlier run has done, and 18 are
        # left; 7 s of the next one have passed.
        (80, 82, "0:14:53 left"),
        (0, 50, "0:01:33 left"),
        (0, 99, "0:00:00 left"),
        (0, 100, "0:00:00 left"),
    ],
)
def test_time_left_is_by_the_pace_of_this_run(done, completed, text):
    fields = {"done": done, "at": 107.0}
    task = Task(TaskID(0), "", 100, completed, lambda: 114.0, fields=fields)
    task.start_time = 7.0
    assert progress.TimeLeftColumn().render(task).plain == text


def test_cells_take_turns_to_and_fro():
    order: list[str] = []

    def turns(name: str, count: int):
        for at in range(count):
            order.append(f"{name}{at}")
            yield (eval_runs.record(f"{name}{at}"),)

    results = runner.alternate([turns("a", 3), turns("b", 2), turns("c", 0)])
    assert order == ["a0", "b0", "b1", "a1", "a2"]
    assert [[record.id for record in batch] for batch in results] == [
        ["a0", "a1", "a2"], ["b0", "b1"], []
    ]  # fmt: skip
