"""The paper's Figure 3, and the trajectory of one answer.

The same report gives the same bytes, so that a picture under version control changes
only with its numbers.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

FORMATS = ("png", "svg")
"""Extensions of the files that every picture is made in."""
# Neither dates nor random ids, nor the user's own style: these change the bytes.
_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
_STYLE = {
    "svg.hashsalt": "jaxdave",
    "font.size": 9.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

CellReport = Mapping[str, Any]
"""One element of `cells` in a report."""


class Panel(NamedTuple):
    """One panel of Figure 3.

    Attributes:
        title: Title with the unit.
        scale: Factor from the unit of the report to that of the title.
        value: (a cell of the report) -> number to draw; None: there is none.
    """

    title: str
    scale: float
    value: Callable[[CellReport], float | None]


PANELS: tuple[Panel, ...] = (
    Panel("accuracy, %", 100.0, lambda cell: cell["accuracy"]["value"]),
    Panel("tokens/s", 1.0, lambda cell: cell["timing"]["tokens_per_second"]["value"]),
    Panel("tokens/NFE", 1.0, lambda cell: cell["tokens_per_nfe"]["value"]),
    Panel("peak memory, MB", 1e-6, lambda cell: cell["memory"]["bytes"]),
)
"""The panels of Figure 3, from left to right."""


def render(
    columns: int, size: tuple[float, float], draw: Callable[[Any, Any], None]
) -> dict[str, bytes]:
    """Render a picture of panels side by side in every format.

    Args:
        columns: Number of panels.
        size: Width and height in inches.
        draw: (figure, array of its axes) -> None; draws the picture.

    Returns:
        Contents of the files by extension.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    contents = {}
    with style.context(["default", _STYLE]):
        for extension in FORMATS:
            figure = Figure(figsize=size, layout="constrained")
            draw(figure, figure.subplots(1, columns, squeeze=False)[0])
            file = io.BytesIO()
            metadata = _METADATA[extension]
            figure.savefig(file, format=extension, dpi=120, metadata=metadata)
            contents[extension] = file.getvalue()
    return contents


def figure3(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw accuracy, tokens/s, tokens/NFE and memory against the draft length.

    A dashed line shows static decoding, in its own fastest program.

    Source: FreeDave, arXiv 2510.00294, Figure 3.

    Args:
        report: Report of a run with `--sweep draft_steps`.

    Returns:
        Contents of the files by extension.
    """

    def draw(figure, axes) -> None:
        for axis, panel in zip(axes, PANELS, strict=True):
            for number, (name, cells) in enumerate(_drafted_lines(report).items()):
                draft_steps = [cell["draft_steps"] for cell in cells]
                x = [math.log2(steps) for steps in draft_steps]
                y = [_scaled(panel, cell) for cell in cells]
                axis.plot(x, y, marker="o", color=f"C{number}", label=name)
                static = _static_cell(report, cells[0]["task"])
                if static is not None:
                    level = _scaled(panel, static)
                    axis.axhline(level, color=f"C{number}", linestyle="--", lw=1)
                axis.set_xticks(x, [str(steps) for steps in draft_steps])
            axis.set_xlabel("draft length d")
            axis.set_title(panel.title)
            axis.set_ylim(bottom=0)
        axes[0].legend(loc="lower left")
        figure.suptitle(
            f"{report['model']}, {report['machine']['device']} (dashed: static)"
        )

    return render(len(PANELS), (13, 3.4), draw)


def trajectory(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the positions of one answer against the calls that committed them.

    Args:
        report: Report of a run with `--trajectory ITEM`.

    Returns:
        Contents of the files by extension; one panel for static, one for FreeDave.
    """
    drawing = report["trajectory"]

    def draw(figure, axes) -> None:
        last_call = max(side["calls"] for side in drawing["sides"])
        for axis, side in zip(axes, drawing["sides"], strict=True):
            committed_at, calls = side["committed_at"], side["calls"]
            positions = range(len(committed_at))
            axis.scatter(committed_at, positions, s=14, c=committed_at, cmap="viridis")
            axis.set_xlim(-1, last_call)
            axis.invert_yaxis()
            axis.locator_params(integer=True)
            axis.set_xlabel("network call (0: the prefill)")
            axis.set_title(
                f"{side['title']}: {len(committed_at)} tokens in {calls} calls"
            )
        axes[0].set_ylabel("position in the answer")
        figure.suptitle(f"{report['model']}, {drawing['item']}")

    return render(len(drawing["sides"]), (10, 4.2), draw)


def _scaled(panel: Panel, cell: CellReport) -> float:
    """The value in the unit of the panel; NaN, which is not drawn, for None."""
    value = panel.value(cell)
    return math.nan if value is None else value * panel.scale


def _drafted_lines(report: Mapping[str, Any]) -> Mapping[str, Sequence[CellReport]]:
    """The cells of every benchmark and drafted method, by draft length."""
    lines: dict[str, list[CellReport]] = {}
    for cell in report["cells"]:
        if cell["drafted"]:
            lines.setdefault(f"{cell['task']}, {cell['method']}", []).append(cell)
    return lines


def _static_cell(report: Mapping[str, Any], task: str) -> CellReport | None:
    cells = (c for c in report["cells"] if (c["task"], c["method"]) == (task, "static"))
    return next(cells, None)
