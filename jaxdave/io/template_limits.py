"""What a single operation of a chat template may make.

Lines of a template are counted as they run, and variables are looked at between them
(`chat_template`), which comes too late for one operation that fills the memory: a
replacement of every character by a megabyte. So what may multiply its operands is
bounded before it runs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

MAX_SIZE = 50_000_000
"""Bytes that a text, or a variable of a template, may take."""
_MAX_NUMBER = 1_000_000
"""Largest number that a template may give to an operation that repeats or pads."""
_MAX_INDENT = 100
_LONGEST_NUMBER = 20


class LimitError(Exception):
    """A template has run too long, or made something too large."""


def check_number(value: Any, largest: int = _MAX_NUMBER) -> None:
    """Refuse a number that is too large to repeat or pad with.

    Args:
        value: An operand; what is no number is let through.
        largest: The largest that may be.

    Raises:
        LimitError: It is larger.
    """
    if isinstance(value, int) and abs(value) > largest:
        raise LimitError(f"the number {str(value)[:20]}")


def check_format(text: str, values: Sequence[Any]) -> None:
    """Refuse a format that pads without measure, or repeats what is long.

    Args:
        text: The format, of either kind.
        values: What is put into it.

    Raises:
        LimitError: It has a width of seven digits or more, such as "%9999999d", or
            would make too long a text.
    """
    digits = 0
    for character in text:
        digits = digits + 1 if character.isdigit() else 0
        if digits > 6:
            raise LimitError("a number in a format")
    places = text.count("{") + text.count("%")
    _check_size(places * max(map(deep_size, values), default=0), "format")


def check_repetition(value: Any, count: Any) -> None:
    """Refuse a text or a list repeated too often.

    Args:
        value: One operand of a product.
        count: The other one.

    Raises:
        LimitError: The result would be too large.
    """
    if isinstance(count, int) and hasattr(value, "__len__"):
        _check_size(count * deep_size(value), f"a text repeated {count} times")


def check_result(name: str, subject: Any, values: Sequence[Any]) -> None:
    """Refuse an operation on a text or a list that would make something too large.

    Args:
        name: Of the filter, or of the method.
        subject: What it is applied to; for "join" the list.
        values: Its further operands; for "join" the separator.

    Raises:
        LimitError: The result may be larger than `MAX_SIZE`.
    """
    numbers = [value for value in values if isinstance(value, int)]
    texts = [value for value in values if isinstance(value, str)]
    if name == "join":
        _check_size(deep_size(subject) + len(subject) * deep_size(texts), name)
    elif name in ("string", "pprint"):
        _check_size(deep_size(subject), name)
    elif name == "tojson":
        for number in numbers:
            check_number(number, _MAX_INDENT)
        _check_size(deep_size(subject), name)
    elif not isinstance(subject, str):
        return
    elif name == "replace" and texts[1:]:
        _check_size(subject.count(texts[0]) * len(texts[1]), name)
    elif name in ("indent", "expandtabs", "wordwrap"):
        places = subject.count("\n") + subject.count("\t") + 1
        places = len(subject) if name == "wordwrap" else places
        width = max(map(len, texts), default=0)
        width = width if name == "wordwrap" else max([width, *numbers])
        _check_size(places * width, name)


def limited(name: str, function: Callable[..., Any], first: int = 0) -> Any:
    """A filter that is checked before it runs.

    Args:
        name: Its name.
        function: The filter.
        first: Index of the argument that it is applied to: 1 where Jinja passes its
            environment first.

    Returns:
        The filter with its checks.
    """

    def checked(*args: Any, **kwargs: Any) -> Any:
        values = [*args[first + 1 :], *kwargs.values()]
        for value in values:
            if name != "tojson":
                check_number(value)
        subject = args[first] if args[first:] else None
        if name == "join" and not isinstance(subject, str | list | tuple):
            # What a generator gives is not known before it has run.
            subject = list(_within_size(subject or (), name))
            args = (*args[:first], subject, *args[first + 1 :])
        if name == "format":
            check_format(str(subject), values)
        else:
            check_result(name, subject, values)
        result = function(*args, **kwargs)
        # Its items are made one by one, whenever another operation asks for them.
        return _within_size(result, name) if name == "map" else result

    # Jinja marks filters that want the environment by an attribute.
    checked.__dict__.update(function.__dict__)
    return checked


def deep_size(value: Any) -> int:
    """Roughly the characters of a value written out.

    Args:
        value: A text, a list or mapping of such, or anything else.

    Returns:
        The number; lists in lists count by their own entries.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(deep_size(k) + deep_size(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return sum(map(deep_size, value))
    return _LONGEST_NUMBER


def _within_size(items: Iterable[Any], what: str) -> Iterator[Any]:
    """Pass items on until together they are too large."""
    size = 0
    for item in items:
        size += deep_size(item)
        _check_size(size, what)
        yield item


def _check_size(size: int, what: str) -> None:
    if size > MAX_SIZE:
        raise LimitError(f"{what}, which makes more than {MAX_SIZE} characters")
