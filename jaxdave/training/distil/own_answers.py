"""The texts of self-distillation: a model's own answers, with their trajectories.

Axes: B rows, T positions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import generate
from jaxdave.engine.trajectory import Trajectory
from jaxdave.training.distil.states import RecordedBatch
from jaxdave.training.token_batch import PADDING

RecordedAnswer = tuple[Sequence[int], Trajectory]
"""Token ids of a prompt, and what was decoded behind it."""


def own_answers(
    decoder: Decoder,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    prompts_at_once: int = 16,
) -> list[RecordedAnswer | None]:
    """Decode the answers that a model is distilled from.

    Drafts change nothing of them, so the decoder may use any.

    Args:
        decoder: How the model decodes, with `record_steps`.
        params: Its parameters.
        prompts: Token ids.
        prompts_at_once: Prompts of a batch; the last ones are filled up, so that one
            program decodes all.

    Returns:
        For each prompt its answer; None where no end was reached.

    Raises:
        ValueError: The decoder records no steps, or `prompts_at_once` is below 1.
    """
    if prompts_at_once < 1:
        raise ValueError(f"prompts_at_once={prompts_at_once} must be at least 1")
    answers: list[RecordedAnswer | None] = []
    for start in range(0, len(prompts), prompts_at_once):
        batch = list(prompts[start : start + prompts_at_once])
        filled = batch + [batch[-1]] * (prompts_at_once - len(batch))
        rows = generate(decoder, params, filled).completions
        for prompt, row in zip(batch, rows, strict=False):
            if row.trajectory is None:
                raise ValueError(
                    "distillation needs the trajectories of answers; make the decoder "
                    "with record_steps=True"
                )
            has_ended = row.finish_reason == "stop"
            answers.append((list(prompt), row.trajectory) if has_ended else None)
    return answers


def align_recorded(
    answers: Sequence[RecordedAnswer],
    *,
    prompt_columns: int,
    answer_columns: int,
    block_length: int,
    is_causal: bool,
    pad_id: int,
) -> RecordedBatch:
    """Lay one answer in each row so that the blocks of all answers share columns.

    Under block-causal attention blocks are counted from the first token of the prompt,
    and the column `prompt_columns` is the first of the block in which the answer
    begins; what lies behind its last block is not seen. Under full attention that is
    the column of the answer itself, and the canvas is all that follows.

    Args:
        answers: One for each row.
        prompt_columns: Columns for the prompts, or whole blocks of them.
        answer_columns: Columns for the answers, and the rest of the prompts.
        block_length: Tokens of a block.
        is_causal: Attention is block-causal; otherwise it is full.
        pad_id: The id of the padding.

    Returns:
        The batch, as host arrays.

    Raises:
        ValueError: There is no answer, one does not fit, or columns are not whole
            blocks.
    """
    if not answers:
        raise ValueError("a batch of 0 answers has nothing to train; give at least 1")
    if answer_columns < 1 or answer_columns % block_length:
        raise ValueError(
            f"answer_columns={answer_columns} must be a multiple of block_length="
            f"{block_length}; use {-(-answer_columns // block_length) * block_length}"
        )
    shape = (len(answers), prompt_columns + answer_columns)
    tokens_BT = np.full(shape, pad_id, np.int32)
    is_answer_BT = np.zeros(shape, bool)
    sample_BT = np.full(shape, PADDING, np.int32)
    step_BT = np.zeros(shape, np.int32)
    for row, (prompt, trajectory) in enumerate(answers):
        length = len(prompt)
        whole = length // block_length * block_length if is_causal else length
        decoded = length + max(trajectory.positions, default=-1) + 1
        used = -(-(decoded - whole) // block_length) * block_length
        if not trajectory.positions:
            raise ValueError(f"answer {row} has 0 tokens; leave it out")
        if whole > prompt_columns or used > answer_columns:
            raise ValueError(
                f"answer {row} has {whole} tokens before its columns and {used} in "
                f"them, more than {prompt_columns=} and {answer_columns=}; raise them"
            )
        begin = prompt_columns - whole
        end = prompt_columns + (used if is_causal else answer_columns)
        sample_BT[row, begin:end] = 0
        tokens_BT[row, begin : begin + length] = prompt
        columns = begin + length + np.array(trajectory.positions)
        tokens_BT[row, columns] = trajectory.token_ids
        is_answer_BT[row, columns] = True
        step_BT[row, columns] = trajectory.steps
    return RecordedBatch(tokens_BT, is_answer_BT, sample_BT, step_BT)
