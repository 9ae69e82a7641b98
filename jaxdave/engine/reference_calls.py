"""What the public loop would have spent on the path of a decoded row.

The public loop is that of FreeDave's repository without drafts (cychomatica/FreeDave,
generation/core.py, `block_decode_with_block_attention` and
`block_decode_with_full_attention`). It decodes whole blocks, one call a step, and is
counted here up to the end of the block in which the answer ends.

Block-causal models: one call for the prompt's whole blocks, if it has any; one call for
every step of a block; one more that stores the finished block. Full attention: the call
that begins a block is its first step, and at least one more follows, which looks
whether the block is complete.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodedPath:
    """How a row was decoded.

    Attributes:
        call_T: The call that committed each position of the canvas, below 0 where none
            did, int [T].
        begin: The first position after the prompt.
        end: After the last position that may be decoded.
        steps: Policy steps in all.
        steps_of_call: Policy steps that each call has confirmed, the prefill first.
        tokens_per_step: Tokens that every step commits; None where that varies.
        block_length: Positions of a block.
        is_block_causal: Blocks are counted from position 0, finished ones are stored;
            otherwise from `begin`.
    """

    call_T: np.ndarray
    begin: int
    end: int
    steps: int
    steps_of_call: tuple[int, ...]
    tokens_per_step: int | None
    block_length: int
    is_block_causal: bool


def reference_calls(path: DecodedPath) -> int:
    """The calls of the public loop on a path.

    Exact where every step commits the same number of tokens. Otherwise what is left of
    the last block counts as one call at most, and the count may be too low by its other
    steps; without a cache under full attention, where one call of ours may complete
    several blocks, also by one call for each block that took one step.

    Args:
        path: The path, which has at least one decoded position.

    Returns:
        The number of calls.
    """
    length = path.block_length
    anchor = 0 if path.is_block_causal else path.begin
    decoded = path.begin + np.flatnonzero(path.call_T[path.begin : path.end] >= 0)
    first = (path.begin - anchor) // length
    last = (int(decoded[-1]) - anchor) // length
    # Positions of every block that the prompt does not fill.
    blocks = [
        np.arange(max(path.begin, anchor + b * length), anchor + (b + 1) * length)
        for b in range(first, last + 1)
    ]
    if path.tokens_per_step is not None:
        steps = [-(-len(block) // path.tokens_per_step) for block in blocks]
        total, single = sum(steps), steps.count(1)
    else:
        total, single = _varying_steps(path, blocks)
    if path.is_block_causal:
        has_prefill = path.begin >= length
        return total + len(blocks) + has_prefill
    # Blocks that one step completes are looked at once more, if they had room for more.
    return total + (single if length > 1 else 0)


def _varying_steps(path: DecodedPath, blocks: list[np.ndarray]) -> tuple[int, int]:
    """The steps of a path, and how many blocks are known to have taken one only."""
    # Positions of the last block may be left out: after an end token, or because the
    # room ends inside the block. What lies beyond the room may have been committed
    # along with the last token, the rest takes a step at least.
    left = blocks[-1][path.call_T[blocks[-1]] < 0]
    total = path.steps + int(np.any(left < path.end))
    complete = blocks[: len(blocks) - (len(left) > 0)]
    calls_of_block = [set(path.call_T[block].tolist()) for block in complete]
    all_calls = [call for calls in calls_of_block for call in calls]
    single = sum(
        sum(path.steps_of_call[call] for call in calls) == 1
        and all(all_calls.count(call) == 1 for call in calls)
        for calls in calls_of_block
    )
    return total, single
