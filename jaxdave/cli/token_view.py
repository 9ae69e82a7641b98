"""Tokens of an answer as a terminal shows them: text, masks, and a colour by call.

Pure functions from tokens to text, for every live view of a decode. What a model writes
may be anything, so nothing reaches the terminal that could steer it.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from jaxdave.io.tokenizer import Codec

MASK, ASCII_MASK = "░", "_"
"""A cell of a position that is not decoded yet, and where only ASCII is written."""
# Blue, magenta, orange: each can be read on black and on white.
_COLOURS = (76, 120, 232), (194, 84, 157), (217, 115, 13)
_TAB = "    "
# They join the letters and signs of one character, and move nothing.
_JOINERS = "\u200c\u200d"


@dataclasses.dataclass(frozen=True)
class TokenView:
    """One position of an answer at some moment.

    Attributes:
        text: Its text (`token_texts`). Of a position that is masked still, the text
            that will come, so that nothing moves when it does; None: not known.
        call: The call that made it known, 0 for the prefill; None: it is masked.
    """

    text: str | None
    call: int | None


def printable(text: str) -> str:
    """A text as it can be shown anywhere.

    Args:
        text: Any text.

    Returns:
        The text with its line ends. Other control and format characters, among them
        those that begin a terminal's commands or turn the direction of writing, are
        written as escapes such as \\x1b.
    """
    return "".join(map(_printable_character, text.replace("\r\n", "\n")))


def _printable_character(character: str) -> str:
    if character.isprintable() or character == "\n" or character in _JOINERS:
        return character
    if character == "\t":
        return _TAB
    if character.isspace() and ord(character) > 0x7F and character not in "\x85":
        return "\n" if character in "\u2028\u2029" else " "
    return ascii(character)[1:-1]


def token_texts(codec: "Codec", token_ids: Sequence[int]) -> list[str | None]:
    """The text that each token adds, masks and special tokens told apart.

    Args:
        codec: Decodes the ids.
        token_ids: Any ids, such as a block that is being denoised.

    Returns:
        A printable text for every id, and None for a mask. A special token is named,
        "<end>" for one that ends an answer. A character that is spread over several
        tokens comes with the last of them.
    """
    from jaxdave.engine.text_stream import split_text

    texts: list[str | None] = []
    run: list[int] = []  # ordinary tokens that have not been decoded yet
    for id_ in token_ids:
        if id_ != codec.mask_id and not _is_special(codec, id_):
            run.append(id_)
            continue
        texts += map(printable, split_text(codec.decode, run))
        run = []
        texts.append(None if id_ == codec.mask_id else _special_text(codec, id_))
    return texts + [printable(piece) for piece in split_text(codec.decode, run)]


def _is_special(codec: "Codec", id_: int) -> bool:
    # Twice, as some tokenizers drop the space that a text begins with.
    return id_ in codec.stop_ids or codec.decode([id_, id_]) == ""


def _special_text(codec: "Codec", id_: int) -> str:
    if id_ in codec.stop_ids:
        return "<end>"
    return "<pad>" if id_ == codec.pad_id else f"<token {id_}>"


def masked_text(text: str | None, mask: str = MASK) -> str:
    """What is shown of a position that is not decoded yet.

    Args:
        text: The text that will come; None: not known.
        mask: One cell of it.

    Returns:
        Masks as wide as the text, its spaces and line ends kept, so that lines are
        broken where they will be; one mask where the text is blank or not known.
    """
    if text is None or text.isspace():
        return mask + ("" if text is None else "\n" * text.count("\n"))
    return "".join(
        character if character.isspace() else mask * cell_len(character)
        for character in text
    )


def render_tokens(
    views: Sequence[TokenView],
    last_call: int,
    *,
    new_call: int | None = None,
    mask: str = MASK,
) -> Text:
    """Tokens in the colours of the calls that made them known.

    Args:
        views: The positions in order.
        last_call: The call of the last colour.
        new_call: Tokens of this call stand out, without colours as well; None: none do.
        mask: One cell of a position that is not decoded yet.

    Returns:
        The text. Masks are dim.
    """
    text = Text()
    for view in views:
        if view.call is None:
            text.append(masked_text(view.text, mask), style="dim")
            continue
        is_new = view.call == new_call
        style = call_colour(view.call, last_call)
        text.append(view.text or "", style=f"bold reverse {style}" if is_new else style)
    return text


def call_colour(call: int, last_call: int) -> str:
    """The colour of a call.

    Args:
        call: The call, 0 for the prefill.
        last_call: The call of the last colour.

    Returns:
        A colour of rich, and of a style sheet: "rgb(76,120,232)" for the first.
    """
    place = min(call / max(last_call, 1), 1) * (len(_COLOURS) - 1)
    index = min(int(place), len(_COLOURS) - 2)
    low, high = _COLOURS[index : index + 2]
    part = place - index
    mixed = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return f"rgb({','.join(map(str, mixed))})"
