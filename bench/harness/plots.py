"""The three figures, drawn from the points of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[dict[str, Any]]


def draw(points: Mapping[str, Points], folder: Path, title: str) -> list[Path]:
    """Write the figures that there are points for; none without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("matplotlib is not installed, so no figures: pip install '.[bench]'")
        return []
    made = []
    figures: tuple[tuple[str, str, Callable[..., None]], ...] = (
        ("drafts", "calls.png", _calls),
        ("drafts", "steps.png", _steps),
        ("memory", "memory.png", _memory),
    )
    for source, file, fill in figures:
        if not points.get(source):
            continue
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
        fill(axes, points[source])
        figure.suptitle(title, fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / file, dpi=110)
        pyplot.close(figure)
        made.append(folder / file)
    return made


def _by_model(points: Points) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        found.setdefault(point["model"], []).append(point)
    return found


def _lines(axes, points: Points, across: str, value: Callable[[dict], float], **style):
    for model, group in _by_model(points).items():
        x, y = [p[across] for p in group], [value(p) for p in group]
        axes.plot(x, y, marker="o", label=model, **style)


def _frame(axes, across: str, up: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.layout(True, which="major", alpha=0.3)
    axes.legend()


def _calls(axes, points: Points) -> None:
    _lines(axes[0], points, "d", lambda p: p["calls"])
    _frame(axes[0], "draft length d", "network calls of one answer")
    _lines(axes[1], points, "d", lambda p: p["wall_s"])
    _frame(axes[1], "draft length d", "seconds of one answer")


def _steps(axes, points: Points) -> None:
    _lines(axes[0], points, "query_tokens", lambda p: 1e3 * p["call_s"])
    axes[0].set_prop_cycle(None)
    for group in _by_model(points).values():
        x = [p["query_tokens"] for p in group]
        axes[0].plot(x, [1e3 * p["floor_s"] for p in group], linestyle="--")
    _frame(axes[0], "query tokens of a call", "ms (dashed: roofline)")
    _lines(axes[1], points, "query_tokens", lambda p: p["floor_s"] / p["call_s"])
    _frame(axes[1], "query tokens of a call", "roofline over measured")
    axes[1].set_yscale("linear")
    axes[1].set_ylim(0, 1)


def _memory(axes, points: Points) -> None:
    _lines(axes[0], points, "d", lambda p: p["fresh"] / 1e6)
    _frame(axes[0], "draft length d", "MB: temporaries and fresh outputs")
    _lines(axes[1], points, "d", lambda p: p["output"] / 1e6)
    _frame(axes[1], "draft length d", "MB of outputs (donated state and cache)")
