"""The training stream: a pure function of a seed and an index."""

import numpy as np

from jaxdave.demo_tasks import lists, words
from jaxdave.demo_tasks.problem import Problem, split_of

KINDS = (
    ("words1", "words2", "words3", "lists", "words2", "words3", "words4", "words2")
    + ("words3", "lists", "words2", "words3", "words4", "words1", "words3", "words2")
    + ("lists", "words3", "words2", "words4", "words3", "lists", "words2", "words3")
    + ("words4", "words2", "lists", "words3", "words1", "words2", "words4", "lists")
)
"""What each of 32 consecutive indices holds: one fixed mix, so that batches can be
grouped by length."""


def kind_of(index: int) -> str:
    """ "words1" to "words4" (by number of operations) or "lists"."""
    return KINDS[index % len(KINDS)]


def training_problem(seed: int, index: int) -> Problem:
    """The problem at `index` of the stream; its key is never a test key."""
    rng = np.random.default_rng((seed, index))
    kind = kind_of(index)
    while True:
        problem = (
            lists.sample(rng) if kind == "lists" else words.sample(rng, int(kind[-1]))
        )
        if split_of(problem.key) == "train":
            return problem
