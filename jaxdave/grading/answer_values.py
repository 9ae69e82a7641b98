r"""Answers by their structure: numbers, lists, pairs, sets, intervals, matrices, words.

A text may have more than one reading: `5 m` is a length or a product, `(1,200, 5)` a
pair or a triple. All of them are returned, and answers agree if one reading of each
does.
"""

import dataclasses
import re
from collections.abc import Iterator
from fractions import Fraction

from jaxdave.grading import exact, expressions, quantities, spelling
from jaxdave.grading.exact import UndecidedError, Value
from jaxdave.grading.expressions import WordsError
from jaxdave.grading.quantities import Unit

MAX_ITEMS = 64
MAX_DEPTH = 12
"""Largest number of brackets inside each other."""
_INFINITY = re.compile(r"([+-]?)\s*(?:\\infty|infinity|infty|inf|oo)")
_BASED = re.compile(
    r"\(?([0-9A-Fa-f]+)\)?\s*_\s*\{?\s*\(?\s*(\w+)\s*\)?\s*\}?", re.ASCII
)
_TIGHT_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_SPACED_THOUSANDS = re.compile(
    r"(?<![\d.,/] )(?<![\d.,/])\d{1,3}(?: \d{3})+(?! ?[\d/])"
)
_OTHER_THOUSANDS = re.compile(
    r"(?<![\d.,_'])\d{1,3}(?:(?:_\d{3})+|(?:'\d{3})+|(?:\.\d{3}){2,})(?![\d_'.])"
)
_CONJUNCTION = re.compile(r"(?:,\s*|\s+)(?:and|or)\s+", re.IGNORECASE)
_LEFT_SIDE = re.compile(
    r"((?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?(?:\s*\(\s*[A-Za-z]\s*\))?)\s*"
    r"(?:=|\\in(?![a-z])|:(?=\s))\s*(?=\S)"
)
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-z])|<=|>=|!=|<|>|=")
_MATRIX = re.compile(
    r"\\begin\{([pbBvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", re.DOTALL
)
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-z])|\+/-|\+-")
TIME = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)(?:\s*([AaPp])\.?[Mm]\.?)?")
"""A time of day, which may also be a ratio."""
_RATIO = re.compile(r"[^:<>=]+(?::[^:<>=]+)+")
_OPENERS, _CLOSERS = "([", ")]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """A number or a polynomial.

    Attributes:
        value: The exact value.
        unit: Its unit, if it has a known one.
        variable: The left side before it, such as `x`; empty without one.
    """

    value: Value
    unit: Unit | None = None
    variable: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Based:
    """Digits in a base that is written with them.

    Attributes:
        digits: The digits, in capitals, without leading zeros.
        base: The base, in digits.
    """

    digits: str
    base: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infinity:
    """An infinite bound.

    Attributes:
        sign: 1 or -1.
    """

    sign: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """A text that is no mathematics.

    Attributes:
        text: The text in small letters.
    """

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Several answers together.

    Attributes:
        kind: "list" without brackets, "{}" a set, "matrix", "row" of a matrix, "cup" a
            union; else the two brackets of a tuple or an interval.
        items: The answers in their order.
        variable: The left side before it, such as `x`; empty without one.
    """

    kind: str
    items: tuple["Answer", ...]
    variable: str = ""


Answer = Number | Based | Infinity | Words | Group


def readings(text: str) -> tuple[Answer, ...]:
    """Parse an answer.

    Args:
        text: An answer, in LaTeX or plain.

    Returns:
        Its readings, at least one.

    Raises:
        UndecidedError: The answer is mathematics of a kind that is not read here.

    Example:
        >>> (answer,) = readings("(1, 2]")
        >>> answer.kind, len(answer.items)
        ('(]', 2)
    """
    text = quantities.digits_for_words(spelling.clean(text))
    if max((depth for _, depth in _depths(text)), default=0) > MAX_DEPTH:
        raise UndecidedError("deep nesting")
    found: list[Answer] = []
    # The second reading is for letters that could be units, and for tight commas.
    for is_second in (False, True):
        answer = _parse(text, is_second)
        if answer not in found:
            found.append(answer)
    return tuple(found)


def _parse(text: str, is_second: bool) -> Answer:
    """One reading of a text."""
    text = _join_thousands(text)
    variable = ""
    match = _LEFT_SIDE.match(text)
    while match:
        variable, text = match[1].replace(" ", ""), text[match.end() :]
        match = _LEFT_SIDE.match(text)
    text = _one_side(text, is_second)
    parts = [p for part in _split(text, ",;") for p in _CONJUNCTION.split(part)]
    parts = [part.strip() for part in parts if part.strip()]
    if len(parts) > MAX_ITEMS:
        raise UndecidedError("long list")
    if len(parts) > 1 and variable:
        parts[0] = f"{variable}={parts[0]}"
    if len(parts) > 1:
        items = tuple(_flat(_parse(part, is_second) for part in parts))
        total = None if "," in text else _total(items)
        return total or Group(kind="list", items=items)
    answer = _parse_item(parts[0] if parts else text, is_second)
    if isinstance(answer, (Number, Group)) and variable:
        return dataclasses.replace(answer, variable=variable)
    return answer


def _one_side(text: str, is_second: bool) -> str:
    """What stands before `\\approx`, or in the second reading behind it."""
    sides = text.split("\\approx")
    return sides[-1 if is_second or not sides[0].strip() else 0].strip()


def _total(items: tuple[Answer, ...]) -> Number | None:
    """`5 feet and 3 inches` in feet; None for numbers of one unit, or without."""
    numbers = [item for item in items if isinstance(item, Number) and item.unit]
    units = [number.unit for number in numbers if number.unit]
    factors = [unit.factor for unit in units]
    is_sum = len(numbers) == len(items) and len({u.dimension for u in units}) == 1
    if not is_sum or factors != sorted(set(factors), reverse=True):
        return None
    value = exact.rational(0)
    for number, unit in zip(numbers, units, strict=True):
        scale = exact.rational(unit.factor / factors[0])
        value = exact.add(value, exact.multiply(number.value, scale))
    return dataclasses.replace(numbers[0], value=value)


def _flat(answers: Iterator[Answer]) -> Iterator[Answer]:
    """The items of lists inside a list, such as those of `1 \\pm 2, 5`."""
    for answer in answers:
        if isinstance(answer, Group) and answer.kind == "list":
            yield from answer.items
        else:
            yield answer


def _parse_item(text: str, is_second: bool) -> Answer:
    """What no comma at the top divides."""
    text = spelling.strip_markup(text)
    unions = _split_union(text)
    if len(unions) > 1:
        items = tuple(_parse_item(part, is_second) for part in unions)
        return Group(kind="cup", items=items)
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        return _parse_matrix(matrix[2], is_second)
    match = _INFINITY.fullmatch(text)
    if match:
        return Infinity(sign=-1 if match[1] == "-" else 1)
    brackets = _brackets(text)
    if brackets:
        return _parse_group(brackets, text, is_second)
    time = TIME.fullmatch(text)
    if time and not is_second:
        return _parse_time(time)
    if _RATIO.fullmatch(text) and "\\" not in text.replace("\\frac", ""):
        return _parse_ratio(text)
    if _PLUS_MINUS.search(text):
        return _parse_plus_minus(text, is_second)
    relations = _RELATION.findall(text)
    if relations:
        return _parse_relation(text, relations, is_second)
    based = _BASED.fullmatch(text)
    if based:
        digits, base = based[1].upper().lstrip("0") or "0", based[2]
        base = quantities.digits_for_words(base)
        if base.isdecimal():
            return Based(digits=digits, base=str(int(base)))
    return _parse_number(text, is_second)


def _parse_number(text: str, is_second: bool) -> Answer:
    """A number with its unit, or words."""
    quantity = quantities.split_quantity(text, letters_are_units=is_second)
    if re.search(r"[0-9A-Za-z]_", quantity.core) and re.search(r"\d_", quantity.core):
        return Words(text=spelling.without_spaces(text))
    try:
        value = expressions.parse_expression(quantity.core)
    except WordsError:
        return _parse_words(text)
    value = exact.multiply(value, exact.rational(quantity.factor))
    return Number(value=value, unit=quantity.unit)


def _parse_words(text: str) -> Answer:
    """Words, or numbers with nothing but spaces between them."""
    numbers = text.split()
    if all(re.fullmatch(r"-?\d+(?:\.\d+)?", number) for number in numbers):
        items = tuple(
            Number(value=exact.rational(Fraction(number))) for number in numbers
        )
        return Group(kind="list", items=items)
    if "\\" in text:
        raise UndecidedError("words in mathematics")
    words = re.sub(r"^(?:the|an?) ", "", text.lower())
    return Words(text=re.sub(r"^\((.*)\)$", r"\1", words).strip())


def _parse_matrix(content: str, is_second: bool) -> Answer:
    rows = [row for row in content.split("\\\\") if row.strip()]
    return Group(
        kind="matrix",
        items=tuple(
            Group(
                kind="row",
                items=tuple(_parse_item(c.strip(), is_second) for c in row.split("&")),
            )
            for row in rows
        ),
    )


def _parse_group(brackets: str, text: str, is_second: bool) -> Answer:
    """What stands in brackets: there every comma divides, as `(1,200)` is a pair."""
    width = 2 if brackets == "{}" else 1
    content = text[width:-width]
    has_both = re.search(r",\s", content) and _TIGHT_THOUSANDS.search(content)
    if is_second and has_both:
        content = _join_thousands(content)
    parts = [part.strip() for part in _split(content, ",;") if part.strip()]
    if len(parts) > MAX_ITEMS:
        raise UndecidedError("long list")
    if brackets == "()" and len(parts) == 1:
        return (
            _parse(parts[0], is_second)
            if _is_inner_group(parts[0])
            else (_parse_number(text, is_second))
        )
    items = tuple(_flat(_parse_item(_bare(part), is_second) for part in parts))
    return Group(kind=brackets, items=items)


def _is_inner_group(text: str) -> bool:
    return bool(_brackets(text) or _RELATION.search(text) or _CONJUNCTION.search(text))


def _bare(text: str) -> str:
    """An item without its left side."""
    match = _LEFT_SIDE.match(text)
    return _join_thousands(text[match.end() :] if match else text)


def _parse_time(match: re.Match[str]) -> Answer:
    """A time of day in minutes, with its half of the day for a unit."""
    minutes = exact.rational(60 * int(match[1]) + int(match[2]))
    half = {"a": "am", "p": "pm"}.get((match[3] or "").lower())
    unit = quantities.split_quantity(f"1 {half}", letters_are_units=False).unit
    # No number of minutes: 3:30 is not 210.
    return Number(value=exact.multiply(exact.atom("clock"), minutes), unit=unit)


def _parse_ratio(text: str) -> Answer:
    """`3:4` as a fraction; `1:2:3` as the list of what the others are to the first."""
    first, *others = [expressions.parse_expression(part) for part in text.split(":")]
    if len(others) == 1:
        return Number(value=exact.divide(first, others[0]))
    items = tuple(Number(value=exact.divide(other, first)) for other in others)
    return Group(kind="ratio", items=items)


def _parse_plus_minus(text: str, is_second: bool) -> Answer:
    """`1 \\pm 2` as the list of both."""
    signs = [{"mp": "-+"}.get(m[1] or "", "+-") for m in _PLUS_MINUS.finditer(text)]
    parts = re.split(r"\\(?:pm|mp)(?![a-z])|\+/-|\+-", text)
    items = []
    for which in (0, 1):
        joined = parts[0]
        for sign, part in zip(signs, parts[1:], strict=True):
            joined += sign[which] + part
        items.append(_parse_item(joined, is_second))
    return Group(kind="list", items=tuple(items))


def _parse_relation(text: str, relations: list[str], is_second: bool) -> Answer:
    """An inequality of one variable and numbers as an interval."""
    names = {r"\le": "<=", r"\ge": ">=", r"\ne": "!="}
    signs = [names.get(sign, sign) for sign in relations]
    sides = [side.strip() for side in _RELATION.split(text)]
    if not all(sides):
        return Words(text=spelling.without_spaces(text))
    if len(sides) == 2 and re.fullmatch("[A-Za-z]", sides[1]) and signs != ["!="]:
        flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
        sides, signs = sides[::-1], [flipped.get(signs[0], signs[0])]
    if len(sides) == 2 and re.fullmatch("[A-Za-z]", sides[0]) and signs[0] != "!=":
        bound = _parse_item(sides[1], is_second)
        if signs[0] == "=":
            return bound
        if signs[0] in (">", ">="):
            items = (bound, Infinity(sign=1))
            return Group(kind="(" + ")" if signs[0] == ">" else "[)", items=items)
        items = (Infinity(sign=-1), bound)
        return Group(kind="()" if signs[0] == "<" else "(]", items=items)
    is_chain = len(sides) == 3 and re.fullmatch("[A-Za-z]", sides[1])
    if is_chain and all(sign in ("<", "<=") for sign in signs):
        ends = tuple(_parse_item(side, is_second) for side in (sides[0], sides[2]))
        kind = ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")")
        return Group(kind=kind, items=ends)
    answers = [_parse_item(side, is_second) for side in sides]
    if set(signs) == {"="} and all(map(_is_constant, answers)):
        return answers[-1]
    raise UndecidedError("relation")


def _is_constant(answer: Answer) -> bool:
    """True for a number without variables."""
    if not isinstance(answer, Number):
        return False
    monomials = [*answer.value.numerator, *answer.value.denominator]
    names = {name for monomial in monomials for name, _ in monomial}
    return all(name in ("pi", "e", "i") or name.isdigit() for name in names)


def _join_thousands(text: str) -> str:
    """Write numbers with marks between thousands without them, outside of brackets."""
    depth, start, pieces = 0, 0, []
    for index, depth_after in _depths(text):
        if (depth == 0) != (depth_after == 0):
            end = index if depth == 0 else index + 1
            pieces.append((text[start:end], depth == 0))
            start = end
        depth = depth_after
    pieces.append((text[start:], depth == 0))
    return "".join(_joined(piece) if is_outer else piece for piece, is_outer in pieces)


def _joined(text: str) -> str:
    text = _TIGHT_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = _OTHER_THOUSANDS.sub(lambda m: re.sub(r"[_'.]", "", m[0]), text)
    return _SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)


def _depths(text: str) -> Iterator[tuple[int, int]]:
    r"""Yield (index, depth of brackets behind it) for every bracket.

    Braces count only as `\{`; those of LaTeX's arguments do not.
    """
    depth = 0
    for match in re.finditer(r"\\[{}]|[()\[\]]", text):
        step = 1 if match[0] in ("(", "[", r"\{") else -1
        depth = max(depth + step, 0)
        yield match.end() - 1 if step < 0 else match.start(), depth


def _split(text: str, separators: str) -> list[str]:
    """Split a text at separators that no bracket encloses."""
    depth, start, parts = 0, 0, []
    index = 0
    while index < len(text):
        char = text[index]
        if char == "\\" and index + 1 < len(text):
            index += 1
            depth += {"{": 1, "}": -1}.get(text[index], 0)
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char in separators and depth == 0:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    return [*parts, text[start:]]


def _split_union(text: str) -> list[str]:
    return [
        part.strip()
        for part in re.split(r"\\cup(?![a-z])|(?<=[)\]])\s*U\s*(?=[(\[])", text)
    ]


def _brackets(text: str) -> str:
    """The brackets that enclose a whole text; empty if none do."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        opener, closer, start = "{", "}", 0
    elif text[:1] in _OPENERS and text[-1:] in _CLOSERS and len(text) > 1:
        opener, closer, start = text[0], text[-1], 0
    else:
        return ""
    depths = list(_depths(text))
    is_whole = all(depth for _, depth in depths[:-1]) and depths[-1][1] == start
    return opener + closer if is_whole and len(text) > 2 else ""
