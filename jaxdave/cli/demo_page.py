"""The demo as one page that needs nothing else: no server, no network, no library.

Pure functions from what was measured to HTML. Whatever a problem or a token holds is
escaped; the script reads numbers and text from the elements and writes text only.
"""

import html
import string
from importlib import resources

from jaxdave.cli.demo_comparison import (
    Comparison,
    Row,
    Track,
    explanation,
    method_words,
    rows,
    speed_words,
    table_title,
)
from jaxdave.cli.token_view import call_colour, masked_text, printable

TEMPLATE = "demo_page.html"


def render_page(comparison: Comparison, factor: float) -> str:
    """The page.

    Args:
        comparison: What was measured.
        factor: How many times slower than measured time it is played.

    Returns:
        HTML. Without JavaScript it shows how both decodes have ended.
    """
    c = comparison
    template = resources.files("jaxdave.cli").joinpath(TEMPLATE).read_text("utf-8")
    states = c.freedave_score.states
    tracks = (
        _track("static", "one state checked per call", c.static),
        _track("FreeDave", f"up to {states} states checked per call", c.freedave),
    )
    paragraphs = [f"<p>{_escaped(text)}</p>" for text in explanation(c)]
    paragraphs.append(f'<p class="soft">{_escaped(method_words(c))}</p>')
    return string.Template(template).substitute(
        kind=_escaped(c.kind),
        question=_escaped(printable(c.question)),
        last=max(len(c.static.ends), len(c.freedave.ends)),
        tracks="\n".join(tracks),
        legend=", ".join(
            f'<span class="token" style="--call:{call_colour(call, 2)}">{word}</span>'
            for call, word in enumerate(("early", "middle", "late"))
        ),
        verdict="right" if c.is_right else "wrong",
        caption=_escaped(table_title(c)),
        rows="\n".join(map(_row, rows(c))),
        paragraphs="\n".join(paragraphs),
        slowdown=repr(float(factor)),
        speed=_escaped(speed_words(factor)),
    )


def _track(name: str, what: str, track: Track) -> str:
    """One decode, as it ends."""
    last = len(track.ends) - 1
    tokens = "".join(
        f'<span class="token" style="--call:{call_colour(call, last)}" '
        f'data-call="{call}" data-mask="{_escaped(masked_text(text))}" '
        f'title="call {call + 1}">{_escaped(text)}</span>'
        for text, call in zip(track.texts, track.calls, strict=True)
    )
    ends = " ".join(f"{1e3 * end:.4f}" for end in track.ends)
    status = f"call {last + 1} of {last + 1}, {1e3 * track.seconds:.1f} ms, done"
    return (
        f'<section class="card track" data-ends="{ends}" aria-label="{name}">'
        f'<h2>{name} <span class="soft">{_escaped(what)}</span></h2>\n'
        f'<p class="label soft">Answer</p>\n<div class="answer">{tokens}</div>\n'
        f'<div class="bar" aria-hidden="true"><span></span></div>\n'
        f'<p class="status">{status}</p></section>'
    )


def _row(row: Row) -> str:
    cells = "".join(
        f"<td>{_escaped(cell)}</td>"
        for cell in (row.static or "-", row.freedave, row.ratio)
    )
    return f'<tr><th scope="row">{_escaped(row.name)}</th>{cells}</tr>'


def _escaped(text: str) -> str:
    """A text for an element or a quoted attribute, line ends kept."""
    return html.escape(text).replace("\n", "&#10;")
