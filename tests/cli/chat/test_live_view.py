"""An answer that is drawn: lines that stay, masks that fill in, any width."""

import io
import re

import pytest
from helpers import checkpoint_folders
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from jaxdave.cli.chat import live_view
from jaxdave.cli.chat.answering import Progress
from jaxdave.cli.chat.live_view import LiveView, break_lines
from jaxdave.cli.chat.plain_view import PlainView
from jaxdave.engine.sampler import AnswerSnapshot
from jaxdave.io.tokenizer import load_codec

CODEC = load_codec(checkpoint_folders.TOKENIZER)
TEXT = "Mia has 3 pens.\nShe buys 4 more pens, and gives half of them to Tom. #### 5"
IDS = tuple(CODEC.encode_text(TEXT))
MASK_ID = CODEC.mask_id


@given(st.text("ab \n語", max_size=60), st.integers(2, 9), st.integers(0, 60))
def test_broken_lines_are_the_text_and_stay(text, width, cut):
    lines = break_lines(text, width)
    assert "".join(lines) == text
    assert all(cell_len(line.rstrip()) <= width for line in lines)
    # Of a text that grows all lines but the last are there already.
    before = break_lines(text[:cut], width)[:-1]
    assert lines[: len(before)] == before


def snapshots(block: int = 4):
    """An answer block by block, every block first masked and then half of it."""
    for start in range(0, len(IDS), block):
        piece = IDS[start : start + block]
        for known in (0, len(piece) // 2):
            masks = (MASK_ID,) * (len(piece) - known)
            open_ids = masks + piece[len(piece) - known :]
            yield AnswerSnapshot(0, IDS[:start], open_ids, None)
    yield AnswerSnapshot(0, IDS, (), object())  # pyright: ignore


@pytest.fixture
def draws_all(monkeypatch):
    monkeypatch.setattr(live_view, "_FRAME_SECONDS", 0.0)


def console(width: int, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(
        file=file, force_terminal=True, width=width, height=8, color_system=None
    )


def written(console: Console) -> str:
    console.file.flush()
    return console.file.buffer.getvalue().decode(console.encoding)  # pyright: ignore


def without_controls(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


@pytest.mark.parametrize("width", [20, 80, 120])
def test_one_answer(draws_all, width):
    screen = console(width)
    with LiveView(screen, CODEC) as view:
        view.show(0, Progress())
        for snapshot in snapshots():
            view.show(0, Progress(snapshot, 0.1, is_compiled=True))
    shown = without_controls(written(screen))
    assert "░" in shown
    # In the end all lines are there once, in their order, after what was drawn over.
    end = "".join(line.rstrip() + "\n" for line in break_lines(TEXT, width))
    places = [shown.rindex(line) for line in end.splitlines()]
    assert places == sorted(places)
    assert all(cell_len(line) <= width for line in shown.splitlines())


def test_masks_are_ascii_where_they_must_be(draws_all):
    screen = console(80, "ascii")
    with LiveView(screen, CODEC) as view:
        for snapshot in snapshots():
            view.show(0, Progress(snapshot, 0.1, is_compiled=True))
    assert "____" in written(screen)


@pytest.mark.parametrize("width", [20, 80])
def test_two_answers(draws_all, width):
    screen = console(width)
    with LiveView(screen, CODEC, ("static", "freedave")) as view:
        for index in range(2):
            for snapshot in snapshots():
                view.show(index, Progress(snapshot, 0.1, is_compiled=True))
    lines = without_controls(written(screen)).splitlines()
    assert all(cell_len(line) <= width for line in lines)
    end = [line for line in lines[lines_from(lines, "static") :] if line.strip()]
    if width == 80:
        assert end[0].split() == ["static", "freedave"]
        assert end[1].split("  ", 1)[0] == end[1].split("  ", 1)[1].strip()
    else:
        assert [line.strip() for line in end if line.strip().isalpha()][0] == "static"
        assert "freedave" in map(str.strip, end)


def lines_from(lines: list[str], word: str) -> int:
    """The last line that begins with a word and has no counts."""
    places = [
        place
        for place, line in enumerate(lines)
        if line.startswith(word) and ":" not in line
    ]
    return places[-1]


def test_what_is_not_answered_leaves_nothing(draws_all):
    screen = console(80)
    with pytest.raises(KeyError), LiveView(screen, CODEC) as view:
        view.show(0, Progress(next(iter(snapshots())), 0.1, is_compiled=True))
        raise KeyError
    assert without_controls(written(screen)).strip().strip("░") == ""


def test_a_wait_is_explained(draws_all, monkeypatch):
    monkeypatch.setattr(live_view, "_SPINNER_SECONDS", 0.0)
    screen = console(80)
    with LiveView(screen, CODEC) as view:
        view.show(0, Progress())
        view.show(0, Progress(is_compiled=True))
    assert "compiling" in written(screen) and "reading the prompt" in written(screen)


def test_plain_text_is_only_added_to(capsys):
    half = CODEC.encode_text("é")[:1]
    with PlainView(CODEC) as view:
        view.show(0, Progress())
        one = AnswerSnapshot(0, tuple(half), (), None)
        view.show(0, Progress(one, 0.1, is_compiled=True))
        assert capsys.readouterr().out == ""
        for snapshot in snapshots():
            view.show(0, Progress(snapshot, 0.1, is_compiled=True))
            view.show(1, Progress(snapshot, 0.1, is_compiled=True))
    assert capsys.readouterr().out == TEXT + "\n"
