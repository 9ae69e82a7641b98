"""Multi-step word problems: one quantity, one equation a line, then `#### n`.

Every number is in 1..60, so that each is one token of the demo's tokenizer.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxdave.demo_tasks.problem import Problem, Split, split_of

MAX_VALUE = 60
MAX_MULTIPLICAND = 20
"""Largest quantity that may be doubled or tripled: three times it is still in range."""
OP_COUNTS = (1, 2, 3, 4)
OP_COUNT_PROBABILITIES = (0.1, 0.35, 0.35, 0.2)
MAX_OPS = 5

Person = tuple[str, str]
"""A name and its pronoun."""
Chain = tuple[tuple[str, int], ...]
"""Operations: a key of `OPERATORS` and its constant, each."""

TRAIN_PEOPLE: tuple[Person, ...] = tuple(
    (name, "She")
    for name in "Mia Anna Lily Emma Zoe Nora Ruth Ella Jane Kate Maya Rosa".split()
) + tuple(
    (name, "He")
    for name in "Tom Sam Ben Max Leo Adam Jack Paul Omar Luis Ivan Noah".split()
)
HELD_OUT_PEOPLE: tuple[Person, ...] = (
    ("Greta", "She"),
    ("Priya", "She"),
    ("Wendy", "She"),
    ("Boris", "He"),
    ("Hugo", "He"),
    ("Kofi", "He"),
)
TRAIN_ITEMS = tuple(
    "apples books coins stamps shells cards pens eggs stones roses tickets beads "
    "plums toys keys cakes".split()
)
HELD_OUT_ITEMS = tuple("marbles lemons ribbons buttons kites".split())

OPENINGS = (
    "{name} has {k} {items}.",
    "{name} starts with {k} {items}.",
    "There are {k} {items} in the box of {name}.",
)
SENTENCES = {
    "add": (
        "{They} gets {k} more.",
        "{They} buys {k} more {things}.",
        "{They} finds {k} more {things}.",
        "{other} gives {name} {k} {things}.",
        "Then {name} wins {k} more.",
        "A friend brings {k} more of them.",
    ),
    "sub": (
        "{They} loses {k} of them.",
        "{They} gives {k} {things} to {other}.",
        "{They} sells {k} of the {items}.",
        "{other} takes {k} of them.",
        "Then {name} uses {k} {things}.",
        "A friend borrows {k} of the {items}.",
    ),
    "double": (
        "The number of {items} doubles.",
        "{They} doubles the pile.",
        "Then {name} has 2 times as many.",
        "{other} doubles what {name} has.",
    ),
    "triple": (
        "The number of {items} triples.",
        "{They} triples the pile.",
        "Then {name} has 3 times as many.",
        "{other} triples what {name} has.",
    ),
    "halve": (
        "Half of the {items} are lost.",
        "{They} gives away half of them.",
        "Then {name} keeps only half.",
        "{other} takes half of the {items}.",
    ),
}
QUESTIONS = (
    "How many {items} does {name} have now?",
    "How many {items} are there now?",
    "How many {items} are left?",
    "How many does {name} have in the end?",
)
SIGNS = {"add": "+", "sub": "-", "double": "*", "triple": "*", "halve": "/"}
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "add": lambda value, k: value + k,
    "sub": lambda value, k: value - k,
    "double": lambda value, _: value * 2,
    "triple": lambda value, _: value * 3,
    "halve": lambda value, _: value // 2,
}


def sample(
    rng: np.random.Generator,
    num_ops: int,
    people: Sequence[Person] = TRAIN_PEOPLE,
    items: Sequence[str] = TRAIN_ITEMS,
) -> Problem:
    """Sample a problem, of either side of the split.

    Args:
        rng: Source of randomness; it advances.
        num_ops: Number of operations, in 1..5.
        people: Who the problem may be about, at least two.
        items: What is counted, in the plural with an "s".

    Returns:
        The problem; `data` has the number of operations as "ops".

    Raises:
        ValueError: If `num_ops` is outside 1..5.
    """
    if not 1 <= num_ops <= MAX_OPS:
        raise ValueError(
            f"ops={num_ops} must be in 1..{MAX_OPS}; ask for fewer or more"
        )
    # The order of the draws is fixed: the frozen test sets are pinned byte for byte.
    start, chain = _sample_chain(rng, num_ops)
    person, other = (int(i) for i in rng.integers(len(people), size=2))
    if person == other:
        other = (other + 1) % len(people)
    words = {
        "name": people[person][0],
        "They": people[person][1],
        "other": people[other][0],
        "items": items[int(rng.random() * len(items))],
    }
    sentences = [_choose(rng, OPENINGS).format(k=start, **words)]
    for op, k in chain:
        things = words["items"].removesuffix("s") if k == 1 else words["items"]
        sentence = _choose(rng, SENTENCES[op])
        sentences.append(sentence.format(k=k, things=things, **words))
    sentences.append(_choose(rng, QUESTIONS).format(**words))
    return Problem(
        family="words",
        prompt=" ".join(sentences),
        answer=reference_answer(start, chain),
        key=problem_key(start, chain),
        data={"ops": num_ops},
    )


def sample_from_split(
    rng: np.random.Generator,
    split: Split,
    op_counts: Sequence[int] = OP_COUNTS,
    probabilities: Sequence[float] | None = OP_COUNT_PROBABILITIES,
    people: Sequence[Person] = TRAIN_PEOPLE,
    items: Sequence[str] = TRAIN_ITEMS,
) -> Problem:
    """Sample a problem of one side of the split, by rejection.

    Args:
        rng: Source of randomness; it advances.
        split: "train" or "test".
        op_counts: Numbers of operations that the problem may have.
        probabilities: Probability of each of them; None for equal ones.
        people: Who the problem may be about.
        items: What is counted.

    Returns:
        The problem.
    """
    # Drawn once, before any rejection, so that the mix does not depend on how many
    # keys of each length are on this side.
    num_ops = int(rng.choice(op_counts, p=probabilities))
    while True:
        problem = sample(rng, num_ops, people, items)
        if split_of(problem.key) == split:
            return problem


def problem_key(start: int, chain: Chain) -> str:
    """Return the key of a problem: its operations without names and wording.

    Args:
        start: The quantity before the first operation.
        chain: The operations.

    Returns:
        The text that the split goes by.

    Example:
        >>> problem_key(3, (("add", 4), ("double", 2)))
        'words 3 add4 double2'
    """
    return f"words {start} " + " ".join(f"{op}{k}" for op, k in chain)


def reference_answer(start: int, chain: Chain) -> str:
    """Return the reference answer: one equation a line, then `#### n`.

    Args:
        start: The quantity before the first operation.
        chain: The operations.

    Returns:
        The answer, without a line end after it.

    Example:
        >>> print(reference_answer(3, (("add", 4), ("double", 2))))
        3+4=7
        7*2=14
        #### 14
    """
    lines, value = [], start
    for op, k in chain:
        result = OPERATORS[op](value, k)
        lines.append(f"{value}{SIGNS[op]}{k}={result}")
        value = result
    return "\n".join([*lines, f"#### {value}"])


def _sample_chain(rng: np.random.Generator, num_ops: int) -> tuple[int, Chain]:
    """A start in 2..20, and operations that keep the quantity in range."""
    start = value = int(rng.integers(2, 21))
    chain: list[tuple[str, int]] = []
    for _ in range(num_ops):
        op, k = _sample_operation(rng, value)
        chain.append((op, k))
        value = OPERATORS[op](value, k)
    return start, tuple(chain)


def _sample_operation(rng: np.random.Generator, value: int) -> tuple[str, int]:
    """One operation that keeps the value in 1..60: mostly sums and differences."""
    while True:
        kind = rng.random()
        k = 1 + int(rng.random() * 9)
        if kind < 0.4 and value + k <= MAX_VALUE:
            return "add", k
        if 0.4 <= kind < 0.8 and value - k >= 1:
            return "sub", k
        if 0.8 <= kind < 0.88 and value <= MAX_MULTIPLICAND:
            return "double", 2
        if 0.88 <= kind < 0.93 and value <= MAX_MULTIPLICAND:
            return "triple", 3
        if kind >= 0.93 and value % 2 == 0:
            return "halve", 2


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    # A float is several times cheaper than a bounded integer, and this runs millions
    # of times; the bias of 2**-53 does not matter here.
    return options[int(rng.random() * len(options))]
