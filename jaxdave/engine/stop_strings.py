"""Stop strings: the texts before which an answer ends, found in its decoded text.

They are looked for in text and not among token ids, as one may begin or end within a
token. While an answer grows, only that part of it may be shown which nothing that
follows can take back: not a stop string's beginning, nor half a character.
"""

import bisect
import re
from collections.abc import Callable, Sequence
from typing import Any

HALF_CHARACTER = "\ufffd"
"""What a decoder shows where the bytes of a character are not complete."""
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.|$)", re.S)
_CHARACTERS = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def check_stops(stop: Any) -> tuple[str, ...]:
    """Check the stop strings that a caller gives; Python's are taken as they are.

    Args:
        stop: A text or a sequence of texts; none: `()` or None.

    Returns:
        The texts.

    Raises:
        ValueError: One is empty, which would end every answer before it begins, or is
            no text.

    Example:
        >>> check_stops("END"), check_stops(["a", "b"]), check_stops(None)
        (('END',), ('a', 'b'), ())
    """
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple):
        raise ValueError(f"stop={str(stop)[:60]!r} must be a text, or a list of texts")
    for one in stops:
        if not isinstance(one, str):
            raise ValueError(f"stop={str(one)[:60]} must be a text; put it in quotes")
        if not one:
            raise ValueError(
                "stop='' is empty and would end every answer before it begins; leave "
                "it out"
            )
    return tuple(stops)


def unescape(text: str) -> str:
    r"""A stop string as a command line gives it, with the usual backslash escapes.

    A shell has no plain way to write a line feed, so that `--stop "\n\n"` means two.

    Args:
        text: Text in which \n, \r, \t, \\, \xHH, \uHHHH and \UHHHHHHHH stand for
            characters.

    Returns:
        The text that is meant.

    Raises:
        ValueError: Another character, or none, follows a backslash.

    Example:
        >>> unescape(r"\n#\\")
        '\n#\\'
    """

    def character(match: re.Match[str]) -> str:
        code = match[1]
        if code in _CHARACTERS:
            return _CHARACTERS[code]
        number = int(code[1:], 16) if len(code) > 1 else None
        # Half of a surrogate pair is no character, and no answer holds one.
        if number is None or number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise ValueError(
                f"stop={text[:60]!r} has the unknown escape {match[0]!r}; use \\n, "
                "\\r, \\t, \\xHH or \\uHHHH, and \\\\ for a backslash"
            )
        return chr(number)

    return _ESCAPE.sub(character, text)


def has_escapes(text: str) -> bool:
    r"""True if a text holds what elsewhere would be a line feed or a tab.

    Args:
        text: A stop string that is taken as it is.

    Returns:
        True for a backslash before n, r or t.

    Example:
        >>> has_escapes(r"\n\n"), has_escapes("\n\n")
        (True, False)
    """
    return re.search(r"\\[nrt]", text) is not None


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Cut a text before the first of the stop strings in it.

    Args:
        text: The text.
        stops: Stop strings; empty ones are ignored.

    Returns:
        The text before it; all of it if no stop string is there.

    Example:
        >>> cut_at_stop("one two", ["tw", " "])
        'one'
    """
    positions = [text.find(stop) for stop in stops if stop]
    return text[: min((p for p in positions if p >= 0), default=len(text))]


def settled_length(text: str, stops: Sequence[str]) -> int:
    """How much of a growing text belongs to the answer whatever follows.

    Args:
        text: The text so far.
        stops: Stop strings.

    Returns:
        Characters before the first place where a stop string stands or has begun.

    Example:
        >>> settled_length("one tw", ["two"]), settled_length("one tw", ["w", "two"])
        (4, 4)
    """
    text = text.rstrip(HALF_CHARACTER)
    end = len(cut_at_stop(text, stops))
    for stop in stops:
        # The longest end of the text that begins this stop string.
        for first in range(max(0, len(text) - len(stop) + 1), min(end, len(text))):
            if stop.startswith(text[first:]):
                end = first
                break
    return end


def is_final(text: str, stops: Sequence[str]) -> bool:
    """Tell if no continuation changes what `cut_at_stop` returns.

    A longer stop string may yet turn out to begin before the one that was found, and
    half a character at the end may yet become another.

    Args:
        text: The text so far.
        stops: Stop strings.

    Returns:
        True if the cut text is final.

    Example:
        >>> is_final("ab", ["b"]), is_final("ab", ["b", "ab c"])
        (True, False)
    """
    text = text.rstrip(HALF_CHARACTER)
    end = len(cut_at_stop(text, stops))
    return end < len(text) and settled_length(text, stops) == end


def num_ids_of(
    text: str, token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> int:
    """How many of an answer's ids its cut text needs.

    Args:
        text: The beginning of the answer's text.
        token_ids: Ids of the whole answer.
        decode: Maps ids to their text.

    Returns:
        The least number of ids whose text holds it.
    """

    def holds(count: int) -> bool:
        return len(decode(token_ids[:count]).rstrip(HALF_CHARACTER)) >= len(text)

    counts = range(len(token_ids) + 1)
    return min(bisect.bisect_left(counts, True, key=holds), len(token_ids))
