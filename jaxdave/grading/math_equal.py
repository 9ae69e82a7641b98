"""Whether two mathematical answers are the same, by their spelling and their value."""

import re
from fractions import Fraction

_SPACES = re.compile(r"\\[!,;: ]|~|\s+")
_DROPPED = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\\$|\$|\\%|%|\^\{?\\circ\}?|"
    r"\\degree"
)
_NAMED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\{([^{}]*)\}")
_HEAD = re.compile(r"^[A-Za-z](?:\([a-z]\))?(?:=|\\in)")
_GROUPED = re.compile(r"(?<![\d.])(\d{1,3})((?:(?:,|\{,\})\d{3})+)(?!\d)")
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_FRACTION = re.compile(r"([-+]?)\\frac\{(-?\d+)\}\{(-?\d+)\}")
_SLASHED = re.compile(r"([-+]?\d+)/(\d+)")
_SHORT = re.compile(r"\\(frac|sqrt)(?=[^{\[])")
_UNIT = re.compile(r"([-$\d.,]+) [A-Za-z]{3,}(?: [A-Za-z]+)*\.?")
_LONGEST = 2000


def same(gold: str, found: str) -> bool | None:
    """Whether two answers are equal; None where spelling and value do not tell.

    Numbers are compared as exact fractions: commas between thousands, leading zeros,
    currency, per cent and degree signs do not count.
    """
    if not found or max(len(gold), len(found)) > _LONGEST:
        return False
    one, other = normal(gold), normal(found)
    if one == other:
        return True
    values = number(one), number(other)
    if None in values or ("%" in gold) != ("%" in found):
        return None
    return values[0] == values[1]


def number(text: str) -> Fraction | None:
    """The value of an integer, a decimal or a fraction of integers."""
    plain = text.replace(" ", "")
    if _DECIMAL.fullmatch(plain):
        return Fraction(plain.rstrip("."))
    found = _FRACTION.fullmatch(plain)
    sign, above, below = found.groups() if found else ("", "", "")
    if not found:
        found = _SLASHED.fullmatch(plain)
        above, below = found.groups() if found else ("0", "0")
    if int(below) == 0:
        return None
    value = Fraction(int(above), int(below))
    return -value if sign == "-" else value


def normal(text: str) -> str:
    """One spelling for answers that differ in spelling only."""
    text = _NAMED.sub(r"\1", text.strip())
    united = _UNIT.fullmatch(text)
    text = united[1] if united else text
    text = _DROPPED.sub("", text)
    text = _SPACES.sub("", text).rstrip(".")
    text = _GROUPED.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = _HEAD.sub("", text)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _braced(text)


def _braced(text: str) -> str:
    r"""`\\frac12` as `\\frac{1}{2}`, `\\sqrt3` as `\\sqrt{3}`."""
    parts = _SHORT.split(text)
    made = parts[0]
    for name, rest in zip(parts[1::2], parts[2::2], strict=True):
        wanted = 2 if name == "frac" else 1
        made += "\\" + name
        while wanted and rest and rest[0] not in "{\\":
            made, rest, wanted = made + "{" + rest[0] + "}", rest[1:], wanted - 1
        made += rest
    return made
