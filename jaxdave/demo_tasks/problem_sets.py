"""The frozen test sets: JSONL files beside this module, pinned by their sha256.

`python -m jaxdave.tasks.frozen` writes them again, byte for byte.
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

Maker = Callable[[np.random.Generator], Problem]
TESTED_OPS = (2, 3, 4)


def _words_test(rng: np.random.Generator) -> Problem:
    return words.draw(rng, "test", TESTED_OPS, None)


def _words_long(rng: np.random.Generator) -> Problem:
    return words.draw(rng, "test", (words.MOST_OPS,), None)


def _words_names(rng: np.random.Generator) -> Problem:
    names, items = words.HELD_NAMES, words.HELD_ITEMS
    return words.draw(rng, "test", TESTED_OPS, None, names, items)


def _lists_test(rng: np.random.Generator) -> Problem:
    """A function whose answer no training problem has.

    "even" and "divisible by 2" are two keys with one answer, so both must be test keys.
    """
    while True:
        problem = lists.draw(rng, "test")
        twins = (("even0", "divisible2"), ("divisible2", "even0"))
        if all(split_of(problem.key.replace(*t)) == "test" for t in twins):
            return problem


# name -> (how many problems, how to make one)
SETS: dict[str, tuple[int, Maker]] = {
    "words_test": (500, _words_test),
    "words_long": (100, _words_long),
    "words_names": (100, _words_names),
    "lists_test": (200, _lists_test),
}


def load(name: str) -> list[Problem]:
    """The problems of one frozen set.

    Raises ValueError for an unknown name and for a file that is missing or is not the
    pinned one.
    """
    path = _path(name)
    content = path.read_bytes() if path.exists() else b""
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise ValueError(
            f"frozen set {name} has sha256 {found[:12]} but must have "
            f"{SHA256[name][:12]}; run `python -m jaxdave.tasks.frozen` to restore it"
        )
    return [from_line(line) for line in content.decode().splitlines()]


def build(name: str) -> bytes:
    """The bytes of one frozen set, made anew from the fixed seed."""
    _path(name)
    count, make = SETS[name]
    # Each set has a stream of its own, so that one can change without the others.
    rng = np.random.default_rng((SEED, list(SETS).index(name)))
    chosen: dict[str, Problem] = {}
    while len(chosen) < count:
        problem = make(rng)
        chosen.setdefault(problem.prompt, problem)
    return "".join(to_line(p) + "\n" for p in chosen.values()).encode()


def rebuild() -> None:
    """Write all frozen sets again.

    Raises ValueError, after writing, when a set no longer has its pinned sha256: the
    generator changed, and with it what older scores were measured on.
    """
    FOLDER.mkdir(exist_ok=True)
    changed = []
    for name in SETS:
        content = build(name)
        replace_file(_path(name), content)
        found = hashlib.sha256(content).hexdigest()
        if found != SHA256[name]:
            changed.append(f"{name}={found}")
    if changed:
        raise ValueError(
            f"frozen sets changed: {', '.join(changed)}; they must stay as pinned, so "
            "undo the change of the generator or pin the new values in SHA256"
        )


def _path(name: str) -> Path:
    if name not in SETS:
        raise ValueError(
            f"frozen set {name!r} is unknown; choose one of {', '.join(SETS)}"
        )
    return FOLDER / f"{name}.jsonl"


if __name__ == "__main__":
    rebuild()
