"""Tiny Python list functions: filter, map, aggregate, in one returned expression."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxdave.demo_tasks.problem import Problem, Split, split_of


@dataclasses.dataclass(frozen=True)
class Mapping:
    """What is done to each number: wordings, code, meaning, and the lowest constant."""

    told: tuple[str, ...]
    code: str
    apply: Callable[[int, int], int]
    lowest: int = 0


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which numbers are kept: wordings, code, meaning, and the lowest constant."""

    told: tuple[str, ...]
    code: str
    keeps: Callable[[int, int], bool]
    lowest: int = 0


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """What is made of the numbers: wordings, code, meaning, and a closing remark."""

    told: tuple[str, ...]
    code: str
    apply: Callable[[Iterable[int]], int | list[int]]
    closing: str = ""


# A constant is told after "each", never right after a condition: "greater than 3 plus
# 4" could be read in two ways.
MAPS = {
    "none": Mapping(("{} in xs",), "x", lambda x, k: x),
    "square": Mapping(
        ("the squares of {} in xs", "{} in xs, each squared"),
        "x * x",
        lambda x, k: x * x,
    ),
    "double": Mapping(
        ("the doubles of {} in xs", "{} in xs, each doubled"),
        "2 * x",
        lambda x, k: 2 * x,
    ),
    "plus": Mapping(("{} in xs, each plus {k}",), "x + {k}", lambda x, k: x + k, 1),
    "minus": Mapping(("{} in xs, each minus {k}",), "x - {k}", lambda x, k: x - k, 1),
    "times": Mapping(("{} in xs, each times {k}",), "x * {k}", lambda x, k: x * k, 1),
    "negative": Mapping(
        ("the negatives of {} in xs", "{} in xs, each negated"), "-x", lambda x, k: -x
    ),
    "absolute": Mapping(
        ("the absolute values of {} in xs",), "abs(x)", lambda x, k: abs(x)
    ),
}
FILTERS = {
    "none": Filter(("the numbers", "all numbers"), "", lambda x, k: True),
    "even": Filter(("the even numbers",), " if x % 2 == 0", lambda x, k: x % 2 == 0),
    "odd": Filter(("the odd numbers",), " if x % 2 == 1", lambda x, k: x % 2 == 1),
    "greater": Filter(
        ("the numbers greater than {k}", "the numbers above {k}"),
        " if x > {k}",
        lambda x, k: x > k,
        1,
    ),
    "less": Filter(
        ("the numbers less than {k}", "the numbers below {k}"),
        " if x < {k}",
        lambda x, k: x < k,
        1,
    ),
    "divisible": Filter(
        ("the numbers divisible by {k}", "the multiples of {k}"),
        " if x % {k} == 0",
        lambda x, k: x % k == 0,
        2,
    ),
    "positive": Filter(("the positive numbers",), " if x > 0", lambda x, k: x > 0),
    "negative": Filter(("the negative numbers",), " if x < 0", lambda x, k: x < 0),
}
AGGREGATES = {
    "sum": Aggregate(("the sum of",), "sum({} for x in xs{})", sum),
    "max": Aggregate(
        ("the largest of", "the maximum of"),
        "max([{} for x in xs{}], default=0)",
        lambda ys: max(ys, default=0),
        ", or 0 if there are none",
    ),
    "min": Aggregate(
        ("the smallest of", "the minimum of"),
        "min([{} for x in xs{}], default=0)",
        lambda ys: min(ys, default=0),
        ", or 0 if there are none",
    ),
    "count": Aggregate(
        ("the count of",), "len([{} for x in xs{}])", lambda ys: len(list(ys))
    ),
    "list": Aggregate(("a list of", "the list of"), "[{} for x in xs{}]", list),
    "sorted": Aggregate(
        ("a sorted list of",), "sorted([{} for x in xs{}])", lambda ys: sorted(ys)
    ),
    "reversed": Aggregate(
        ("a reverse sorted list of",),
        "sorted([{} for x in xs{}], reverse=True)",
        lambda ys: sorted(ys, reverse=True),
    ),
}
HIGHEST = 9


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Which aggregate, map and filter, with their constants (0 where unused)."""

    aggregate: str
    mapping: str
    map_k: int
    filtering: str
    filter_k: int

    @property
    def key(self) -> str:
        """The text that the split goes by."""
        return (
            f"lists {self.aggregate} {self.mapping}{self.map_k} "
            f"{self.filtering}{self.filter_k}"
        )

    def reference(self, xs: Sequence[int]) -> int | list[int]:
        """What the function must return for `xs`, computed without the answer text."""
        keeps = FILTERS[self.filtering].keeps
        change = MAPS[self.mapping].apply
        kept = [change(x, self.map_k) for x in xs if keeps(x, self.filter_k)]
        return AGGREGATES[self.aggregate].apply(kept)


def parse_key(key: str) -> Skeleton:
    """The skeleton that a key was made from."""
    _, aggregate, mapping, filtering = key.split()
    return Skeleton(aggregate, *_name_and_k(mapping), *_name_and_k(filtering))


def sample(rng: np.random.Generator) -> Problem:
    """A random function, of either side of the split."""
    aggregate = _pick(rng, tuple(AGGREGATES))
    mapping, filtering = _pick(rng, tuple(MAPS)), _pick(rng, tuple(FILTERS))
    map_k = _constant(rng, MAPS[mapping].lowest)
    filter_k = _constant(rng, FILTERS[filtering].lowest)
    s = Skeleton(aggregate, mapping, map_k, filtering, filter_k)
    return Problem("lists", _told(rng, s), _code(s), s.key)


def draw(rng: np.random.Generator, split: Split) -> Problem:
    """A random function of one side of the split."""
    while True:
        problem = sample(rng)
        if split_of(problem.key) == split:
            return problem


def _told(rng: np.random.Generator, s: Skeleton) -> str:
    chosen = _pick(rng, FILTERS[s.filtering].told).format(k=s.filter_k)
    mapped = _pick(rng, MAPS[s.mapping].told).format(chosen, k=s.map_k)
    aggregate = AGGREGATES[s.aggregate]
    made = _pick(rng, aggregate.told)
    return f"Write f(xs) that returns {made} {mapped}{aggregate.closing}."


def _code(s: Skeleton) -> str:
    value = MAPS[s.mapping].code.format(k=s.map_k)
    condition = FILTERS[s.filtering].code.format(k=s.filter_k)
    made = AGGREGATES[s.aggregate].code.format(value, condition)
    return f"def f(xs):\n    return {made}"


def _constant(rng: np.random.Generator, lowest: int) -> int:
    return int(rng.integers(lowest, HIGHEST + 1)) if lowest else 0


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


def _name_and_k(text: str) -> tuple[str, int]:
    name = text.rstrip("0123456789")
    return name, int(text[len(name) :])
