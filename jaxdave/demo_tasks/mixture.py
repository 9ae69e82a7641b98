"""The training stream: problems of both families, by a seed and an index.

Problem `index` depends on nothing but the two numbers, so that a resumed training run
continues the same stream, and several processes can make parts of it.
"""

import numpy as np

from jaxdave.demo_tasks import lists, words
from jaxdave.demo_tasks.problem import Problem, split_of

KINDS = (
    ("words1", "words2", "words3", "lists", "words2", "words3", "words4", "words2")
    + ("words3", "lists", "words2", "words3", "words4", "words1", "words3", "words2")
    + ("lists", "words3", "words2", "words4", "words3", "lists", "words2", "words3")
    + ("words4", "words2", "lists", "words3", "words1", "words2", "words4", "lists")
)
"""The kinds of 32 consecutive indices. The mix is fixed, not random, so that every
batch of a multiple of 32 problems has equally many of each length."""


def kind_of(index: int) -> str:
    """Return the kind of problem at an index of the stream.

    Args:
        index: Index in the stream, from 0.

    Returns:
        "words1" to "words4", by the number of operations, or "lists".
    """
    return KINDS[index % len(KINDS)]


def training_problem(seed: int, index: int) -> Problem:
    """Return one problem of a training stream.

    Args:
        seed: Seed of the stream.
        index: Index in the stream, from 0.

    Returns:
        The problem; its key is never one of the test side.

    Example:
        >>> print(training_problem(seed=0, index=3).answer)
        def f(xs):
            return sorted([-x for x in xs if x % 2 == 1], reverse=True)
    """
    rng = np.random.default_rng((seed, index))
    kind = kind_of(index)
    while True:
        problem = (
            lists.sample(rng) if kind == "lists" else words.sample(rng, int(kind[-1]))
        )
        if split_of(problem.key) == "train":
            return problem
