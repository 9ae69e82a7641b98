"""The frozen test sets: JSONL files beside this module, pinned by their sha256.

`python -m jaxdave.demo_tasks.problem_sets` writes them again, byte for byte.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxdave.demo_tasks import lists, words
from jaxdave.demo_tasks.problem import Problem, from_line, split_of, to_line
from jaxdave.runtime.files import replace_file

SEED = 20260
FOLDER = Path(__file__).parent / "data"
SHA256 = {
    "words_test": "5399365b39ba5bf7f38a89d7ccd303aeda55534ff712006f80005d986e7f63d7",
    "words_long": "2046809482397bf8477f04f3911b2a58ef3d1fe280b7384bf643cd7e806d1b9f",
    "words_names": "bfacc6dca43525e870ce657d1b33c00c7abe7fc12914fbd4f94c11c648bcac22",
    "lists_test": "d20c8da57bd47273ed364554063a5c2a59e57868c09ff0621c5153fa56ff8672",
}

ProblemSampler = Callable[[np.random.Generator], Problem]
TEST_OPS = (2, 3, 4)
"""Numbers of operations of the usual word problems; each is equally likely."""


def _sample_words_test(rng: np.random.Generator) -> Problem:
    return words.sample_from_split(rng, "test", TEST_OPS, None)


def _sample_words_long(rng: np.random.Generator) -> Problem:
    return words.sample_from_split(rng, "test", (words.MAX_OPS,), None)


def _sample_words_names(rng: np.random.Generator) -> Problem:
    people, items = words.HELD_OUT_PEOPLE, words.HELD_OUT_ITEMS
    return words.sample_from_split(rng, "test", TEST_OPS, None, people, items)


def _sample_lists_test(rng: np.random.Generator) -> Problem:
    """Sample a function whose answer no training problem has.

    "even" and "divisible by 2" are two keys with one answer, so both must be test keys.
    """
    while True:
        problem = lists.sample_from_split(rng, "test")
        synonyms = (("even0", "divisible2"), ("divisible2", "even0"))
        if all(split_of(problem.key.replace(*pair)) == "test" for pair in synonyms):
            return problem


SETS: dict[str, tuple[int, ProblemSampler]] = {
    "words_test": (500, _sample_words_test),
    "words_long": (100, _sample_words_long),
    "words_names": (100, _sample_words_names),
    "lists_test": (200, _sample_lists_test),
}
"""By name: the number of problems, and the function that samples one.

words_test: word problems like those of training. words_long: with more operations than
any of training. words_names: with names and items that no training problem has.
lists_test: list functions.
"""


def load(name: str) -> list[Problem]:
    """Load the problems of one frozen set.

    Args:
        name: A key of `SETS`.

    Returns:
        The problems in the file's order.

    Raises:
        ValueError: If the name is unknown, or the file is missing or not the pinned
            one.

    Example:
        >>> len(load("words_test"))
        500
    """
    path = _path(name)
    content = path.read_bytes() if path.exists() else b""
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(
            f"frozen set {name} has sha256 {digest[:12]} but must have "
            f"{SHA256[name][:12]}; run `python -m jaxdave.demo_tasks.problem_sets` to "
            "restore it"
        )
    return [from_line(line) for line in content.decode().splitlines()]


def build(name: str) -> bytes:
    """Generate the content of one frozen set from the fixed seed.

    Args:
        name: A key of `SETS`.

    Returns:
        The bytes of its JSONL file.

    Raises:
        ValueError: If the name is unknown.
    """
    _path(name)
    count, sample = SETS[name]
    # Each set has a stream of its own, so that one can change without the others.
    rng = np.random.default_rng((SEED, list(SETS).index(name)))
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = sample(rng)
        problems.setdefault(problem.prompt, problem)
    return "".join(to_line(p) + "\n" for p in problems.values()).encode()


def rebuild() -> None:
    """Write the files of all frozen sets again.

    Raises:
        ValueError: After writing, if a set no longer has its pinned sha256: the
            generator changed, and with it what older scores were measured on.
    """
    FOLDER.mkdir(exist_ok=True)
    changed = []
    for name in SETS:
        content = build(name)
        replace_file(_path(name), content)
        digest = hashlib.sha256(content).hexdigest()
        if digest != SHA256[name]:
            changed.append(f"{name}={digest}")
    if changed:
        raise ValueError(
            f"frozen sets changed: {', '.join(changed)}; they must stay as pinned, so "
            "undo the change of the generator or pin the new values in SHA256"
        )


def _path(name: str) -> Path:
    """The file of a set; raises ValueError for an unknown name."""
    if name not in SETS:
        raise ValueError(
            f"frozen set {name!r} is unknown; choose one of {', '.join(SETS)}"
        )
    return FOLDER / f"{name}.jsonl"


if __name__ == "__main__":
    rebuild()
