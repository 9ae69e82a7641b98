"""Messages of one line, whatever the files that they quote have in them."""


def one_line(text: object) -> str:
    """A text as one line that a terminal prints and does not obey.

    Args:
        text: Any text, or an error.

    Returns:
        The text with single spaces for all blanks, and escapes for what cannot be
        printed: control characters and halves of characters.

    Example:
        >>> one_line("a\\n  b\\x1b[31m")
        'a b\\\\x1b[31m'
    """
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
