"""Words of quantity and units: `2 million`, `three out of four`, `5 square feet`.

A word of quantity changes the number before it, a unit does not. What is neither, such
as `or more` and `at least`, is left in the text, which then is no number.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from jaxdave.grading.spelling import DOLLAR, clean

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = {
    **{word: value for value, word in enumerate(_ONES)},
    **{word: 10 * value for value, word in enumerate(_TENS, 2)},
}
SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "quadrillion": 10**15, "quintillion": 10**18, "dozen": 12,
    "gross": 144, "score": 20, "ten": 10, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
"""Words that multiply the number before them."""
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5,
    "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11,
    "twelfth": 12, "sixteenth": 16, "twentieth": 20, "hundredth": 100,
    "thousandth": 1000, "millionth": 10**6,
}  # fmt: skip
_PART = "|".join(_PARTS)
_WORD = "|".join(_NUMBER_WORDS)
_WORD_SCALE = "hundred|thousand|million|billion|trillion"
_WORD_RUN = re.compile(
    rf"\b(?:{_WORD})(?:[ -](?:{_WORD})\b"
    rf"|[ -](?:{_WORD_SCALE})\b(?: and (?:{_WORD})\b)?)*(?![A-Za-z])",
    re.IGNORECASE,
)
_A_SCALE = re.compile(rf"\ban? (?=(?:{'|'.join(SCALES)})s?\b)", re.IGNORECASE)
_AND_A_HALF = re.compile(
    r"\b(\d+) and (?:an? |one |1[ -])?(half|third|quarter)\b", re.IGNORECASE
)
_SCALE_AND_A_HALF = re.compile(
    rf"\b(\d+) ({'|'.join(SCALES)}) and a half\b", re.IGNORECASE
)
_OF_A_SCALE = re.compile(
    rf"\b(?:an? )?(half|third|quarter) (?:of )?an? (?=(?:{'|'.join(SCALES)})\b)",
    re.IGNORECASE,
)
_PART_PHRASE = re.compile(
    rf"(?<![\d.,/])(?:(\d+)[ -]|\ban? )({_PART})s?\b(?! \d)", re.IGNORECASE
)
_LONE_PART = re.compile(r"(half|(?<=\d )half)", re.IGNORECASE)
_SHARE = re.compile(
    r"(\d+) (?:out of|in(?: every)?|of(?: every)?|over|divided by) (?:every )?(\d+)",
    re.IGNORECASE,
)
_AREA = re.compile(r"\b([A-Za-z]+) (squared|cubed)$", re.IGNORECASE)
_HEDGE = re.compile(
    r"(?:exactly|about|approximately|approx\.?|around|roughly|only|just|"
    r"(?:a )?total(?: of)?|\\approx|equal to|equals)\s+",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"(?:negative|minus|\\minus)\s+(?=[\d\\(.])", re.IGNORECASE)
_SPOKEN = (
    (re.compile(r"\b(?:the )?square root of (\d+|[a-z]\b)", re.I), r"\\sqrt{\1}"),
    (re.compile(r"\b(?:the )?cube root of (\d+|[a-z]\b)", re.I), r"\\sqrt[3]{\1}"),
    (re.compile(r"(?<=\d) (?:raised )?to the power of (\d+)", re.I), r"^{\1}"),
    (re.compile(r"(?<=\d) times (?=\d)", re.I), r"\\cdot "),
    (re.compile(r"(?<=\d) to (?=\d+$)", re.I), ":"),
    (re.compile(r"(?<=\d) plus (?=\d)", re.I), "+"),
    (re.compile(r"(?<=\d) minus (?=\d)", re.I), "-"),
    (re.compile(r"(\w+) \(?base (\w+)\)?$", re.I), r"\1_{\2}"),
)


MAX_WORDS = 12
"""Most words behind a number that are read."""


class Unit(NamedTuple):
    """A unit of measurement.

    Attributes:
        dimension: What is measured; values of different dimensions are unequal.
        factor: Size in the smallest unit of that dimension.
    """

    dimension: str
    factor: Fraction


PERCENT = Unit("percent", Fraction(1))
"""The unit of a percentage."""


def _table(dimension: str, names: str) -> dict[str, Unit]:
    """Units of one dimension from "factor name name, factor name ..."."""
    return {
        name: Unit(dimension, Fraction(factor))
        for factor, *spellings in (entry.split() for entry in names.split(","))
        for name in spellings
    }


_UNITS = {
    **_table("length", (
        "1 mm millimeter millimetre, 10 cm centimeter centimetre, 100 dm decimeter,"
        "1000 m meter metre, 1000000 km kilometer kilometre, 25.4 in inch inche,"
        "304.8 ft foot feet, 914.4 yd yard, 1609344 mi mile"
    )),
    **_table("mass", (
        "1 mg milligram, 1000 g gram, 1000000 kg kilogram kilo, 1000000000 ton tonne,"
        "28349.523125 oz ounce, 453592.37 lb pound lbs"
    )),
    **_table("time", (
        "1 ms millisecond, 1000 s sec second, 60000 min minute, 3600000 h hr hour,"
        "86400000 day, 604800000 week"
    )),
    **_table("years", "1 month, 12 year yr, 120 decade, 1200 century centurie"),
    **_table("volume", "1 ml mL milliliter millilitre, 1000 l L liter litre"),
    **_table("money", "1 cent, 100 dollar USD usd buck"),
    **_table("euros", "1 eurocent, 100 euro EUR"),
    **_table("angle", "1 degree deg"),
    **_table("radians", "1 rad radian"),
    **_table("percent", "1 percent"),
    **_table("morning", "1 am AM a.m A.M"),
    **_table("afternoon", "1 pm PM p.m P.M"),
}  # fmt: skip
_ASKED = "|".join((_WORD_SCALE, "dozen"))
_ASKED_SCALE = re.compile(
    rf"how (?:many|much)(?: more| total)? ({_ASKED})s?\b|\bin ({_ASKED})s\b",
    re.IGNORECASE,
)
_CURRENCIES = {DOLLAR: _UNITS["dollar"], "€": _UNITS["euro"]} | {
    sign: Unit(name, Fraction(1)) for sign, name in (("£", "pounds"), ("¥", "yen"))
}
_CURRENCY_SIGN = re.compile(f"[{''.join(_CURRENCIES)}]")
_PRICE_SCALE = re.compile(r"(?<=\d)[kmb]$", re.IGNORECASE)
_PRICE_SCALES = {"k": " thousand", "m": " million", "b": " billion"}
_RATES = {"mph": ("mile", "hour"), "kph": ("km", "hour"), "kmh": ("km", "hour")}
# A single letter may be a variable, so it counts as a unit behind a space only.
_UNIT_WORD = re.compile(
    r"(?P<gap>\s*)(?<![A-Za-z\\_{])(?P<word>[A-Za-z](?:[A-Za-z.'-]*[A-Za-z])?)"
    r"(?:\s*\^\s*\{?(?P<power>[23])\}?)?$"
)
_UNIT_RATIO = re.compile(
    r"(?<=[\d}) ])\s*([A-Za-z]+)\s*/\s*([A-Za-z]+)(?:\s*\^\s*\{?([23])\}?)?$"
)
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)$")
_MATH_WORDS = frozenset(
    "pi sqrt sin cos tan cot sec csc log exp infinity infty inf max min mod gcd lcm "
    "det arcsin arccos arctan alpha beta gamma theta lambda more less fewer greater "
    "least most above below or and to not root base over under than zero plus minus "
    "minimum maximum".split()
)
# Words, or nothing, before a word: then it is no unit.
_NO_NUMBER = re.compile(r"[A-Za-z ]{2,}|[aA]|\s*")
_OPERATIONS = {"squared": "^2", "cubed": "^3", "factorial": "!"}


class Quantity(NamedTuple):
    """A text apart from its words of quantity and its unit.

    Attributes:
        core: The text that is left.
        factor: What its value is multiplied by.
        unit: Its unit; None if it has none, or one that is not known.
    """

    core: str
    factor: Fraction
    unit: Unit | None


def digits_for_words(text: str) -> str:
    """Write numbers that are words in digits.

    Args:
        text: A text of `spelling.clean`.

    Returns:
        The text with digits for words and fractions for `3 out of 4`, `half` and the
        like.

    Example:
        >>> digits_for_words("two and a half"), digits_for_words("three out of four")
        ('2 1/2', '3/4')
    """
    text = _HEDGE.sub("", text, count=1) if _HEDGE.match(text) else text
    if not re.search("[A-Za-z]", text):
        return text
    text = _OF_A_SCALE.sub(lambda m: f"1/{_PARTS[m[1].lower()]} ", text)
    text = _A_SCALE.sub("1 ", text)
    text = _SCALE_AND_A_HALF.sub(r"\1 1/2 \2", text)
    text = _WORD_RUN.sub(lambda m: _digits_of_words(m[0]), text)
    text = _AND_A_HALF.sub(lambda m: f"{m[1]} 1/{_PARTS[m[2].lower()]}", text)
    text = _PART_PHRASE.sub(_part, text)
    text = re.sub(r"\b(\d+) and (?=\d+/\d+|\\frac)", r"\1 ", text)
    text = "1/2" if text.lower() == "half" else text
    text = _SHARE.sub(r"\1/\2", text, count=1)
    text = _NEGATIVE.sub("-", text)
    text = _AREA.sub(_area, text)
    text = re.sub(r"(?<=degree)s? (C|F|celsius|fahrenheit)$", "", text, flags=re.I)
    for pattern, replacement in _SPOKEN:
        text = pattern.sub(replacement, text)
    return text


def without_asked_scale(question: str, answer: str) -> str:
    """Drop the word of quantity in which a question asks for its answer.

    Args:
        question: The question.
        answer: An answer to it.

    Returns:
        The answer without that word; the answer itself if the question asks for none.

    Example:
        >>> without_asked_scale("How many dozens of eggs are there?", "7 dozen eggs")
        '7 eggs'
        >>> without_asked_scale("How many eggs are there?", "7 dozen eggs")
        '7 dozen eggs'
    """
    for match in _ASKED_SCALE.finditer(question):
        word = _singular(match[1] or match[2])
        pattern = r"(?<=[\d})]) ?\b" + word + r"s?\b"
        answer = re.sub(pattern, "", clean(answer), flags=re.IGNORECASE)
    return answer


def split_quantity(text: str, *, letters_are_units: bool) -> Quantity:
    """Take the words of quantity and the unit off the end of a text.

    Args:
        text: A text of `digits_for_words`.
        letters_are_units: True to take a last letter such as `m` for a unit; False for
            a variable.

    Returns:
        The quantity; its core is the whole text if it ends otherwise.

    Example:
        >>> quantity = split_quantity("2 million dollars", letters_are_units=True)
        >>> quantity.core, quantity.factor, quantity.unit.dimension
        ('2', Fraction(1000000, 1), 'money')
    """
    unit = None
    sign = _CURRENCY_SIGN.search(text)
    if sign:
        unit = _CURRENCIES[sign[0]]
        text = _CURRENCY_SIGN.sub("", text).strip()
        text = _PRICE_SCALE.sub(lambda m: _PRICE_SCALES[m[0].lower()], text)
    factor = Fraction(1)
    text = _ORDINAL.sub("", text)
    text, unit = _split_unit(text, unit, letters_are_units)
    match = _UNIT_WORD.search(text)
    for _ in range(MAX_WORDS):
        scale = _scale(match["word"]) if match and match.start() else None
        if match is None or scale is None:
            break
        factor *= scale
        text = text[: match.start()]
        match = _UNIT_WORD.search(text)
    operation = match and _OPERATIONS.get(match["word"].lower())
    if match and operation and match.start():
        text = f"({text[: match.start()]}){operation}"
    return Quantity(text, factor, unit)


def _split_unit(
    text: str, unit: Unit | None, letters_are_units: bool
) -> tuple[str, Unit | None]:
    """Take the unit off the end of a text, with all words that belong to it."""
    ratio = _UNIT_RATIO.search(text)
    if ratio:
        top, bottom = map(_known_unit, ratio.groups()[:2])
        if top and bottom:
            power = int(ratio[3] or 1)
            return text[: ratio.start()], _rate(top, _raised(bottom, power))
    if unit is None:
        text, unit = _rate_in_words(text)
    match = _UNIT_WORD.search(text)
    for _ in range(MAX_WORDS):
        if match is None or not _is_unit_word(match, letters_are_units):
            break
        found = _known_unit(match["word"])
        text = text[: match.start()]
        power = int(match["power"] or 1)
        spoken = re.search(r"\b(square|sq\.?|cubic|cu\.?)$", text)
        if spoken:
            power = 2 if spoken[1].startswith("s") else 3
            text = text[: spoken.start()].rstrip()
        if found and unit is None:
            unit = _raised(found, power)
        match = _UNIT_WORD.search(text)
    return text.strip(), unit


def _rate_in_words(text: str) -> tuple[str, Unit | None]:
    """Take `miles per hour` off the end of a text."""
    match = re.search(r"(?<=\d)\s*([A-Za-z]+) (?:per|an?) ([A-Za-z]+)$", text)
    names = match.groups() if match else ()
    last = re.search(r"(?<=\d)\s*(mph|kph|kmh)$", text)
    if last:
        match, names = last, _RATES[last[1]]
    units = [_known_unit(name) for name in names]
    if match is None or None in units:
        return text, None
    top, bottom = units
    assert top is not None and bottom is not None
    return text[: match.start()], _rate(top, bottom)


def _raised(unit: Unit, power: int) -> Unit:
    if power == 1:
        return unit
    return Unit(f"{unit.dimension}^{power}", unit.factor**power)


def _rate(top: Unit, bottom: Unit) -> Unit:
    return Unit(f"{top.dimension}/{bottom.dimension}", top.factor / bottom.factor)


def _is_unit_word(match: re.Match[str], letters_are_units: bool) -> bool:
    """True for a word that names what is counted, or how it is measured."""
    word = match["word"]
    is_known = _known_unit(word) is not None
    before = match.string[: match.start()]
    if word.lower() in _OPERATIONS or _scale(word) or _NO_NUMBER.fullmatch(before):
        return False
    if len(word) == 1 and word != "a":
        return is_known and bool(match["gap"]) and letters_are_units
    if is_known:
        return True
    is_bound = re.search(r"\b(?:or|at|than|up|not)$", before) is not None
    if is_bound:
        return False
    is_word = len(word) > 2 and word.lower() not in _MATH_WORDS
    is_more = word.lower() in ("more", "less", "fewer", "each", "of", "by", "a", "an")
    return bool(match["gap"]) and (is_word or is_more)


def _known_unit(word: str) -> Unit | None:
    """The unit of a name, in singular or plural."""
    for name in (word, word.lower(), _singular(word)):
        if name in _UNITS and (len(name) > 1 or name == word):
            return _UNITS[name]
    return None


def _scale(word: str) -> int | None:
    """What a word multiplies the number before it by, in singular or plural."""
    return SCALES.get(word.lower()) or SCALES.get(_singular(word))


def _singular(word: str) -> str:
    return word.lower().removesuffix("s")


def _area(match: re.Match[str]) -> str:
    """`meters squared` as `square meters`."""
    unit = _known_unit(match[1])
    if unit is None or unit.dimension != "length":
        return match[0]
    return f"{'square' if match[2].lower() == 'squared' else 'cubic'} {match[1]}"


def _part(match: re.Match[str]) -> str:
    """`3 quarters` as a fraction; from 4 quarters on, they are coins."""
    name, count = match[2].lower(), int(match[1] or 1)
    if name == "quarter" and match[1] and count > 3:
        return match[0]
    return f"{count}/{_PARTS[name]}"


def _digits_of_words(words: str) -> str:
    """A run of number words such as `two hundred and five` in digits."""
    numbers: list[int] = []
    total, group, is_open = 0, 0, False
    for word in re.split(r"[ -]+", words.lower()):
        if word == "hundred":
            group = (group or 1) * 100
        elif word in SCALES:
            total += (group or 1) * SCALES[word]
            group = 0
        elif word != "and":
            value = _NUMBER_WORDS[word]
            if is_open and not _fits(group, value):
                # `three five` is two numbers.
                numbers.append(total + group)
                total, group = 0, 0
            group += value
            is_open = True
    return " ".join(map(str, [*numbers, total + group]))


def _fits(group: int, value: int) -> bool:
    """True if a number word may follow others, as `five` does `twenty`."""
    last = group % 100
    return last == 0 or (last >= 20 and last % 10 == 0 and 0 < value < 10)
