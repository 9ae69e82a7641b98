"""The paper's Tables 1 and 2 as Markdown, and what stands behind their figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdave.eval.run.memory import SOURCES

TITLES = {"math": "Table 1: mathematics", "code": "Table 2: code"}
HEADS = ("benchmark", "method", "accuracy %", "tokens/s", "tokens/NFE")
BEHIND = (
    "benchmark", "method", "decoded tokens/NFE", "NFE", "prefill", "verify", "refresh",
    "recheck", "rows", "public loop's NFE", "same text as static", "first difference",
    "peak memory", "compile s",
)  # fmt: skip
NOTE = (
    "In brackets: 95 % intervals (Wilson's for accuracy, bootstrap over items for "
    "rates), and times static's figure. Rates are ratios of sums. NFE: network calls, "
    "whatever they carry; rows: states that they evaluate. Tokens: those of the "
    "answers; decoded tokens: the end token and what is decoded behind it, too. "
    "Compiling, with a warm-up call for every shape, is in no rate."
)

PUBLISHED = " As published, TraDo's prompts and what follows an end count as answers."


def markdown(report: Mapping[str, Any]) -> str:
    """All tables of a report, with what they were made by."""
    parts = [_headline(report)]
    for kind, title in TITLES.items():
        cells = [cell for cell in report["cells"] if cell["kind"] == kind]
        if cells:
            parts.append(f"{title}\n\n{_table(HEADS, map(_paper_row, cells))}")
    lines = [_row_behind(cell) for cell in report["cells"]]
    parts.append(f"Behind the tables\n\n{_table(BEHIND, lines)}")
    counted = PUBLISHED if report["as_published"] else ""
    return "\n\n".join([*parts, NOTE + counted + _sources(report)]) + "\n"


def _sources(report: Mapping[str, Any]) -> str:
    """How memory was measured; tables may hold both measures."""
    used = {cell["memory"]["source"] for cell in report["cells"]}
    said = "; ".join(text for name, text in SOURCES.items() if name in used)
    return f" Peak memory: {said}." if said else ""


def _headline(report: Mapping[str, Any]) -> str:
    machine, first = report["machine"], report["cells"][0]["settings"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    # As published, rows over a threshold are not filtered, so that they need no exact.
    numerics = dict.fromkeys(c["settings"]["numerics"] for c in report["cells"])
    defects = " as published" if report["as_published"] else ""
    load = " ".join(f"{one:g}" for one in machine["load"])
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
        span(accuracy, "{:.1f}"),
        _rate(timing["tokens_per_second"], timing.get("speed_up")),
        _rate(cell["tokens_per_nfe"], cell.get("tokens_per_nfe_gain")),
    ]


def _row_behind(cell: Mapping[str, Any]) -> list[str]:
    nfe, static = cell["nfe"], cell.get("same_text", {}).get("static")
    kinds = ("total", "prefill", "verify", "refresh", "recheck")
    return [
        cell["task"],
        cell["title"],
        _rate(cell["decoded_tokens_per_nfe"], None),
        *(str(nfe[kind]) for kind in kinds),
        str(cell["rows"]),
        str(cell["reference_nfe"]),
        "-" if static is None else f"{100 * static['share']:.1f} %",
        "-" if static is None else _first(static["different"]),
        size(cell["memory"]["bytes"]),
        f"{cell['timing']['compile_seconds']:.1f}",
    ]


def span(values: Mapping[str, float | None], form: str) -> str:
    """A number with its interval."""
    value, low, high = (_number(values[k], form) for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def size(count: int | None) -> str:
    """Bytes as people read them."""
    return "-" if count is None else f"{count / 1e6:.1f} MB"


def _rate(rate: Mapping[str, float | None], gain: Mapping | None) -> str:
    """A rate; how many times static's it is, with an interval, where that is known."""
    shown = _number(
        rate["value"], "{:.3g}" if (rate["value"] or 0) < 1000 else "{:.0f}"
    )
    return shown if gain is None else f"{shown} ({span(gain, '{:.2f}')}x)"


def _first(different: Sequence[Mapping[str, Any]]) -> str:
    return f"{different[0]['id']} at {different[0]['at']}" if different else "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _table(heads: Sequence[str], rows) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
