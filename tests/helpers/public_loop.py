"""The public loop without drafts, in plain Python: what it decodes, and its calls.

FreeDave's generation/core.py decodes whole blocks: a block-causal model's prompt blocks
in one call, every step in one, and one that stores a finished block; under full
attention the call that begins a block is its first step, and the loop looks at a block
once more before it leaves it, unless it may take one step only. Calls are counted up to
the end of the block in which the answer ends.
"""

from helpers import fake_full_model
from helpers.fake_model import MASK, STOP
from helpers.oracle import blank, policy_step


def block_causal_calls(net, prompt, room: int, length: int, policy: str) -> int:
    """Calls of `block_decode_with_block_attention` on the hash network."""
    begin = len(prompt)
    canvas = blank(prompt, room, length)
    calls = 1 if begin // length else 0
    for start in range(begin // length * length, len(canvas), length):
        while MASK in canvas[start : start + length]:
            canvas = policy_step(net, canvas, canvas, len(canvas), length, policy)
            calls += 1
        calls += 1
        if STOP in canvas[begin : min(start + length, begin + room)]:
            break
    return calls


def full_attention_calls(net, prompt, room: int, length: int, policy: str) -> int:
    """Calls of `block_decode_with_full_attention` with the dual cache."""
    begin = len(prompt)
    rule = fake_full_model.Rule(begin, begin + room, length, "dual", False)
    canvas, calls = list(prompt) + [MASK] * room, 0
    for start in range(begin, begin + room, length):
        frozen = canvas
        for at in range(length):
            if MASK in canvas[start : start + length]:
                canvas = fake_full_model.step(net, rule, canvas, canvas, frozen, policy)
            calls += 1
            # The first step looks at nothing.
            if at > 0 and MASK not in canvas[start : start + length]:
                break
        if STOP in canvas[begin : start + length]:
            break
    return calls
