"""Equality of two mathematical answers, by their normalised spelling and exact value.

This decides the frequent cases (numbers, fractions, the same LaTeX) quickly and without
dependencies; what it leaves open is for a computer algebra system.
"""

import re
from fractions import Fraction

_SPACES = re.compile(r"\\[!,;: ]|~|\s+")
# Markup and units that do not change a value. `\left` is not the start of `\leftarrow`.
_IGNORED = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\\$|\$|\\%|%|\^\{?\\circ\}?|"
    r"\\degree"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\{([^{}]*)\}")
# `x=`, `f(x)=` and `x\in` in front of an answer.
_LEFT_SIDE = re.compile(r"^[A-Za-z](?:\([a-z]\))?(?:=|\\in)")
_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3})((?:(?:,|\{,\})\d{3})+)(?!\d)")
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_FRACTION = re.compile(r"([-+]?)\\frac\{(-?\d+)\}\{(-?\d+)\}")
_SLASH_FRACTION = re.compile(r"([-+]?\d+)/(\d+)")
_UNBRACED = re.compile(r"\\(frac|sqrt)(?=[^{\[])")
_WITH_UNIT = re.compile(r"([-$\d.,]+) [A-Za-z]{3,}(?: [A-Za-z]+)*\.?")
_MAX_LENGTH = 2000


def answers_equal(gold: str, answer: str) -> bool | None:
    r"""Compare two answers by spelling and by value.

    Numbers are compared as exact fractions. Commas between thousands, leading zeros,
    units after a number, and currency, per cent and degree signs do not count; but a
    number with a per cent sign and one without are left undecided.

    Args:
        gold: The reference answer.
        answer: The answer of a model. An empty one, or one above 2000 characters, is
            unequal to everything.

    Returns:
        True or False where spelling and value decide; None where they do not.

    Example:
        >>> answers_equal(r"\frac{1}{2}", "0.5"), answers_equal("18", "19")
        (True, False)
        >>> answers_equal("(x+1)^2", "x^2+2x+1") is None
        True
    """
    if not answer or max(len(gold), len(answer)) > _MAX_LENGTH:
        return False
    gold_text, answer_text = normalise(gold), normalise(answer)
    if gold_text == answer_text:
        return True
    values = parse_number(gold_text), parse_number(answer_text)
    if None in values or ("%" in gold) != ("%" in answer):
        return None
    return values[0] == values[1]


def parse_number(text: str) -> Fraction | None:
    r"""Parse an integer, a decimal, or a fraction of integers.

    Args:
        text: A normalised answer.

    Returns:
        The exact value; None if the text is anything else, or divides by zero.

    Example:
        >>> parse_number("-0.5"), parse_number(r"-\frac{1}{2}"), parse_number("1/2")
        (Fraction(-1, 2), Fraction(-1, 2), Fraction(1, 2))
    """
    plain = text.replace(" ", "")
    if _DECIMAL.fullmatch(plain):
        return Fraction(plain.rstrip("."))
    match = _FRACTION.fullmatch(plain)
    if match:
        sign, numerator, denominator = match.groups()
    else:
        match = _SLASH_FRACTION.fullmatch(plain)
        # "0/0" stands for no match; the check of the denominator rejects it.
        sign = ""
        numerator, denominator = match.groups() if match else ("0", "0")
    if int(denominator) == 0:
        return None
    value = Fraction(int(numerator), int(denominator))
    return -value if sign == "-" else value


def normalise(text: str) -> str:
    r"""Give answers that differ in spelling only the same text.

    Args:
        text: An answer, in LaTeX or plain.

    Returns:
        The answer without white space, markup, units and a left side such as `x=`.

    Example:
        >>> normalise(r"x = \dfrac12"), normalise("1,234 gold coins.")
        ('\\frac{1}{2}', '1234')
    """
    # The order matters: a unit is recognised by the space before it, so units go
    # before spaces; thousands are recognised after spaces such as `\,` are gone.
    text = _TEXT_COMMAND.sub(r"\1", text.strip())
    number_and_unit = _WITH_UNIT.fullmatch(text)
    text = number_and_unit[1] if number_and_unit else text
    text = _IGNORED.sub("", text)
    text = _SPACES.sub("", text).rstrip(".")
    text = _THOUSANDS.sub(lambda match: match[1] + re.sub(r"\D", "", match[2]), text)
    text = _LEFT_SIDE.sub("", text)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _with_braces(text)


def _with_braces(text: str) -> str:
    r"""Write `\frac12` as `\frac{1}{2}` and `\sqrt3` as `\sqrt{3}`."""
    parts = _UNBRACED.split(text)
    result = parts[0]
    for command, rest in zip(parts[1::2], parts[2::2], strict=True):
        num_arguments = 2 if command == "frac" else 1
        result += "\\" + command
        while num_arguments and rest and rest[0] not in "{\\":
            result += "{" + rest[0] + "}"
            rest = rest[1:]
            num_arguments -= 1
        result += rest
    return result
