"""Questions in, log-likelihoods out: the host's side of `likelihood.py`.

Shapes are padded to powers of two, and a program is compiled once per shape.
"""

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.engine.batching import bucket_length
from jaxdave.eval.likelihood import masks
from jaxdave.eval.likelihood.score import Row, Scorer, score
from jaxdave.runtime.compilation import CompileRequest, get_executable

SHARED = 16
"""Samples of a block-causal model that are evaluated after one prefill."""
SHORTEST = 8
"""Positions of the shortest window of a full-attention model."""


class Question(NamedTuple):
    """Token ids: how likely is the target after the context?"""

    context: tuple[int, ...]
    target: tuple[int, ...]


def log_likelihoods(
    of: Scorer,
    params: Any,
    questions: Sequence[Question],
    rule: masks.Rule,
    *,
    seed: int = 0,
    rows: int = 8,
) -> Iterator[tuple[int, float]]:
    """(index, log-likelihood in nats) of every question, as they are done.

    rule: `masks.bound(samples)` or `masks.chain`; its noise is keyed by the seed and
    the question alone, so that an answer depends neither on the others nor on `rows`,
    how many evaluations a call carries, but for the last digits.
    Raises ValueError for a target that is empty, has a mask in it or is too long.
    """
    for index, question in enumerate(questions):
        _check(of, index, question)
    plan = functools.partial(_plan, of, rule, seed)
    return _answers(of, params, questions, plan, rows)


Plan = Callable[[Question], Row]


def _answers(of: Scorer, params, questions, plan: Plan, rows: int):
    """The generator behind `log_likelihoods`: one shape of rows after the other."""

    def shape(index: int):
        row = plan(questions[index])  # made again later: it is cheaper than kept
        samples, size = row.hidden_SL.shape
        return len(row.tokens_T), size, _together(of, samples)

    def cut(indices: Iterable[int], samples: int):
        for index in indices:
            made = list(_cut(plan(questions[index]), samples))
            left[index] = len(made)
            yield from ((index, row) for row in made)

    left: Counter[int] = Counter()
    total: dict[int, float] = {}
    # The largest come first, so that memory runs out at once or never.
    pairs = ((shape(index), index) for index in range(len(questions)))
    order = sorted(pairs, reverse=True)
    for (_, _, samples), group in itertools.groupby(order, key=lambda pair: pair[0]):
        for batch, count in batches(cut((i for _, i in group), samples), rows):
            indices, made = zip(*batch, strict=True)
            values = _run(of, params, made)
            for index, value in zip(indices[:count], values[:count], strict=True):
                left[index] -= 1
                total[index] = total.get(index, 0.0) + float(value)
                if not left[index]:
                    yield index, total.pop(index)


def batches(rows: Iterable, most: int) -> Iterator[tuple[list, int]]:
    """Lists of `most`, and how many of each count.

    What is missing in the last is filled up with copies, so that it has the shape of
    the others; few in all are filled up to a power of two.
    """
    left, full = iter(rows), 0
    while batch := list(itertools.islice(left, most)):
        full = full or min(most, _power(len(batch)))
        yield batch + batch[-1:] * (full - len(batch)), len(batch)


def _run(of: Scorer, params, made: Sequence[Row]) -> np.ndarray:
    stacked = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *made)
    wanted = CompileRequest(
        of, "score", functools.partial(score, of), (params, stacked)
    )
    run, _ = get_executable(wanted)
    return np.asarray(run(params, stacked))


def _plan(of: Scorer, rule: masks.Rule, seed: int, question: Question) -> Row:
    """All samples of a question, as one row."""
    begin, text = len(question.context), question.context + question.target
    length = of.length or len(question.target)
    start = begin // length * length if of.length else begin
    least = length if of.length else SHORTEST
    size = least * _power(-(-(len(text) - start) // least))
    edges = range(start, len(text), length)
    stretches = [
        range(max(edge, begin) - start, min(edge + length, len(text)) - start)
        for edge in edges
    ]
    drawn = masks.over(rule, stretches, size, _noise(seed, question))
    tokens_T = np.full(bucket_length(start + size), of.mask_id, np.int32)
    tokens_T[: len(text)] = text
    return Row(tokens_T, np.int32(start), np.int32(len(text)), *drawn)


def _noise(seed: int, question: Question) -> np.random.Generator:
    digest = hashlib.sha256(repr((seed, *map(list, question))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def _together(of: Scorer, samples: int) -> int:
    """Samples of a row: only a block-causal model has a prefix to share."""
    return min(SHARED, _power(samples)) if of.length else 1


def _cut(row: Row, samples: int) -> Iterator[Row]:
    """Rows of `samples` each; what the last lacks counts nothing."""
    missing = -len(row.hidden_SL) % samples
    hidden_SL, weight_SL = (
        np.pad(part, ((0, missing), (0, 0))) for part in (row.hidden_SL, row.weight_SL)
    )
    for first in range(0, len(hidden_SL), samples):
        part = np.s_[first : first + samples]
        yield row._replace(hidden_SL=hidden_SL[part], weight_SL=weight_SL[part])


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _check(of: Scorer, index: int, question: Question) -> None:
    size = len(question.context) + len(question.target)
    if not question.target:
        raise ValueError(f"target {index} is empty; there is nothing to score")
    if of.mask_id in question.context + question.target:
        raise ValueError(
            f"question {index} holds the mask id {of.mask_id}, which stands for text "
            "not written yet; take it out"
        )
    if size > of.max_positions:
        raise ValueError(
            f"question {index} has {size} tokens, but the model allows "
            f"{of.max_positions}; shorten it"
        )
