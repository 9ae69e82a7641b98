"""The paper's Figure 3, and the trajectory of one answer; the same bytes every time."""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

FORMATS = ("png", "svg")
# Neither dates nor random ids, so that a picture changes only with its numbers.
_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
_STYLE = {"svg.hashsalt": "jaxdave", "font.size": 9.0, "axes.grid": True}
_STYLE |= {"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
PANELS: tuple[tuple[str, float, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("accuracy, %", 100.0, lambda c: c["accuracy"]["value"]),
    ("tokens/s", 1.0, lambda c: c["timing"]["tokens_per_second"]["value"]),
    ("tokens/NFE", 1.0, lambda c: c["tokens_per_nfe"]["value"]),
    ("peak memory, MB", 1e-6, lambda c: c["memory"]["bytes"]),
)
"""Title, scale and value of every panel of Figure 3; None: there is no value."""


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
        for panel, (label, scale, value) in zip(axes, PANELS, strict=True):
            for number, (name, cells) in enumerate(_lines(report).items()):
                drafts = [cell["draft_steps"] for cell in cells]
                x = [math.log2(d) for d in drafts]
                y = [_scaled(value(cell), scale) for cell in cells]
                panel.plot(x, y, marker="o", color=f"C{number}", label=name)
                static = _static(report, cells[0]["task"])
                if static is not None:
                    level = _scaled(value(static), scale)
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


def trajectory(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Position against call, one panel for every way to decode."""
    drawing = report["trajectory"]

    def fill(figure, axes) -> None:
        last = max(side["calls"] for side in drawing["sides"])
        for panel, side in zip(axes, drawing["sides"], strict=True):
            at, calls = side["committed_at"], side["calls"]
            panel.scatter(at, range(len(at)), s=14, c=at, cmap="viridis")
            panel.set_xlim(-1, last)
            panel.invert_yaxis()
            panel.locator_params(integer=True)
            panel.set_xlabel("network call (0: the prefill)")
            panel.set_title(f"{side['title']}: {len(at)} tokens in {calls} calls")
        axes[0].set_ylabel("position in the answer")
        figure.suptitle(f"{report['model']}, {drawing['item']}")

    return drawn(len(drawing["sides"]), (10, 4.2), fill)


def _scaled(value: float | None, scale: float) -> float:
    return math.nan if value is None else value * scale


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
