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
    the last block counts as one call, and the count may be too low by its other steps;
    without a cache under full attention, where one call of ours may complete several
    blocks, also by one call for each block that took one step.

    Args:
        path: The path, which has at least one decoded position.

    Returns:
        The number of calls.
    """
    length = path.block_length
    anchor = 0 if path.is_block_causal else path.begin
    decoded = path.begin + np.flatnonzero(path.call_T[path.begin : path.end] >= 0)
    last_block = (int(decoded[-1]) - anchor) // length
    last_end = anchor + (last_block + 1) * length
    # Positions of the last block that were left out: after an end token, or because the
    # room ends inside the block.
    tail_T = path.call_T[max(path.begin, last_end - length) : last_end]
    rest = int(np.sum(tail_T < 0))
    rest_calls = -(-rest // path.tokens_per_step) if path.tokens_per_step else rest > 0
    calls = path.steps + int(rest_calls)
    if path.is_block_causal:
        blocks = last_block - path.begin // length + 1
        has_prefill = path.begin >= length
        return calls + blocks + has_prefill
    return calls + _second_looks(path, last_block, is_cut=rest > 0)


def _second_looks(path: DecodedPath, last_block: int, is_cut: bool) -> int:
    """Blocks that one step completed, which the public loop looks at once more."""
    if path.block_length == 1:
        return 0
    first, size = path.begin, path.block_length
    calls_of_block = [
        set(path.call_T[first + b * size : first + (b + 1) * size].tolist()) - {-1}
        for b in range(last_block + 1 - is_cut)
    ]
    all_calls = [call for calls in calls_of_block for call in calls]
    return sum(
        sum(path.steps_of_call[call] for call in calls) == 1
        and all(all_calls.count(call) == 1 for call in calls)
        for calls in calls_of_block
    )
