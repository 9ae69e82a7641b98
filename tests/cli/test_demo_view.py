"""The demo's screens: at every width, with colours and without, and in a pipe."""

import dataclasses
import io

import pytest
from helpers.demo_comparisons import STATIC, TEXTS, comparison
from rich.cells import cell_len
from rich.console import Console

from jaxdave.cli import demo_view

MEASURED = (
    "the same texts as static",
    "2.33 times fewer",
    "1.25 times faster",
    "1.87 times",
    "0.020",
    "0.016",
    "tiny",
)


class AsciiFile(io.StringIO):
    """What a terminal without other letters is."""

    encoding = "ascii"


def printed(renderable, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def shown(made, *, width=80, file=None, **options) -> str:
    file = file or io.StringIO()
    console = Console(file=file, width=width, **options)
    demo_view.show(made, console, 400, is_live=False)
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_everything_is_said_at_every_width(width):
    out = shown(comparison(), width=width)
    assert "\x1b" not in out
    assert max(map(cell_len, out.splitlines())) <= width
    words = " ".join(out.split())
    for text in (
        *MEASURED,
        "Question (word problem, held out):",
        "How many are there?",
    ):
        assert text in words
    assert "…" not in out
    # Each answer is labelled, and complete: a mask would be a token left out.
    assert words.lower().count("answer:") == 2 and words.count("<end>") >= 4
    assert "░" not in out


def test_a_pipe_is_told_what_each_call_wrote():
    words = " ".join(shown(comparison(), width=200).split())
    assert 'static: 1 "1" 2 "+1=" 3 "2" 4 "####" 5 "\\n" 6 " 2" 7 "<end>"' in words
    assert 'FreeDave: 1 "1" 2 "+1=2\\n" 3 "#### 2<end>"' in words
    # Tokens that are no neighbours are told apart, and a call may fill none of them.
    track = dataclasses.replace(STATIC, calls=(0, 2, 0, 2, 2, 2, 2))
    found = demo_view.call_list(track).plain
    assert found.startswith('1 "1" .. "2"  2 -  3 "+1=" .. "\\n#### 2<end>"  4 -')
    assert "-: only positions behind" in shown(comparison(static=track))
    assert "-: only positions behind" not in shown(comparison())


def test_answers_stand_side_by_side_where_there_is_room():
    wide = printed(demo_view.picture(comparison(), None, 80), 80)
    assert any(line.count("1+1=2") == 2 for line in wide.splitlines())
    narrow = printed(demo_view.picture(comparison(), None, 40), 40)
    assert narrow.index("static") < narrow.index("FreeDave")
    assert not any(line.count("1+1=2") == 2 for line in narrow.splitlines())


@pytest.mark.parametrize("width", [20, 80])
def test_nothing_moves_while_masks_fill_in(width):
    made = comparison()
    pictures = [
        printed(demo_view.picture(made, seconds, width), width).splitlines()
        for seconds in (0.0, *made.moments())
    ]
    assert len({len(lines) for lines in pictures}) == 1
    counts = ["".join(lines).count("░") for lines in pictures]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0
    assert counts[0] == 2 * (sum(len(t.strip(" \n")) for t in TEXTS) + 1)


def test_one_clock_for_both():
    picture = printed(demo_view.picture(comparison(), 0.0062, 80))
    assert "call 3 of 7, 6.2 ms" in picture and "call 2 of 3, 6.2 ms" in picture
    picture = printed(demo_view.picture(comparison(), 0.0085, 80))
    assert "call 5 of 7, 8.5 ms" in picture and "call 3 of 3, 8.0 ms, done" in picture


def test_only_ascii_where_nothing_else_is_written():
    made = comparison(question="How many?")
    out = shown(made, file=AsciiFile())
    assert out.isascii()
    assert "___" in demo_view.legend(True, "_").plain


def test_without_colours_nothing_is_said_of_colours():
    assert "colour" in demo_view.legend(True).plain
    assert demo_view.legend(False).plain == "░░░ not decoded yet"


def test_live_frames_follow_the_measured_time():
    file, slept = io.StringIO(), []
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    made, factor = comparison(), 100
    demo_view.play(made, console, factor, clock=lambda: sum(slept), sleep=slept.append)
    assert sum(slept) == pytest.approx(factor * made.seconds)
    out = file.getvalue()
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1
    # Every call of both was seen, in its turn.
    for calls, name in ((7, "of 7"), (3, "of 3")):
        places = [out.index(f"call {call} {name}") for call in range(1, calls + 1)]
        assert places == sorted(places)
    assert "░" not in out[out.rindex("╭─ static") :]


def test_what_a_model_writes_cannot_steer_the_terminal():
    track = dataclasses.replace(STATIC, texts=("[red]", *STATIC.texts[1:]))
    made = comparison(question="\x1b[2J[bold]", static=track)
    out = shown(made)
    assert "\\x1b[2J[bold]" in out and "[red]+1=2" in out
