"""Multi-step word problems: one quantity, one equation a line, `#### n`.

Every number is in 1..60, so that each is one token of the demo's tokenizer.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxdave.demo_tasks.problem import Problem, Split, split_of

HIGHEST = 60
LARGEST_SCALED = 20
OPS = (1, 2, 3, 4)
OPS_SHARES = (0.1, 0.35, 0.35, 0.2)
MOST_OPS = 5

Name = tuple[str, str]
Chain = tuple[tuple[str, int], ...]

TRAIN_NAMES: tuple[Name, ...] = tuple(
    (name, "She")
    for name in "Mia Anna Lily Emma Zoe Nora Ruth Ella Jane Kate Maya Rosa".split()
) + tuple(
    (name, "He")
    for name in "Tom Sam Ben Max Leo Adam Jack Paul Omar Luis Ivan Noah".split()
)
HELD_NAMES: tuple[Name, ...] = (
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
HELD_ITEMS = tuple("marbles lemons ribbons buttons kites".split())

OPENINGS = (
    "{name} has {k} {items}.",
    "{name} starts with {k} {items}.",
    "There are {k} {items} in the box of {name}.",
)
FORMS = {
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
APPLY: dict[str, Callable[[int, int], int]] = {
    "add": lambda value, k: value + k,
    "sub": lambda value, k: value - k,
    "double": lambda value, _: value * 2,
    "triple": lambda value, _: value * 3,
    "halve": lambda value, _: value // 2,
}


def sample(
    rng: np.random.Generator,
    ops: int,
    names: Sequence[Name] = TRAIN_NAMES,
    items: Sequence[str] = TRAIN_ITEMS,
) -> Problem:
    """A random problem of `ops` operations, of either side of the split.

    Raises ValueError when `ops` is outside 1..5.
    """
    if not 1 <= ops <= MOST_OPS:
        raise ValueError(f"ops={ops} must be in 1..{MOST_OPS}; ask for fewer or more")
    start, chain = _chain(rng, ops)
    who, other = (int(i) for i in rng.integers(len(names), size=2))
    if who == other:
        other = (other + 1) % len(names)
    words = {
        "name": names[who][0],
        "They": names[who][1],
        "other": names[other][0],
        "items": items[int(rng.random() * len(items))],
    }
    told = [_pick(rng, OPENINGS).format(k=start, **words)]
    for op, k in chain:
        things = words["items"].removesuffix("s") if k == 1 else words["items"]
        told.append(_pick(rng, FORMS[op]).format(k=k, things=things, **words))
    told.append(_pick(rng, QUESTIONS).format(**words))
    text = answer(start, chain)
    return Problem("words", " ".join(told), text, key(start, chain), {"ops": ops})


def draw(
    rng: np.random.Generator,
    split: Split,
    ops: Sequence[int] = OPS,
    shares: Sequence[float] | None = OPS_SHARES,
    names: Sequence[Name] = TRAIN_NAMES,
    items: Sequence[str] = TRAIN_ITEMS,
) -> Problem:
    """A random problem of one side of the split.

    shares: the probability of each entry of `ops`; None for equal ones. The number of
    operations is drawn once, before any rejection, so that the mix stays as asked.
    """
    count = int(rng.choice(ops, p=shares))
    while True:
        problem = sample(rng, count, names, items)
        if split_of(problem.key) == split:
            return problem


def key(start: int, chain: Chain) -> str:
    """The skeleton: the start and the operations, without names and wording."""
    return f"words {start} " + " ".join(f"{op}{k}" for op, k in chain)


def answer(start: int, chain: Chain) -> str:
    """The reference answer: one equation a line, then `#### n`."""
    lines, value = [], start
    for op, k in chain:
        result = APPLY[op](value, k)
        lines.append(f"{value}{SIGNS[op]}{k}={result}")
        value = result
    return "\n".join([*lines, f"#### {value}"])


def _chain(rng: np.random.Generator, ops: int) -> tuple[int, Chain]:
    start = value = int(rng.integers(2, 21))
    chain: list[tuple[str, int]] = []
    for _ in range(ops):
        op, k = _operation(rng, value)
        chain.append((op, k))
        value = APPLY[op](value, k)
    return start, tuple(chain)


def _operation(rng: np.random.Generator, value: int) -> tuple[str, int]:
    """One operation that keeps the value in 1..60: mostly sums and differences."""
    while True:
        kind = rng.random()
        k = 1 + int(rng.random() * 9)
        if kind < 0.4 and value + k <= HIGHEST:
            return "add", k
        if 0.4 <= kind < 0.8 and value - k >= 1:
            return "sub", k
        if 0.8 <= kind < 0.88 and value <= LARGEST_SCALED:
            return "double", 2
        if 0.88 <= kind < 0.93 and value <= LARGEST_SCALED:
            return "triple", 3
        if kind >= 0.93 and value % 2 == 0:
            return "halve", 2


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    # A float is several times cheaper than a bounded integer, and this runs millions
    # of times; the bias of 2**-53 does not matter here.
    return options[int(rng.random() * len(options))]
