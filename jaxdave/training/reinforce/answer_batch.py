"""Recorded answers as arrays: what log-probabilities of them are computed from.

Of a block-causal model an answer is a window of its text: from the block that it begins
in, to its last block. Blocks are decoded one after another, each behind finished text,
so that the states of all blocks can be seen at once (`answer_logits`), and a step is
counted within its block. Of a full-attention model the window is the whole canvas,
padded on the left, and steps are counted over all of it.

Axes: B answers, T positions of a text, R positions of its window, K blocks of L.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.training.reinforce.step_maps import (
    GIVEN,
    NEVER,
    RecordedCanvas,
    shrink_steps,
)

TEXT_BUCKET, WINDOW_BUCKET, STEP_BUCKET = 32, 16, 16
"""Lengths and steps are rounded up to these, so that few shapes are compiled."""


class AnswerBatch(NamedTuple):
    """Answers behind their prompts. Arrays of the host, until they meet a program.

    Attributes:
        tokens_BT: Prompt and answer, int32.
        valid_BT: False at pads on the left (full attention only), bool.
        start_B: The first position of the window, int32.
        steps_BR: The step map of the window, int32: ranks within each block of a
            block-causal model, otherwise of all steps.
        is_counted_BR: True at tokens whose log-probabilities count, bool.
        recorded_BR: What the decoder recorded, 0 where it did not, float32.
        key_B2: Bits of a key for each answer: of the masks that bounds draw, uint32.
    """

    tokens_BT: np.ndarray
    valid_BT: np.ndarray
    start_B: np.ndarray
    steps_BR: np.ndarray
    is_counted_BR: np.ndarray
    recorded_BR: np.ndarray
    key_B2: np.ndarray


def pack_canvases(
    canvases: Sequence[RecordedCanvas],
    key_B2: np.ndarray,
    config: ModelConfig,
    *,
    from_left: bool = False,
    whole_trajectory: bool = True,
    shrink: int = 1,
) -> AnswerBatch:
    """Lay recorded answers out as one batch.

    Args:
        canvases: The answers (`step_maps.canvas_of`), at least one.
        key_B2: Bits of a key for each, uint32.
        config: The model.
        from_left: Steps are those of the chain, one token after another from the left,
            in the place of recorded ones.
        whole_trajectory: Count all tokens that were drawn, those behind the end of the
            answer too; False: the answer up to its end token, however it was filled.
        shrink: So many steps become one (`step_maps.shrink_steps`).

    Returns:
        The batch.

    Raises:
        ValueError: A block-causal model's answer was not decoded block by block.
    """
    is_causal = config.attention == "block_causal"
    length = config.block_length if is_causal else 1
    begins = [int(np.sum(canvas.steps_T == GIVEN)) for canvas in canvases]
    starts = [begin // length * length if is_causal else 0 for begin in begins]
    ends = [
        _last(canvas) + 1 if is_causal else len(canvas.tokens_T) for canvas in canvases
    ]
    window = max(end - start for start, end in zip(starts, ends, strict=True))
    window = _round_up(window, max(length, WINDOW_BUCKET)) if is_causal else max(ends)
    text = window if not is_causal else max(starts) + window
    text = _round_up(text, max(length, TEXT_BUCKET))
    window = window if is_causal else text
    rows = [
        _row(
            canvas,
            config,
            text,
            start,
            window,
            from_left=from_left,
            whole_trajectory=whole_trajectory,
            shrink=shrink,
        )
        for canvas, start in zip(canvases, starts, strict=True)
    ]
    tokens_BT, valid_BT, steps_BR, is_counted_BR, recorded_BR = map(
        np.stack, zip(*rows, strict=True)
    )
    if is_causal:
        steps_BR = block_ranks(steps_BR, length)
    return AnswerBatch(
        tokens_BT=tokens_BT,
        valid_BT=valid_BT,
        start_B=np.array(starts, np.int32),
        steps_BR=steps_BR,
        is_counted_BR=is_counted_BR,
        recorded_BR=recorded_BR,
        key_B2=np.asarray(key_B2, np.uint32),
    )


def num_steps(batch: AnswerBatch, config: ModelConfig) -> int:
    """The number of states that the step maps of a batch need, rounded up.

    Args:
        batch: The batch.
        config: The model.

    Returns:
        The length of a block, or the largest number of steps, rounded up.
    """
    if config.attention == "block_causal":
        return config.block_length
    last = np.max(batch.steps_BR, where=batch.steps_BR != NEVER, initial=GIVEN)
    return _round_up(int(last) + 1, STEP_BUCKET)


def take_rows(batch: AnswerBatch, rows: Sequence[int], size: int) -> AnswerBatch:
    """Some answers of a batch, filled up with the first of them that counts nothing.

    Args:
        batch: The batch.
        rows: Indices of the answers, at least one and at most `size`.
        size: Rows of the result.

    Returns:
        The answers.
    """
    indices = np.array([*rows, *[rows[0]] * (size - len(rows))])
    taken = AnswerBatch(*(field[indices] for field in batch))
    taken.is_counted_BR[len(rows) :] = False
    return taken


def block_ranks(steps_BR: np.ndarray, block_length: int) -> np.ndarray:
    """Count the steps of every block by themselves, from 0 and without gaps.

    Args:
        steps_BR: Step maps of windows that begin with a block, int32.
        block_length: Tokens of a block, L; it divides R.

    Returns:
        int32 [B, R]; `GIVEN` and `NEVER` stay.

    Raises:
        ValueError: A block has a step that is not later than all of a block before.

    Example:
        >>> block_ranks(np.array([[-1, 4, 3, 3, 9, 7, 8, 6]]), 4).tolist()
        [[-1, 1, 0, 0, 3, 1, 2, 0]]
    """
    steps_BKL = steps_BR.reshape(len(steps_BR), -1, block_length)
    is_decoded_BKL = (steps_BKL != GIVEN) & (steps_BKL != NEVER)
    first_BK = np.min(steps_BKL, axis=2, where=is_decoded_BKL, initial=NEVER)
    last_BK = np.max(steps_BKL, axis=2, where=is_decoded_BKL, initial=GIVEN)
    if np.any(np.maximum.accumulate(last_BK, axis=1)[:, :-1] >= first_BK[:, 1:]):
        raise ValueError(
            "a block was begun before the one to its left was finished, so that its "
            "states cannot be rebuilt beside finished text; take a policy that decodes "
            "block by block"
        )
    # A step counts once, at its first place in the block.
    same_BKLL = steps_BKL[..., None, :] == steps_BKL[..., :, None]
    earlier_LL = np.tril(np.ones((block_length, block_length), bool), -1)
    is_first_BKL = is_decoded_BKL & ~np.any(same_BKLL & earlier_LL, axis=3)
    below_BKLL = steps_BKL[..., None, :] < steps_BKL[..., :, None]
    rank_BKL = np.sum(below_BKLL & is_first_BKL[..., None, :], axis=3)
    ranks_BKL = np.where(is_decoded_BKL, rank_BKL, steps_BKL)
    return ranks_BKL.reshape(steps_BR.shape).astype(np.int32)


def _row(
    canvas: RecordedCanvas,
    config: ModelConfig,
    text: int,
    start: int,
    window: int,
    *,
    from_left: bool,
    whole_trajectory: bool,
    shrink: int,
) -> tuple[np.ndarray, ...]:
    """(tokens, valid, steps, counted, recorded) of an answer."""
    is_answer_T = _is_answer(canvas, config)
    steps_T = canvas.steps_T
    if from_left:
        is_open_T = (steps_T != GIVEN) & (steps_T != NEVER)
        steps_T = np.where(is_open_T, np.cumsum(is_open_T) - 1, steps_T)
    steps_T = shrink_steps(steps_T, shrink)
    is_counted_T = canvas.is_drawn_T if whole_trajectory else is_answer_T
    if config.attention == "block_causal":
        # A last block that reaches past the room was decoded whole, but what it has
        # there is not recorded: the states of the rest are not known.
        whole = len(canvas.tokens_T) // config.block_length * config.block_length
        is_counted_T = is_counted_T & (np.arange(len(is_counted_T)) < whole)
    recorded_T = np.where(is_counted_T, np.nan_to_num(canvas.log_probs_T), 0.0)
    missing = text - len(canvas.tokens_T)
    # Pads stand on the right of block-causal texts, where no block of theirs sees them.
    pads = (0, missing) if config.attention == "block_causal" else (missing, 0)

    def padded(array_T: np.ndarray, value) -> np.ndarray:
        if missing < 0:
            return array_T[:text]
        return np.pad(array_T, pads, constant_values=value)

    is_causal = config.attention == "block_causal"
    tokens_T = padded(canvas.tokens_T, config.mask_id)
    valid_T = padded(np.ones(len(canvas.tokens_T), bool), is_causal)
    # A pad is no token of any step.
    in_window = slice(start, start + window)
    return (
        tokens_T,
        valid_T,
        padded(steps_T, NEVER if is_causal else GIVEN)[in_window],
        padded(is_counted_T, False)[in_window],
        padded(recorded_T, 0.0)[in_window].astype(np.float32),
    )


def _is_answer(canvas: RecordedCanvas, config: ModelConfig) -> np.ndarray:
    """True at decoded tokens up to the first end token and with it, bool [T]."""
    is_decoded_T = (canvas.steps_T != GIVEN) & (canvas.steps_T != NEVER)
    is_end_T = is_decoded_T & np.isin(canvas.tokens_T, config.stop_ids)
    ends_before_T = np.cumsum(is_end_T) - is_end_T
    return is_decoded_T & (ends_before_T == 0)


def _last(canvas: RecordedCanvas) -> int:
    """The last position that a step has filled."""
    return int(np.flatnonzero(canvas.steps_T != NEVER)[-1])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
