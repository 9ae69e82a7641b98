"""Texts aligned at the block in which their answers begin.

A decoder of block-causal models counts blocks from the first token of the prompt, so
that the end of a prompt may share a block with the beginning of the answer. Here rows
are padded on the left by whole blocks, and all blocks lie in the same columns.

Axes: B rows, T positions.
"""

from collections.abc import Sequence

import numpy as np

from jaxdave.training.token_batch import PADDING, TokenBatch, TokenSample


def align_blocks(
    samples: Sequence[TokenSample],
    *,
    prompt_columns: int,
    answer_columns: int,
    block_length: int,
    pad_id: int,
) -> TokenBatch:
    """Lay one sample in each row so that the blocks of all answers share columns.

    The column `prompt_columns` is the first of the block in which the answer begins.
    The last block of an answer is filled with padding, which is trained: a decoder sees
    such a block as masked, and commits its tokens in some order.

    Args:
        samples: One for each row.
        prompt_columns: Columns for whole blocks of the prompts.
        answer_columns: Columns for the rest of the prompts and the answers.
        block_length: Tokens of a block.
        pad_id: The id of the padding.

    Returns:
        The batch, as host arrays.

    Raises:
        ValueError: There is no sample, one has no answer or does not fit, or columns
            are not whole blocks.

    Example:
        >>> batch = align_blocks(
        ...     [([1, 2, 3], [4])],
        ...     prompt_columns=4,
        ...     answer_columns=4,
        ...     block_length=2,
        ...     pad_id=0,
        ... )
        >>> batch.tokens_BT.tolist(), batch.is_answer_BT.astype(int).tolist()
        ([[0, 0, 1, 2, 3, 4, 0, 0]], [[0, 0, 0, 0, 0, 1, 0, 0]])
    """
    if not samples:
        raise ValueError("a batch of 0 samples has nothing to train; give at least 1")
    for name, columns in (
        ("prompt_columns", prompt_columns),
        ("answer_columns", answer_columns),
    ):
        if columns < 0 or columns % block_length:
            raise ValueError(
                f"{name}={columns} must be a multiple of block_length={block_length}; "
                f"use {-(-max(columns, 0) // block_length) * block_length}"
            )
    shape = (len(samples), prompt_columns + answer_columns)
    tokens_BT = np.full(shape, pad_id, np.int32)
    is_answer_BT = np.zeros(shape, bool)
    sample_BT = np.full(shape, PADDING, np.int32)
    for row, (prompt, answer) in enumerate(samples):
        whole = len(prompt) // block_length * block_length
        length = len(prompt) + len(answer)
        filled = -(-length // block_length) * block_length
        if not len(answer):
            raise ValueError(
                f"sample {row} has an answer of 0 tokens; an answer needs at least 1, "
                "such as the end token"
            )
        if whole > prompt_columns or filled - whole > answer_columns:
            raise ValueError(
                f"sample {row} has {whole} tokens of prompt in whole blocks and "
                f"{filled - whole} after them, more than {prompt_columns=} and "
                f"{answer_columns=}; raise them"
            )
        begin = prompt_columns - whole
        tokens_BT[row, begin : begin + length] = [*prompt, *answer]
        is_answer_BT[row, begin + len(prompt) : begin + filled] = True
        sample_BT[row, begin : begin + filled] = 0
    return TokenBatch(tokens_BT, is_answer_BT, sample_BT)
