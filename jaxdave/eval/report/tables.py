"""The paper's Tables 1 and 2 as Markdown, and a table of details behind them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxdave.eval.run.memory import MEMORY_SOURCES

TITLES = {"math": "Table 1: mathematics", "code": "Table 2: code"}
"""Titles of the paper's tables, by `Task.kind`."""
PAPER_COLUMNS = ("benchmark", "method", "accuracy %", "tokens/s", "tokens/NFE")
DETAIL_COLUMNS = (
    "benchmark",
    "method",
    "decoded tokens/NFE",
    "NFE",
    "prefill",
    "verify",
    "refresh",
    "recheck",
    "rows",
    "drafts accepted",
    "public loop's NFE",
    "same text as static",
    "first difference",
    "peak memory",
    "compile s",
)
NOTE = (
    "In brackets: 95 % intervals (Wilson's for accuracy, bootstrap over items for "
    "rates), and times static's figure. Rates are ratios of sums. NFE: network calls, "
    "whatever they carry; rows: states that they evaluate; drafts accepted: of those "
    "proposed, the policy's own next state is none. Tokens: those of the "
    "answers; decoded tokens: the end token and what is decoded behind it, too. "
    "Compiling, with a warm-up call for every shape, is in no rate."
)
"""Explanation of the columns, below the tables."""
PUBLISHED_NOTE = (
    " As published, TraDo's prompts and what follows an end count as answers."
)
"""What is added to it for runs with `--as-published`."""


def to_markdown(report: Mapping[str, Any]) -> str:
    """Format all tables of a report.

    Args:
        report: As `report.make_report` returns it.

    Returns:
        Markdown: the command and its machine, the tables, the explanation.
    """
    parts = [_headline(report)]
    for kind, title in TITLES.items():
        cells = [cell for cell in report["cells"] if cell["kind"] == kind]
        if cells:
            parts.append(f"{title}\n\n{_table(PAPER_COLUMNS, map(_paper_row, cells))}")
    details = [_detail_row(cell) for cell in report["cells"]]
    parts.append(f"Behind the tables\n\n{_table(DETAIL_COLUMNS, details)}")
    published_note = PUBLISHED_NOTE if report["as_published"] else ""
    note = NOTE + published_note + _memory_note(report)
    return "\n\n".join([*parts, note]) + "\n"


def _memory_note(report: Mapping[str, Any]) -> str:
    """How memory was measured; tables may hold both measures."""
    sources = {cell["memory"]["source"] for cell in report["cells"]}
    text = "; ".join(t for name, t in MEMORY_SOURCES.items() if name in sources)
    return f" Peak memory: {text}." if text else ""


def _headline(report: Mapping[str, Any]) -> str:
    machine, first = report["machine"], report["cells"][0]["settings"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    # As published, rows with a threshold have no top-k filter and so do not fall back
    # to exact numerics as the others do: one report may name both.
    numerics = dict.fromkeys(c["settings"]["numerics"] for c in report["cells"])
    defects = " as published" if report["as_published"] else ""
    load = " ".join(f"{average:g}" for average in machine["load"])
    return (
        f"`{machine['command']}`\n\n{report['model']}, preset {report['preset']}"
        f"{defects}, {first['dtype']}, {' and '.join(numerics)} numerics, batch of "
        f"{first['batch_size']}; {machine['device']}, {versions}; load {load}, "
        f"{machine['date']}"
    )


def _paper_row(cell: Mapping[str, Any]) -> list[str]:
    accuracy = {k: 100 * v for k, v in cell["accuracy"].items()}
    timing = cell["timing"]
    return [
        f"{cell['task']} ({cell['items']})",
        cell["title"],
        format_estimate(accuracy, "{:.1f}"),
        _format_rate(timing["tokens_per_second"], timing.get("speed_up")),
        _format_rate(cell["tokens_per_nfe"], cell.get("tokens_per_nfe_gain")),
    ]


def _detail_row(cell: Mapping[str, Any]) -> list[str]:
    nfe, static = cell["nfe"], cell.get("same_text", {}).get("static")
    kinds = ("total", "prefill", "verify", "refresh", "recheck")
    return [
        cell["task"],
        cell["title"],
        _format_rate(cell["decoded_tokens_per_nfe"], None),
        *(str(nfe[kind]) for kind in kinds),
        str(cell["rows"]),
        _format_hits(cell),
        str(cell["reference_nfe"]),
        "-" if static is None else f"{100 * static['share']:.1f} %",
        "-" if static is None else _format_first(static["different"]),
        format_bytes(cell["memory"]["bytes"]),
        f"{cell['timing']['compile_seconds']:.1f}",
    ]


def format_estimate(estimate: Mapping[str, float | None], form: str) -> str:
    """Format a number with its interval.

    Example:
        >>> format_estimate({"value": 2.0, "low": 1.5, "high": None}, "{:.1f}")
        '2.0 [1.5, -]'

    Args:
        estimate: An `Estimate` as a dict.
        form: Format string of one number.

    Returns:
        The text; a dash stands for None.
    """
    value, low, high = (
        _format_number(estimate[key], form) for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def format_bytes(count: int | None) -> str:
    """Format a number of bytes in megabytes.

    Example:
        >>> format_bytes(6_600_000)
        '6.6 MB'

    Args:
        count: Number of bytes, or None.

    Returns:
        The text; a dash for None.
    """
    return "-" if count is None else f"{count / 1e6:.1f} MB"


def _format_rate(rate: Mapping[str, float | None], gain: Mapping | None) -> str:
    """A rate and, where it is known, its ratio to static's with an interval."""
    form = "{:.3g}" if (rate["value"] or 0) < 1000 else "{:.0f}"
    text = _format_number(rate["value"], form)
    return text if gain is None else f"{text} ({format_estimate(gain, '{:.2f}')}x)"


def _format_hits(cell: Mapping[str, Any]) -> str:
    """Accepted and proposed drafts, and their ratio."""
    if cell["hit_rate"] is None:
        return "-"
    counts = f"{cell['accepted_drafts']} of {cell['proposed_drafts']}"
    return f"{counts} ({100 * cell['hit_rate']:.0f} %)"


def _format_first(different: Sequence[Mapping[str, Any]]) -> str:
    return f"{different[0]['id']} at {different[0]['at']}" if different else "-"


def _format_number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
