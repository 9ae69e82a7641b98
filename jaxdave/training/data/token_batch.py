"""Batches of texts to train on: tokens, which of them are answers, and of which sample.

A row holds one sample, or several that are packed one behind the other and do not see
each other.

Axes: B rows, T positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PADDING = -1
"""The sample of positions that belong to none."""


class TokenBatch(NamedTuple):
    """Texts of one length.

    Attributes:
        tokens_BT: int32, clean text.
        is_answer_BT: bool, tokens that may be masked and are trained; the others are
            prompts or padding.
        sample_BT: int32, the sample of its row that a token belongs to, counted from 0;
            `PADDING` where none.
    """

    tokens_BT: jax.Array | np.ndarray
    is_answer_BT: jax.Array | np.ndarray
    sample_BT: jax.Array | np.ndarray


TokenSample = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt, which may be empty, and of its answer."""


def pack_samples(
    rows: Sequence[Sequence[TokenSample]],
    *,
    length: int,
    pad_id: int,
    block_length: int | None = None,
    train_padding: bool = False,
) -> TokenBatch:
    """Lay samples behind each other in rows, padded on the right.

    Args:
        rows: The samples of each row, in order.
        length: Positions of a row.
        pad_id: The id behind the last sample.
        block_length: Blocks that the length must be made of; None: any length will do.
        train_padding: The padding is part of the last answer of its row, so that the
            model learns to end (LLaDA and LLaDA2 do so with end tokens).

    Returns:
        The batch, as host arrays.

    Raises:
        ValueError: There is no row, a sample has no answer, a row is too long, or the
            length is not made of whole blocks.

    Example:
        >>> batch = pack_samples([[([1], [2, 3]), ([4], [5])]], length=6, pad_id=0)
        >>> batch.sample_BT.tolist()
        [[0, 0, 0, 1, 1, -1]]
        >>> batch.is_answer_BT.astype(int).tolist()
        [[0, 1, 1, 0, 1, 0]]
    """
    _check_rows(rows)
    _check_blocks("length", length, block_length)
    tokens_BT, is_answer_BT, sample_BT = _empty(len(rows), length, pad_id)
    for row, samples in enumerate(rows):
        end = 0
        for index, (prompt, answer) in enumerate(samples):
            begin, end = end, end + len(prompt) + len(answer)
            if end > length:
                raise ValueError(
                    f"row {row} has {end} tokens up to sample {index}, more than "
                    f"length={length}; raise it, or move the sample to another row"
                )
            tokens_BT[row, begin:end] = [*prompt, *answer]
            is_answer_BT[row, begin + len(prompt) : end] = True
            sample_BT[row, begin:end] = index
        if train_padding:
            is_answer_BT[row, end:] = True
            sample_BT[row, end:] = len(samples) - 1
    return TokenBatch(tokens_BT, is_answer_BT, sample_BT)


def align_answers(
    samples: Sequence[TokenSample],
    *,
    prompt_columns: int,
    answer_columns: int,
    pad_id: int,
    block_length: int | None = None,
) -> TokenBatch:
    """Lay one sample in each row so that all answers begin in one column.

    Prompts are padded on the left, answers on the right; neither padding is trained or
    seen.

    Args:
        samples: One for each row.
        prompt_columns: Columns before the answers.
        answer_columns: Columns of the answers.
        pad_id: The id of the padding.
        block_length: Blocks that the answers' columns must be made of; None: any number
            will do.

    Returns:
        The batch, as host arrays.

    Raises:
        ValueError: There is no sample, one has no answer or does not fit, or the
            answers' columns are not whole blocks.

    Example:
        >>> batch = align_answers(
        ...     [([1], [2])], prompt_columns=2, answer_columns=2, pad_id=0
        ... )
        >>> batch.tokens_BT.tolist(), batch.sample_BT.tolist()
        ([[0, 1, 2, 0]], [[-1, 0, 0, -1]])
    """
    _check_rows([[sample] for sample in samples])
    _check_blocks("answer_columns", answer_columns, block_length)
    length = prompt_columns + answer_columns
    tokens_BT, is_answer_BT, sample_BT = _empty(len(samples), length, pad_id)
    for row, (prompt, answer) in enumerate(samples):
        if len(prompt) > prompt_columns or len(answer) > answer_columns:
            raise ValueError(
                f"sample {row} has {len(prompt)} and {len(answer)} tokens, more than "
                f"{prompt_columns=} and {answer_columns=}; raise them"
            )
        begin, end = prompt_columns - len(prompt), prompt_columns + len(answer)
        tokens_BT[row, begin:end] = [*prompt, *answer]
        is_answer_BT[row, prompt_columns:end] = True
        sample_BT[row, begin:end] = 0
    return TokenBatch(tokens_BT, is_answer_BT, sample_BT)


def run_starts(*labels_BT: jax.Array) -> jax.Array:
    """The column at which each token's run of equal labels begins.

    Args:
        labels_BT: int32 [B, T], one or more; a run ends where any of them changes.

    Returns:
        int32 [B, T].

    Example:
        >>> run_starts(jnp.array([[7, 7, 2, 2, 2, 7]])).tolist()
        [[0, 0, 2, 2, 2, 5]]
    """
    rows, columns = labels_BT[0].shape
    changes_BT = jnp.zeros((rows, columns), bool).at[:, 0].set(True)
    for label_BT in labels_BT:
        changed_BT = label_BT[:, 1:] != label_BT[:, :-1]
        changes_BT = changes_BT.at[:, 1:].set(changes_BT[:, 1:] | changed_BT)
    column_T = jnp.arange(columns, dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(changes_BT, column_T[None], 0), axis=1)


def sum_over_runs(values_BT: jax.Array, start_BT: jax.Array) -> jax.Array:
    """Sum over the run of each token.

    Args:
        values_BT: Numbers [B, T].
        start_BT: Where the runs begin, from `run_starts`.

    Returns:
        For each token the sum of its run, of the shape and dtype of `values_BT`.

    Example:
        >>> start = run_starts(jnp.array([[0, 0, 1]]))
        >>> sum_over_runs(jnp.array([[1, 2, 4]]), start).tolist()
        [[3, 3, 4]]
    """

    def sum_row(values_T, start_T):
        sums_T = jnp.zeros_like(values_T).at[start_T].add(values_T)
        return sums_T[start_T]

    return jax.vmap(sum_row)(values_BT, start_BT)


def _empty(rows: int, length: int, pad_id: int):
    """Tokens, answers and samples of rows without any."""
    shape = (rows, length)
    return (
        np.full(shape, pad_id, np.int32),
        np.zeros(shape, bool),
        np.full(shape, PADDING, np.int32),
    )


def _check_rows(rows: Sequence[Sequence[TokenSample]]) -> None:
    if not rows:
        raise ValueError("a batch of 0 rows has nothing to train; give at least 1")
    for row, samples in enumerate(rows):
        if not samples:
            raise ValueError(f"row {row} has no sample; leave it out")
        for index, (_, answer) in enumerate(samples):
            if not len(answer):
                raise ValueError(
                    f"sample {index} of row {row} has an answer of 0 tokens; an answer "
                    "needs at least 1, such as the end token"
                )


def _check_blocks(name: str, length: int, block_length: int | None) -> None:
    if length < 1:
        raise ValueError(f"{name}={length} must be at least 1")
    if block_length is not None and length % block_length:
        raise ValueError(
            f"{name}={length} must be a multiple of block_length={block_length}; "
            f"use {-(-length // block_length) * block_length}"
        )
