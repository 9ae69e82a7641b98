"""Tokens on a screen: masks, special tokens, and text that could steer a terminal."""

from types import SimpleNamespace

import pytest
from helpers import checkpoint_folders
from rich.cells import cell_len
from rich.console import Console

from jaxdave.cli import token_view
from jaxdave.cli.token_view import TokenView
from jaxdave.io.tokenizer import load_codec


@pytest.fixture(scope="module")
def codec():
    return load_codec(checkpoint_folders.TOKENIZER)


def painted(text, **options) -> str:
    console = Console(force_terminal=True, color_system="truecolor", **options)
    with console.capture() as capture:
        console.print(text)
    return capture.get()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b\nc", "a b\nc"),
        ("a\r\nb", "a\nb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("\r\x00\x07\x7f", "\\r\\x00\\x07\\x7f"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("a\u2028b\xa0c\td", "a\nb c    d"),
        ("e\u0301 漢 👩\u200d🔬", "e\u0301 漢 👩\u200d🔬"),
        ("\ud800\ue000", "\\ud800\\ue000"),
    ],
)
def test_nothing_steers_the_terminal(text, shown):
    assert token_view.printable(text) == shown


def test_tokens_masks_and_special_tokens_are_told_apart(codec):
    half, end = codec.encode_answer("é")[:-1], codec.stop_ids[0]
    assert len(half) == 2
    ids = [*codec.encode_answer("pens")[:-1], codec.mask_id, *half, end]
    texts = token_view.token_texts(codec, ids)
    assert len(texts) == len(ids)
    assert texts[-4:] == [None, "", "é", "<end>"]
    assert "".join(text or "" for text in texts[:-4]) == "pens"
    # What stands behind the mask is not known yet, and is half a character until then.
    assert token_view.token_texts(codec, [half[0], codec.mask_id]) == ["\ufffd", None]


def test_other_special_tokens_have_names():
    # Drops the space that a text begins with, and its special tokens, 7 to 9.
    def decode(ids):
        return "".join(" " for i in ids if i < 7)[1:]

    codec = SimpleNamespace(decode=decode, mask_id=9, stop_ids=(8,), pad_id=7)
    found = token_view.token_texts(codec, [1, 1, 9, 7, 8])  # pyright: ignore
    assert found == ["", " ", None, "<pad>", "<end>"]
    codec.pad_id = 8
    assert token_view.token_texts(codec, [7]) == ["<token 7>"]  # pyright: ignore


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (" pens", " ░░░░"),
        ("漢e\u0301", "░░░"),
        ("\n", "░\n"),
        (" ", "░"),
        ("", ""),
        (None, "░"),
        ("a\n\nb", "░\n\n░"),
    ],
)
def test_masks_are_as_wide_as_the_text(text, masked):
    assert token_view.masked_text(text) == masked
    assert token_view.masked_text(text, "_") == masked.replace("░", "_")
    if text and not text.isspace():
        assert cell_len(masked) == cell_len(text)


def test_colours_tell_the_calls():
    views = [TokenView("a", 0), TokenView("b", 5), TokenView("cd", None)]
    text = token_view.render_tokens(views, 5, new_call=5)
    assert text.plain == "ab░░"
    out = painted(text)
    assert "\x1b[38;2;76;120;232ma" in out
    assert "\x1b[1;7;38;2;217;115;13mb" in out
    assert "\x1b[2m░░" in out
    # Without colours, what is new still stands out.
    assert "\x1b[1;7mb" in painted(text, no_color=True)


def test_colours_stay_within_their_ends():
    assert token_view.call_colour(0, 0) == token_view.call_colour(0, 9)
    assert token_view.call_colour(9, 9) == token_view.call_colour(12, 9)
    assert len({token_view.call_colour(call, 40) for call in range(41)}) == 41
