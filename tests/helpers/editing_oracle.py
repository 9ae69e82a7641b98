"""LLaDA2.1's loop in plain Python, on the hash network: block by block, step by step.

Written from the published rule, and not from our code: no window, no drafts, no
progress; a block is a list of tokens and a counter of its post steps.
"""

from typing import NamedTuple

import numpy as np
from helpers.fake_model import MASK, ROWS, SIZE, STOP, Weights, dense_logits
from helpers.oracle import blank


class Rule(NamedTuple):
    """The parameters of `joint_threshold`."""

    threshold: float
    editing_threshold: float
    max_post_steps: int = 16
    num_to_transfer: int = 1


class EditedAnswer(NamedTuple):
    """What the loop says.

    edits: tokens that were replaced; lost_stops: end tokens among them; post_steps: the
    most that a block has taken.
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    steps: int
    canvas: list[int]
    edits: int
    lost_stops: int
    post_steps: int


def edited_answer(net: Weights, prompt, room: int, length: int, rule: Rule):
    """The loop: (prompt, masks) to the answer."""
    canvas, begin = blank(prompt, room, length), len(prompt)
    steps = edits = lost = most = 0
    for first in range(begin // length * length, len(canvas), length):
        places, post = list(range(first, first + length)), 0
        while True:
            masks = [i for i in places if canvas[i] == MASK]
            post += not masks
            if post > rule.max_post_steps:
                break
            answers = [i for i in places if i >= begin]
            filled, replaced = changes(net, canvas, places, answers, length, rule)
            lost += sum(canvas[i] == STOP for i in replaced)
            steps, edits, most = steps + 1, edits + len(replaced), max(most, post)
            for i, token in (filled | replaced).items():
                canvas[i] = token
            if not masks and not replaced:
                break
        if STOP in canvas[begin : first + length]:
            break
    answer = canvas[begin : begin + room]
    reason = "stop" if STOP in answer else "length"
    ids = answer[: answer.index(STOP)] if reason == "stop" else answer
    return EditedAnswer(tuple(ids), reason, steps, canvas, edits, lost, most)


def changes(net, canvas, places, answers, length: int, rule: Rule):
    """({mask: its token}, {decoded position: its new token}) of one step."""
    logits = dense_logits(net, canvas, places, length).astype(np.float64)
    logits[:, [MASK, *range(SIZE, ROWS)]] = -np.inf
    tokens = dict(zip(places, np.argmax(logits, axis=1).tolist(), strict=True))
    top = logits.max(axis=1, keepdims=True)
    share = np.exp(logits - top)
    odds = {
        i: np.log(1 / (np.sum(np.delete(row, tokens[i]))))
        for i, row in zip(places, share, strict=True)
    }
    sure = {i: 1 / (1 + np.exp(-odds[i])) for i in places}
    masks = [i for i in answers if canvas[i] == MASK]
    high = [i for i in masks if sure[i] > rule.threshold]
    if len(high) < rule.num_to_transfer:
        order = sorted(masks, key=lambda i: (-odds[i], i))
        high = order[: rule.num_to_transfer]
    doubted = [i for i in answers if canvas[i] not in (MASK, tokens[i])]
    replaced = [i for i in doubted if sure[i] > rule.editing_threshold]
    return {i: tokens[i] for i in high}, {i: tokens[i] for i in replaced}
