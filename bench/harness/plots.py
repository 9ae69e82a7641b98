"""The figures of `python -m bench` and `bench.grpo`, from the points of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[dict[str, Any]]


def draw_figures(points: Mapping[str, Points], folder: Path, title: str) -> list[Path]:
    """Draw the figures for which there are points.

    Args:
        points: rows of raw figures, by the name of their series.
        folder: where the PNG files go; files of the same names are replaced.
        title: printed above every figure: machine, date and load.

    Returns:
        The files written; none where matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("matplotlib is not installed, so no figures: pip install '.[bench]'")
        return []
    paths = []
    figures: tuple[tuple[str, str, Callable[..., None]], ...] = (
        ("drafts", "calls.png", _draw_calls),
        ("drafts", "steps.png", _draw_call_times),
        ("memory", "memory.png", _draw_memory),
    )
    for series, file, draw in figures:
        if not points.get(series):
            continue
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
        draw(axes, points[series])
        figure.suptitle(title, fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / file, dpi=110)
        pyplot.close(figure)
        paths.append(folder / file)
    return paths


def _by_model(points: Points) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault(point["model"], []).append(point)
    return groups


def _plot_models(axes, points: Points, x_key: str, y_value: Callable[[dict], float]):
    """One line per model."""
    for model, group in _by_model(points).items():
        x, y = [point[x_key] for point in group], [y_value(point) for point in group]
        axes.plot(x, y, marker="o", label=model)


def _label_axes(axes, x_label: str, y_label: str) -> None:
    """Logarithmic axes with labels, a grid and a legend."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()


def _draw_calls(axes, points: Points) -> None:
    """Network calls, and seconds, of an answer against the draft length."""
    _plot_models(axes[0], points, "d", lambda p: p["calls"])
    _label_axes(axes[0], "draft length d", "network calls of one answer")
    _plot_models(axes[1], points, "d", lambda p: p["wall_s"])
    _label_axes(axes[1], "draft length d", "seconds of one answer")


def _draw_call_times(axes, points: Points) -> None:
    """Time of a call, and its share of the roofline, against its query tokens."""
    _plot_models(axes[0], points, "query_tokens", lambda p: 1e3 * p["call_s"])
    # The dashed rooflines repeat the colours of the models in the same order.
    axes[0].set_prop_cycle(None)
    for group in _by_model(points).values():
        x = [p["query_tokens"] for p in group]
        axes[0].plot(x, [1e3 * p["floor_s"] for p in group], linestyle="--")
    _label_axes(axes[0], "query tokens of a call", "ms (dashed: roofline)")
    _plot_models(axes[1], points, "query_tokens", lambda p: p["floor_s"] / p["call_s"])
    _label_axes(axes[1], "query tokens of a call", "roofline over measured")
    axes[1].set_yscale("linear")
    axes[1].set_ylim(0, 1)


def _draw_memory(axes, points: Points) -> None:
    """Memory of the decode loop against the draft length."""
    _plot_models(axes[0], points, "d", lambda p: p["fresh"] / 1e6)
    _label_axes(axes[0], "draft length d", "MB: temporaries and fresh outputs")
    _plot_models(axes[1], points, "d", lambda p: p["output"] / 1e6)
    _label_axes(axes[1], "draft length d", "MB of outputs (donated state and cache)")


def draw_reinforcement(records: Points, path: Path) -> None:
    """Draw accuracy before and after training, and rewards during it (`bench.grpo`).

    Args:
        records: the runs: split, method, seed, before, after and curve.
        path: the PNG file; it is replaced.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed, so no figure: pip install '.[bench]'")
        return
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["split"], record["method"]), []).append(record)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for place, ((split, method), found) in enumerate(groups.items()):
        shares = [
            100 * record[when].count("1") / len(record[when])
            for when in ("before", "after")
            for record in found
        ]
        half = len(found)
        left.plot([place - 0.15] * half, shares[:half], "o", color="0.6")
        left.plot([place + 0.15] * half, shares[half:], "o", color=f"C{place}")
        for before, after in zip(shares[:half], shares[half:], strict=True):
            left.plot([place - 0.15, place + 0.15], [before, after], color="0.8")
        curves = [
            [step["reward"] for step in r["curve"] if "reward" in step] for r in found
        ]
        length = min(map(len, curves))
        if length:
            mean = [sum(curve[at] for curve in curves) / half for at in range(length)]
            right.plot(_smoothed(mean), color=f"C{place}", label=f"{split}, {method}")
    left.set_xticks(range(len(groups)), [f"{s}\n{m}" for s, m in groups], fontsize=8)
    left.set_ylabel("held-out problems right, %, before (grey) and after")
    left.grid(axis="y", alpha=0.3)
    right.set_xlabel("step")
    right.set_ylabel("mean reward at temperature 1.5, smoothed")
    right.grid(alpha=0.3)
    if right.lines:
        right.legend()
    figure.savefig(path, dpi=110)


def _smoothed(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """An exponential moving average."""
    found: list[float] = []
    for value in values:
        last = found[-1] if found else value
        found.append(weight * last + (1 - weight) * value)
    return found
