r"""Equality of two mathematical answers, by their spelling and their exact value.

This decides numbers in all their spellings, closed-form expressions, polynomials,
lists, pairs, sets, intervals and words, without dependencies and without rounding. What
it leaves open (functions, equations) is for a computer algebra system.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from jaxdave.grading import exact, quantities, spelling
from jaxdave.grading.answer_values import (
    TIME,
    Answer,
    Based,
    Group,
    Number,
    readings,
)
from jaxdave.grading.exact import UndecidedError

_MAX_LENGTH = 2000
# Lists and sets have no order; a pair may be written without its brackets.
_UNORDERED = ("list", "{}")
# Two numbers side by side and subscripts mean something else to math-verify.
# `(B)` alone is the letter of a choice, which may be followed by what it stands for.
_CHOICE_GOLD = re.compile(r"\([A-J]\)")
_CHOICE = re.compile(
    r"\(?([A-Ja-j])(?:$|\)$|\)[.:]?\s+(?=[\w\\$])(?!.*\([A-J]\)|(?:and|or)\b))"
)
_MISREAD = re.compile(r"(?<![_\d])(?<!frac )\d+\s+\d|\d\s*_")


def answers_equal(gold: str, answer: str) -> bool | None:
    r"""Compare two answers by spelling and by value.

    Values are exact: `0.333` is not a third, and no two numbers are equal because they
    are close. Thousands separators, leading zeros, units, and currency and degree signs
    do not count, unless both answers have units and these differ. A percentage equals
    its number (the unit may be the question's) and its hundredth.

    Args:
        gold: The reference answer.
        answer: The answer of a model. An empty one, or one above 2000 characters, is
            unequal to everything.

    Returns:
        True or False where spelling and value decide; None where they do not.

    Example:
        >>> answers_equal(r"\frac{3}{2}", "1 1/2"), answers_equal("2", "2 million")
        (True, False)
        >>> answers_equal(r"\sin x", r"\cos(\frac{\pi}{2} - x)") is None
        True
    """
    if not answer or max(len(gold), len(answer)) > _MAX_LENGTH:
        return False
    texts = [spelling.clean(text) for text in (gold, answer)]
    if len({spelling.without_spaces(text) for text in texts}) == 1:
        return True
    choices = [_CHOICE.match(text) for text in texts]
    if _CHOICE_GOLD.fullmatch(texts[0]) and all(choices):
        return len({match[1].upper() for match in choices if match}) == 1
    if all(text.isalpha() and len(text) > 2 for text in texts):
        return texts[0].lower() == texts[1].lower() or None
    # `6:30` and `3:15` are one ratio, but two times of day.
    count = 1 if all(map(TIME.fullmatch, texts)) else None
    try:
        results = {
            _equal(one, other)
            for one in readings(gold)[:count]
            for other in readings(answer)[:count]
        }
    except (UndecidedError, RecursionError):
        results = {None}
    if True in results:
        return True
    if None in results and not any(_MISREAD.search(text) for text in texts):
        return None
    return False


def _equal(gold: Answer, answer: Answer) -> bool | None:
    """Compare two readings."""
    if isinstance(gold, Group) and len(gold.items) == 1 and gold.kind == "{}":
        return _equal(gold.items[0], _only_item(answer))
    if isinstance(gold, Number) and isinstance(answer, Number):
        return _numbers_equal(gold, answer)
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _groups_equal(gold, answer)
    if isinstance(gold, Based) and isinstance(answer, Number):
        # The question says the base, so that an answer may leave it out.
        return exact.as_fraction(answer.value) == _digits_as_decimal(gold.digits)
    if isinstance(gold, Number) and isinstance(answer, Based) and answer.base == "10":
        return exact.as_fraction(gold.value) == _digits_as_decimal(answer.digits)
    if isinstance(gold, Number) and isinstance(answer, Group):
        only = _only_item(answer)
        return False if only is answer else _equal(gold, only)
    return gold == answer


def _only_item(answer: Answer) -> Answer:
    """The item of a set of one; the answer itself if it is anything else."""
    if isinstance(answer, Group) and answer.kind == "{}" and len(answer.items) == 1:
        return answer.items[0]
    return answer


def _digits_as_decimal(digits: str) -> Fraction | None:
    return Fraction(digits) if digits.isdecimal() else None


def _numbers_equal(gold: Number, answer: Number) -> bool | None:
    """Compare two numbers with their units."""
    names = {gold.variable, answer.variable} - {""}
    if len(names) > 1 and all(len(name) == 1 for name in names):
        return False
    ours, theirs = gold.unit, answer.unit
    is_percent = [unit == quantities.PERCENT for unit in (ours, theirs)]
    if is_percent[0] != is_percent[1]:
        return _percentage_equal(gold, answer, gold_is_percent=is_percent[0])
    if ours is None or theirs is None:
        return exact.equal(gold.value, answer.value)
    if ours.dimension != theirs.dimension:
        return False
    scaled = [
        exact.multiply(number.value, exact.rational(unit.factor))
        for number, unit in ((gold, ours), (answer, theirs))
    ]
    return exact.equal(*scaled)


def _percentage_equal(
    gold: Number, answer: Number, *, gold_is_percent: bool
) -> bool | None:
    """Compare a percentage and a number, which may leave the sign to the question."""
    hundredth = exact.rational(Fraction(1, 100))
    percentage, number = (
        (gold.value, answer.value) if gold_is_percent else (answer.value, gold.value)
    )
    share = exact.equal(exact.multiply(percentage, hundredth), number)
    whole = exact.as_fraction(gold.value)
    # Of a reference below 1, such as 0.5, `0.5 %` is a hundredth.
    is_share = not gold_is_percent and whole is not None and 0 < abs(whole) < 1
    return share if share or is_share else exact.equal(percentage, number)


def _groups_equal(gold: Group, answer: Group) -> bool | None:
    """Compare two groups, item by item."""
    names = {gold.variable, answer.variable} - {""}
    if len(names) > 1 and all(len(name) == 1 for name in names):
        return False
    kinds = gold.kind, answer.kind
    if gold.kind == "cup" == answer.kind:
        return _match_all(gold.items, answer.items)
    if gold.kind in _UNORDERED:
        # An unordered reference says nothing about the order of the answer.
        if answer.kind in (*_UNORDERED, *(("()", "[]") if gold.kind == "list" else ())):
            return _match_all(*(_distinct(group) for group in (gold, answer)))
        return False
    if kinds[0] != kinds[1] and kinds != ("()", "list"):
        return False
    if len(gold.items) != len(answer.items):
        return False
    return _all_equal(map(_equal, gold.items, answer.items))


def _distinct(group: Group) -> Sequence[Answer]:
    """The items of a group, those of a set without repetitions."""
    if group.kind != "{}":
        return group.items
    kept: list[Answer] = []
    for item in group.items:
        if not any(_equal(other, item) for other in kept):
            kept.append(item)
    return kept


def _match_all(gold: Sequence[Answer], answer: Sequence[Answer]) -> bool | None:
    """Compare items in any order."""
    if len(gold) != len(answer):
        return False
    left, results = list(answer), []
    for item in gold:
        equal = [_equal(item, other) for other in left]
        if True in equal:
            left.pop(equal.index(True))
        results.append(True if True in equal else None if None in equal else False)
    return _all_equal(results)


def _all_equal(results: Iterable[bool | None]) -> bool | None:
    """True if all are True, False if one is False, else None."""
    found = set(results)
    return False if False in found else None if None in found else True
