"""Small Python list functions: filter, map and aggregate in one returned expression.

A function is a choice from three tables, each entry of which has its wordings, its code
and its meaning. The meaning is written apart from the code, so that an answer can be
checked without trusting the generated text.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxdave.demo_tasks.problem import Problem, Split, split_of


@dataclasses.dataclass(frozen=True)
class MapRule:
    """What is done to each number.

    Attributes:
        wordings: Phrases for it, in which `{}` stands for the filtered numbers and
            `{k}` for the constant.
        code: The expression of `x`, in which `{k}` stands for the constant.
        apply: Maps a number and the constant to the result.
        min_constant: Smallest constant; 0 if the rule has none.
    """

    wordings: tuple[str, ...]
    code: str
    apply: Callable[[int, int], int]
    min_constant: int = 0


@dataclasses.dataclass(frozen=True)
class FilterRule:
    """Which numbers are used.

    Attributes:
        wordings: Phrases for them, in which `{k}` stands for the constant.
        code: The end of the comprehension, from " if"; empty if all are used.
        predicate: Maps a number and the constant to True if the number is used.
        min_constant: Smallest constant; 0 if the rule has none.
    """

    wordings: tuple[str, ...]
    code: str
    predicate: Callable[[int, int], bool]
    min_constant: int = 0


@dataclasses.dataclass(frozen=True)
class AggregateRule:
    """What is made of the numbers.

    Attributes:
        wordings: Phrases that the numbers follow.
        code: The expression, in which the first `{}` stands for the map's and the
            second for the filter's code.
        apply: Maps the numbers to the result.
        closing: What the prompt ends with.
    """

    wordings: tuple[str, ...]
    code: str
    apply: Callable[[Iterable[int]], int | list[int]]
    closing: str = ""


# A constant comes after "each", never right after a condition: "greater than 3 plus
# 4" could be read in two ways.
MAPS = {
    "none": MapRule(("{} in xs",), "x", lambda x, k: x),
    "square": MapRule(
        ("the squares of {} in xs", "{} in xs, each squared"),
        "x * x",
        lambda x, k: x * x,
    ),
    "double": MapRule(
        ("the doubles of {} in xs", "{} in xs, each doubled"),
        "2 * x",
        lambda x, k: 2 * x,
    ),
    "plus": MapRule(("{} in xs, each plus {k}",), "x + {k}", lambda x, k: x + k, 1),
    "minus": MapRule(("{} in xs, each minus {k}",), "x - {k}", lambda x, k: x - k, 1),
    "times": MapRule(("{} in xs, each times {k}",), "x * {k}", lambda x, k: x * k, 1),
    "negative": MapRule(
        ("the negatives of {} in xs", "{} in xs, each negated"), "-x", lambda x, k: -x
    ),
    "absolute": MapRule(
        ("the absolute values of {} in xs",), "abs(x)", lambda x, k: abs(x)
    ),
}
FILTERS = {
    "none": FilterRule(("the numbers", "all numbers"), "", lambda x, k: True),
    "even": FilterRule(
        ("the even numbers",), " if x % 2 == 0", lambda x, k: x % 2 == 0
    ),
    "odd": FilterRule(("the odd numbers",), " if x % 2 == 1", lambda x, k: x % 2 == 1),
    "greater": FilterRule(
        ("the numbers greater than {k}", "the numbers above {k}"),
        " if x > {k}",
        lambda x, k: x > k,
        1,
    ),
    "less": FilterRule(
        ("the numbers less than {k}", "the numbers below {k}"),
        " if x < {k}",
        lambda x, k: x < k,
        1,
    ),
    "divisible": FilterRule(
        ("the numbers divisible by {k}", "the multiples of {k}"),
        " if x % {k} == 0",
        lambda x, k: x % k == 0,
        2,
    ),
    "positive": FilterRule(("the positive numbers",), " if x > 0", lambda x, k: x > 0),
    "negative": FilterRule(("the negative numbers",), " if x < 0", lambda x, k: x < 0),
}
AGGREGATES = {
    "sum": AggregateRule(("the sum of",), "sum({} for x in xs{})", sum),
    "max": AggregateRule(
        ("the largest of", "the maximum of"),
        "max([{} for x in xs{}], default=0)",
        lambda ys: max(ys, default=0),
        ", or 0 if there are none",
    ),
    "min": AggregateRule(
        ("the smallest of", "the minimum of"),
        "min([{} for x in xs{}], default=0)",
        lambda ys: min(ys, default=0),
        ", or 0 if there are none",
    ),
    "count": AggregateRule(
        ("the count of",), "len([{} for x in xs{}])", lambda ys: len(list(ys))
    ),
    "list": AggregateRule(("a list of", "the list of"), "[{} for x in xs{}]", list),
    "sorted": AggregateRule(
        ("a sorted list of",), "sorted([{} for x in xs{}])", lambda ys: sorted(ys)
    ),
    "reversed": AggregateRule(
        ("a reverse sorted list of",),
        "sorted([{} for x in xs{}], reverse=True)",
        lambda ys: sorted(ys, reverse=True),
    ),
}
MAX_CONSTANT = 9


@dataclasses.dataclass(frozen=True)
class ListFunction:
    """A function of the family, without its wording.

    Attributes:
        aggregate_name: Key of `AGGREGATES`.
        map_name: Key of `MAPS`.
        map_constant: The map's constant; 0 if it has none.
        filter_name: Key of `FILTERS`.
        filter_constant: The filter's constant; 0 if it has none.
    """

    aggregate_name: str
    map_name: str
    map_constant: int
    filter_name: str
    filter_constant: int

    @property
    def key(self) -> str:
        """The text that the split goes by."""
        return (
            f"lists {self.aggregate_name} {self.map_name}{self.map_constant} "
            f"{self.filter_name}{self.filter_constant}"
        )

    def expected_result(self, xs: Sequence[int]) -> int | list[int]:
        """Compute the result of the function, without running the answer's code.

        Args:
            xs: The argument of the function.

        Returns:
            What the function must return for it.

        Example:
            >>> parse_key("lists sum square0 greater3").expected_result([3, 4, 5])
            41
        """
        predicate = FILTERS[self.filter_name].predicate
        transform = MAPS[self.map_name].apply
        values = [
            transform(x, self.map_constant)
            for x in xs
            if predicate(x, self.filter_constant)
        ]
        return AGGREGATES[self.aggregate_name].apply(values)


def parse_key(key: str) -> ListFunction:
    """Read a function from its key.

    Args:
        key: The `key` of a list function or of its problem.

    Returns:
        The function.

    Example:
        >>> parse_key("lists max none0 divisible3").filter_constant
        3
    """
    _, aggregate, mapping, filtering = key.split()
    return ListFunction(
        aggregate, *_split_constant(mapping), *_split_constant(filtering)
    )


def sample(rng: np.random.Generator) -> Problem:
    """Sample a function, of either side of the split.

    Args:
        rng: Source of randomness; it advances.

    Returns:
        The problem of writing that function.
    """
    # The order of the draws is fixed: the frozen test sets are pinned byte for byte.
    aggregate_name = _choose(rng, tuple(AGGREGATES))
    map_name = _choose(rng, tuple(MAPS))
    filter_name = _choose(rng, tuple(FILTERS))
    function = ListFunction(
        aggregate_name=aggregate_name,
        map_name=map_name,
        map_constant=_sample_constant(rng, MAPS[map_name].min_constant),
        filter_name=filter_name,
        filter_constant=_sample_constant(rng, FILTERS[filter_name].min_constant),
    )
    return Problem("lists", _prompt(rng, function), _code(function), function.key)


def sample_from_split(rng: np.random.Generator, split: Split) -> Problem:
    """Sample a function of one side of the split, by rejection.

    Args:
        rng: Source of randomness; it advances.
        split: "train" or "test".

    Returns:
        The problem of writing that function.
    """
    while True:
        problem = sample(rng)
        if split_of(problem.key) == split:
            return problem


def _prompt(rng: np.random.Generator, function: ListFunction) -> str:
    """The function in words, each part in one of its wordings."""
    filtering = FILTERS[function.filter_name]
    mapping = MAPS[function.map_name]
    aggregate = AGGREGATES[function.aggregate_name]
    numbers = _choose(rng, filtering.wordings).format(k=function.filter_constant)
    mapped = _choose(rng, mapping.wordings).format(numbers, k=function.map_constant)
    result = _choose(rng, aggregate.wordings)
    return f"Write f(xs) that returns {result} {mapped}{aggregate.closing}."


def _code(function: ListFunction) -> str:
    """The reference answer."""
    value = MAPS[function.map_name].code.format(k=function.map_constant)
    condition = FILTERS[function.filter_name].code.format(k=function.filter_constant)
    expression = AGGREGATES[function.aggregate_name].code.format(value, condition)
    return f"def f(xs):\n    return {expression}"


def _sample_constant(rng: np.random.Generator, min_constant: int) -> int:
    """A constant in min_constant..9; 0, without a draw, for a rule without one."""
    return int(rng.integers(min_constant, MAX_CONSTANT + 1)) if min_constant else 0


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


def _split_constant(text: str) -> tuple[str, int]:
    """Split "greater3" into "greater" and 3."""
    name = text.rstrip("0123456789")
    return name, int(text[len(name) :])
