"""The three figures of `python -m bench`, drawn from the points of a run."""

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
