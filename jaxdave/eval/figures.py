"""The paper's Figure 3, and the trajectory of one answer; the same bytes every time."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FORMATS = ("png", "svg")
# Neither dates nor random ids, so that a picture changes only with its numbers.
_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
_STYLE = {"svg.hashsalt": "jaxdave", "font.size": 9.0, "axes.grid": True}
_STYLE |= {"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
PANELS: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("accuracy, %", lambda c: 100 * c["accuracy"]["value"]),
    ("tokens/s", lambda c: c["timing"]["tokens_per_second"]["value"]),
    ("tokens/NFE", lambda c: c["tokens_per_nfe"]["value"]),
    ("peak memory, MB", lambda c: (c["memory"]["bytes"] or float("nan")) / 1e6),
)


def drawn(
    columns: int, size: tuple[float, float], fill: Callable[[Any, Any], None]
) -> dict[str, bytes]:
    """A picture of some panels side by side, in every format.

    fill(figure, its axes) draws it.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    made = {}
    with style.context(["default", _STYLE]):
        for form in FORMATS:
            figure = Figure(figsize=size, layout="constrained")
            fill(figure, figure.subplots(1, columns, squeeze=False)[0])
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=120, metadata=_METADATA[form])
            made[form] = file.getvalue()
    return made


def figure3(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Accuracy, tokens/s, tokens/NFE and memory against the draft length.

    Dashed: static, in its own fastest program.
    """

    def fill(figure, axes) -> None:
        for panel, (label, value) in zip(axes, PANELS, strict=True):
            for number, (name, cells) in enumerate(_lines(report).items()):
                drafts = [cell["draft_steps"] for cell in cells]
                x = [math.log2(d) for d in drafts]
                y = [value(cell) for cell in cells]
                panel.plot(x, y, marker="o", color=f"C{number}", label=name)
                static = _static(report, cells[0]["task"])
                if static is not None:
                    level = value(static)
                    panel.axhline(level, color=f"C{number}", linestyle="--", lw=1)
                panel.set_xticks(x, [str(d) for d in drafts])
            panel.set_xlabel("draft length d")
            panel.set_title(label)
            panel.set_ylim(bottom=0)
        axes[0].legend(loc="lower left")
        figure.suptitle(
            f"{report['model']}, {report['machine']['device']} (dashed: static)"
        )

    return drawn(len(PANELS), (13, 3.4), fill)


def trajectory(
    title: str, sides: Sequence[tuple[str, Sequence[int], int]]
) -> dict[str, bytes]:
    """Position against call, one panel for every way to decode.

    sides: (name, the call that made each position known, calls in all).
    """

    def fill(figure, axes) -> None:
        last = max(calls for _, _, calls in sides)
        for panel, (name, at, calls) in zip(axes, sides, strict=True):
            panel.scatter(at, range(len(at)), s=14, c=at, cmap="viridis")
            panel.set_xlim(-1, last)
            panel.invert_yaxis()
            panel.locator_params(integer=True)
            panel.set_xlabel("network call (0: the prefill)")
            panel.set_title(f"{name}: {len(at)} tokens in {calls} calls")
        axes[0].set_ylabel("position in the answer")
        figure.suptitle(title)

    return drawn(len(sides), (10, 4.2), fill)


def _lines(report: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The cells of every benchmark and drafted method, by draft length."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for cell in report["cells"]:
        if cell["drafted"]:
            found.setdefault(f"{cell['task']}, {cell['method']}", []).append(cell)
    return found


def _static(report: Mapping[str, Any], task: str) -> Mapping[str, Any] | None:
    cells = (c for c in report["cells"] if (c["task"], c["method"]) == (task, "static"))
    return next(cells, None)
