"""The demo on a terminal: two decodes side by side, and the table.

Pure functions from what was measured to what is printed, and `play`, which shows the
moments of a decode one after another.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

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
from jaxdave.cli.token_view import (
    ASCII_MASK,
    MASK,
    call_colour,
    printable,
    render_tokens,
)

SIDE_BY_SIDE = 60
"""Columns from which on the decodes stand side by side, and the table is one."""
_TICK = 0.1
"""Seconds between two looks at the clock."""


def picture(
    comparison: Comparison, seconds: float | None, width: int, mask: str = MASK
) -> RenderableType:
    """The question and both answers at some moment.

    Args:
        comparison: What was measured.
        seconds: On the clock that both decodes start with; None: both have ended.
        width: Columns of the screen.
        mask: One cell of a position that is not decoded yet.

    Returns:
        What is printed.
    """
    c = comparison
    methods = (("static", "no drafts", c.static), ("FreeDave", "drafts", c.freedave))
    if width < SIDE_BY_SIDE:
        # No frames: there are neither columns nor lines to spare.
        return Group(
            *(
                Group(Text(f"{name}, answer:", style="bold"), tokens, *status, Text())
                for name, _, track in methods
                for tokens, *status in [_answer(track, seconds, mask)]
            )
        )
    grid = Table.grid(expand=True)
    for _ in methods:
        grid.add_column(ratio=1)
    grid.add_row(
        *(
            Panel(
                Group(Text("Answer:", style="bold"), tokens, Text(), calls + ", " + ms),
                title=Text(f"{name}: {drafts}", style="bold"),
                title_align="left",
            )
            for name, drafts, track in methods
            for tokens, calls, ms in [_answer(track, seconds, mask)]
        )
    )
    return grid


def question(comparison: Comparison) -> Text:
    """The question of the shown problem.

    Args:
        comparison: What was measured.

    Returns:
        The text, labelled.
    """
    label = f"Question ({comparison.kind}, held out): "
    return Text.assemble((label, "bold"), printable(comparison.question))


def _answer(track: Track, seconds: float | None, mask: str) -> tuple[Text, Text, Text]:
    """The tokens of one decode at some moment, its calls so far, and its time."""
    is_over = seconds is None or seconds >= track.seconds
    num_calls = len(track.ends)
    ended = num_calls if seconds is None else track.calls_until(seconds)
    shown = track.seconds if is_over else seconds or 0.0
    tokens = render_tokens(
        track.views(ended),
        num_calls - 1,
        # A decode that is over rests.
        new_call=None if is_over else ended - 1,
        mask=mask,
    )
    done = (", done", "bold") if is_over else ""
    milliseconds = Text.assemble(f"{1e3 * shown:.1f} ms", done)
    return tokens, Text(f"call {ended} of {num_calls}"), milliseconds


def call_list(track: Track) -> Text:
    """What each call of a decode has written, in words, for where nothing moves.

    Args:
        track: The decode.

    Returns:
        The numbers of the calls, from 1, each with its tokens as quoted text; between
        tokens that are not neighbours stands "..".
    """
    last = len(track.ends) - 1
    parts = []
    for call in range(len(track.ends)):
        places = [i for i, one in enumerate(track.calls) if one == call]
        words = " .. ".join(
            json.dumps("".join(track.texts[i] for i in run), ensure_ascii=False)
            for run in _runs(places)
        )
        colour = call_colour(call, last)
        parts.append(Text.assemble((f"{call + 1} ", "bold"), (words or "-", colour)))
    return Text("  ").join(parts)


def _runs(places: list[int]) -> Iterator[list[int]]:
    """Ascending numbers as runs of neighbours."""
    for _, run in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        yield [place for _, place in run]


def legend(has_colour: bool, mask: str = MASK) -> Text:
    """What masks and colours mean.

    Args:
        has_colour: The terminal shows colours.
        mask: One cell of a position that is not decoded yet.

    Returns:
        The text.
    """
    text = Text(f"{mask * 3} not decoded yet")
    if has_colour:
        text.append("; colour: decoded by an ")
        text.append("early", call_colour(0, 2)).append(", ")
        text.append("middle", call_colour(1, 2)).append(" or ")
        text.append("late", call_colour(2, 2)).append(" network call")
    return text


def table(comparison: Comparison, width: int) -> RenderableType:
    """The table of all problems.

    Args:
        comparison: What was measured.
        width: Columns of the screen; in few of them, a list.

    Returns:
        What is printed.
    """
    found = rows(comparison)
    title = table_title(comparison)
    if width < SIDE_BY_SIDE:
        return Group(Text(f"{title}:", style="bold"), *map(_list_entry, found))
    view = Table(title=title, title_justify="left", title_style="bold")
    view.add_column("")
    view.add_column("static", justify="right")
    view.add_column("FreeDave", justify="right")
    view.add_column("FreeDave against static")
    for row in found:
        view.add_row(row.name, row.static or "-", row.freedave, row.ratio)
    return view


def _list_entry(row: Row) -> Text:
    lines = [f"  static {row.static}"] if row.static else []
    lines.append(f"  FreeDave {row.freedave}")
    lines += [f"  {row.ratio}"] if row.ratio else []
    return Text.assemble((f"{row.name}\n", "bold"), "\n".join(lines))


def show(
    comparison: Comparison, console: Console, factor: float, is_live: bool
) -> None:
    """Print all of it.

    Args:
        comparison: What was measured.
        console: Where to.
        factor: How many times slower than measured the decodes are shown.
        is_live: Show how they went; else only how they ended, at once, and the calls as
            a list.
    """
    c = comparison
    mask = ASCII_MASK if console.options.ascii_only else MASK
    has_colour = bool(console.color_system) and not console.no_color
    console.print(question(c))
    console.print()
    if is_live:
        console.print(legend(has_colour, mask))
        console.print(Text(f"Time as measured, {speed_words(factor)}."))
        play(c, console, factor, mask)
    else:
        console.print(picture(c, None, console.width, mask))
    if not (is_live and has_colour):
        console.print("What each call wrote (the first reads the question too):")
        for name, track in (("static", c.static), ("FreeDave", c.freedave)):
            console.print(Text.assemble((f"{name}: ", "bold"), call_list(track)))
        if any(set(range(len(t.ends))) - set(t.calls) for t in (c.static, c.freedave)):
            console.print(Text("-: only positions behind the end of the answer."))
    console.print(Text(f"The answer is {'right' if c.is_right else 'wrong'}."))
    console.print()
    console.print(table(c, console.width))
    for paragraph in (*explanation(c), method_words(c)):
        console.print()
        console.print(Text(paragraph))


def play(
    comparison: Comparison,
    console: Console,
    factor: float,
    mask: str = MASK,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show both decodes on one clock, and leave their ends on the screen.

    Args:
        comparison: What was measured.
        console: A terminal.
        factor: How many times slower than measured.
        mask: One cell of a position that is not decoded yet.
        clock: Gives seconds.
        sleep: Waits for some seconds.
    """

    def frame(seconds: float | None) -> RenderableType:
        return picture(comparison, seconds, console.width, mask)

    with Live(frame(0.0), console=console, auto_refresh=False) as live:
        start = clock()
        for moment in comparison.moments():
            while (rest := start + factor * moment - clock()) > 0:
                sleep(min(rest, _TICK))
                now = min((clock() - start) / factor, moment)
                live.update(frame(now), refresh=True)
        live.update(frame(None), refresh=True)
