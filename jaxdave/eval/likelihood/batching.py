"""Questions in, log-likelihoods out: the host side of `score.py`.

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
from jax.sharding import PartitionSpec

from jaxdave.engine.batching import bucket_length
from jaxdave.engine.placement import placement_of
from jaxdave.eval.likelihood import masks
from jaxdave.eval.likelihood.score import (
    Scorer,
    ScoringRow,
    count_not_greedy,
    score,
    score_by_confidence,
)
from jaxdave.runtime.compilation import CompileRequest, get_executable
from jaxdave.runtime.meshes import split_specs

SAMPLES_PER_PREFILL = 16
"""Samples of a block-causal model that are evaluated after one prefill."""
MIN_WINDOW = 8
"""Positions of the shortest window of a full-attention model."""


class Question(NamedTuple):
    """A text whose likelihood after another is asked for.

    Attributes:
        context: Token ids of the text before; may be empty.
        target: Token ids of the text that is scored.
        suffix: Token ids of the text after it, which only full attention sees.
    """

    context: tuple[int, ...]
    target: tuple[int, ...]
    suffix: tuple[int, ...] = ()


MakeRow = Callable[[Question], ScoringRow]
"""Function (question) -> one row with all its samples."""

ScoreFn = Callable[[Scorer, Any, ScoringRow], jax.Array]
"""(scorer, params, rows) -> float32 [B], such as `score.score`."""


def log_likelihoods(
    scorer: Scorer,
    params: Any,
    questions: Sequence[Question],
    rule: masks.MaskRule | str,
    *,
    seed: int = 0,
    batch_size: int = 8,
) -> Iterator[tuple[int, float]]:
    """Yield the log-likelihood of every question as soon as it is complete.

    The noise of the rule is keyed by the seed and the question alone, so that an answer
    depends neither on the other questions nor on `batch_size`, but for its last digits.

    Example:
        The bound of one answer from 128 samples:

          scorer = make_scorer(model.config)
          questions = [Question(context=(1, 2), target=(3,))]
          values = dict(
              log_likelihoods(scorer, model.params, questions, masks.bound(128))
          )

    Args:
        scorer: Model to score with.
        params: Parameters of the model.
        questions: Contexts and targets.
        rule: A rule of `masks`, such as `masks.bound(samples)` or `masks.chain`, or
            `masks.CONFIDENCE`.
        seed: Seed of the rule's noise.
        batch_size: Number of rows that a call evaluates.

    Returns:
        Iterator of (index of the question, log-likelihood in nats), not in order.

    Raises:
        ValueError: A target is empty, holds the mask id or is too long; a block-causal
            model is asked for what stands before a suffix; or the rule is unknown.
    """
    score_fn = score
    if isinstance(rule, str):
        if rule != masks.CONFIDENCE:
            raise ValueError(
                f"rule={rule!r} is unknown; use {masks.CONFIDENCE!r} or a function of "
                f"masks.RULES ({', '.join(masks.RULES)})"
            )
        score_fn, rule = score_by_confidence, masks.one_pass
    for index, question in enumerate(questions):
        _check(scorer, index, question)
    make_row = functools.partial(_make_row, scorer, rule, seed)
    return _score_all(scorer, params, questions, make_row, batch_size, score_fn)


def greedy_texts(
    scorer: Scorer, params: Any, questions: Sequence[Question], *, batch_size: int = 8
) -> Iterator[tuple[int, bool]]:
    """Yield for every question whether greedy decoding writes its target.

    That is decoding one token a step in the order of confidence, in a room of just the
    target's length, as LLaDA's evaluation does.

    Args:
        scorer: Model to score with.
        params: Parameters of the model.
        questions: Contexts and targets.
        batch_size: Number of rows that a call evaluates.

    Returns:
        Iterator of (index of the question, is greedy), not in order.

    Raises:
        ValueError: As for `log_likelihoods`.
    """
    for index, question in enumerate(questions):
        _check(scorer, index, question)
    make_row = functools.partial(_make_row, scorer, masks.one_pass, 0)
    counts = _score_all(
        scorer, params, questions, make_row, batch_size, count_not_greedy
    )
    return ((index, count == 0) for index, count in counts)


def _score_all(
    scorer: Scorer,
    params,
    questions,
    make_row: MakeRow,
    batch_size: int,
    score_fn: ScoreFn,
) -> Iterator[tuple[int, float]]:
    """The generator behind `log_likelihoods`: one shape of rows after the other."""

    def shape_of(index: int):
        # The row is made again when it is evaluated: cheaper than keeping all of them.
        row = make_row(questions[index])
        samples, size = row.hidden_SL.shape
        return len(row.tokens_T), size, _samples_per_row(scorer, samples)

    def split_rows(indices: Iterable[int], samples: int):
        for index in indices:
            parts = list(_split_samples(make_row(questions[index]), samples))
            remaining[index] = len(parts)
            yield from ((index, part) for part in parts)

    remaining: Counter[int] = Counter()
    totals: dict[int, float] = {}
    # The largest shapes come first, so that memory runs out at once or never.
    pairs = ((shape_of(index), index) for index in range(len(questions)))
    order = sorted(pairs, reverse=True)
    for (_, _, samples), group in itertools.groupby(order, key=lambda pair: pair[0]):
        rows = split_rows((index for _, index in group), samples)
        for batch, count in padded_batches(rows, batch_size):
            indices, row_parts = zip(*batch, strict=True)
            values = _score_batch(scorer, params, row_parts, score_fn)
            for index, value in zip(indices[:count], values[:count], strict=True):
                remaining[index] -= 1
                totals[index] = totals.get(index, 0.0) + float(value)
                if not remaining[index]:
                    yield index, totals.pop(index)


def padded_batches(items: Iterable, batch_size: int) -> Iterator[tuple[list, int]]:
    """Split items into batches of one size.

    The last batch is filled up with copies of its last item, so that it has the shape
    of the others. If there is only one batch, it is filled up to a power of two.

    Example:
        >>> list(padded_batches("abc", 2))
        [(['a', 'b'], 2), (['c', 'c'], 1)]

    Args:
        items: Items of any kind; read lazily.
        batch_size: Largest number of items of a batch.

    Returns:
        Iterator of (batch, number of its items that are not copies).
    """
    iterator, full = iter(items), 0
    while batch := list(itertools.islice(iterator, batch_size)):
        full = full or min(batch_size, _next_power_of_two(len(batch)))
        yield batch + batch[-1:] * (full - len(batch)), len(batch)


def _score_batch(
    scorer: Scorer, params, rows: Sequence[ScoringRow], score_fn: ScoreFn
) -> np.ndarray:
    stacked = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *rows)
    placement = placement_of(params)
    placement.check_one_process("scoring")
    if placement.num_parts > 1:
        assert scorer.on_parts is not None, "this scorer cannot be split over devices"
        scorer = scorer.on_parts(num_parts=placement.num_parts)
    # Rows that do not divide are evaluated by every group of devices.
    divides = len(rows) % placement.num_groups == 0
    rows_spec = placement.rows_spec if divides else PartitionSpec()
    run_fn = placement.program(
        functools.partial(score_fn, scorer),
        (split_specs(params), rows_spec),
        rows_spec,
    )
    request = CompileRequest(scorer, score_fn.__name__, run_fn, (params, stacked))
    run, _ = get_executable(request)
    return np.asarray(run(params, stacked))


def _make_row(
    scorer: Scorer, rule: masks.MaskRule, seed: int, question: Question
) -> ScoringRow:
    """All samples of a question, as one row."""
    begin, text = len(question.context), question.context + question.target
    whole = text + question.suffix
    # Full attention scores the target as one block that begins where the target does;
    # block-causal blocks lie on a grid, so the first may hold the end of the context.
    length = scorer.block_length or len(question.target)
    start = begin // length * length if scorer.block_length else begin
    unit = length if scorer.block_length else MIN_WINDOW
    size = unit * _next_power_of_two(-(-(len(text) - start) // unit))
    stretches = [
        range(max(edge, begin) - start, min(edge + length, len(text)) - start)
        for edge in range(start, len(text), length)
    ]
    window = masks.window_masks(rule, stretches, size, _generator(seed, question))
    capacity = bucket_length(max(start + size, len(whole)))
    tokens_T = np.full(capacity, scorer.mask_id, np.int32)
    tokens_T[: len(whole)] = whole
    return ScoringRow(
        tokens_T=tokens_T,
        start=np.int32(start),
        stop=np.int32(len(text)),
        end=np.int32(len(whole)),
        hidden_SL=window.hidden_SN,
        weight_SL=window.weight_SN,
    )


def _generator(seed: int, question: Question) -> np.random.Generator:
    """Noise keyed by the seed and the question, whatever else is scored."""
    parts = question[:2] if not question.suffix else question
    digest = hashlib.sha256(repr((seed, *map(list, parts))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def _samples_per_row(scorer: Scorer, samples: int) -> int:
    """Samples of a row: only a block-causal model has a prefix to share."""
    if not scorer.block_length:
        return 1
    return min(SAMPLES_PER_PREFILL, _next_power_of_two(samples))


def _split_samples(row: ScoringRow, samples: int) -> Iterator[ScoringRow]:
    """Rows of `samples` each; samples that the last one lacks have weight 0."""
    missing = -len(row.hidden_SL) % samples
    hidden_SL, weight_SL = (
        np.pad(part, ((0, missing), (0, 0))) for part in (row.hidden_SL, row.weight_SL)
    )
    for first in range(0, len(hidden_SL), samples):
        part = np.s_[first : first + samples]
        yield row._replace(hidden_SL=hidden_SL[part], weight_SL=weight_SL[part])


def _next_power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


def _check(scorer: Scorer, index: int, question: Question) -> None:
    """Raise ValueError for a question that cannot be scored."""
    whole = question.context + question.target + question.suffix
    if not question.target:
        raise ValueError(f"target {index} is empty; there is nothing to score")
    if question.suffix and scorer.block_length:
        raise ValueError(
            f"question {index} has a suffix, which a block-causal model does not see; "
            "leave it out"
        )
    if scorer.mask_id in whole:
        raise ValueError(
            f"question {index} holds the mask id {scorer.mask_id}, which stands for "
            "text not written yet; take it out"
        )
    if len(whole) > scorer.max_positions:
        raise ValueError(
            f"question {index} has {len(whole)} tokens, but the model allows "
            f"{scorer.max_positions}; shorten it"
        )
