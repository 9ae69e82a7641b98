"""Plain-Python decoding of the hash network, from the rules and not from our code.

No cache, no window, no chunks, no arrays of drafts: a state is a list of tokens.
"""

import functools
from typing import NamedTuple

import numpy as np
from helpers.fake_model import MASK, ROWS, SIZE, STOP, Weights, dense_logits


class Answer(NamedTuple):
    """What the oracle says; waited: an end token once had masks to its left."""

    token_ids: tuple[int, ...]
    finish_reason: str
    steps: int
    waited: bool
    canvas: list[int]


def oracle(net: Weights, prompt, room: int, length: int, policy: str) -> Answer:
    """A policy ("static(2)", ...) by its definition: one state, one step at a time."""
    canvas, steps, waited = blank(prompt, room, length), 0, False
    begin, end = len(prompt), len(canvas)
    while not (reason := finished(canvas, begin, end)):
        canvas = policy_step(net, canvas, canvas, end, length, policy)
        steps += 1
        waited |= STOP in canvas[begin:] and not finished(canvas, begin, end)
    # Blocks are decoded whole; what was not asked for is cut off.
    answer = canvas[begin : begin + room]
    reason = finished(canvas, begin, begin + room)
    ids = answer[: answer.index(STOP)] if reason == "stop" else answer
    return Answer(tuple(ids), reason, steps, waited, canvas)


def freedave_calls(net, prompt, room, length, policy, drafts: int, slots: int) -> int:
    """Calls of FreeDave (Algorithm 2, exact match) with a window of whole blocks.

    Drafts are made of what the last call said: of a block that a draft was decoding,
    as the first such draft saw it; of one further ahead, as the deepest draft did. The
    prefill looks ahead as far as 8 drafts reach.
    """
    reached = lambda d: length * (1 + (2 * -(-d // length) if d > 1 else 1))  # noqa: E731
    window, near = reached(slots), reached(min(slots, 8))
    begin, end = len(prompt), len(blank(prompt, room, length))
    first = blank(prompt, room + 2 * window, length)
    step = lambda at, by: policy_step(net, at, by, end, length, policy)  # noqa: E731
    start, calls, known = begin // length * length, 1, step(first, first)
    seen, chain = first, [first]
    while not finished(known, begin, end):
        reach = start + near
        while MASK not in seen[start : start + length]:
            start += length
        told, chain = functools.partial(source, seen, chain, length), [known]
        while len(chain) < drafts and first_block(chain[-1], length)[1] <= reach:
            ahead = step(chain[-1], told(chain[-1]))
            full = MASK not in ahead[start : start + window]
            if full or finished(ahead, begin, end):
                break
            chain.append(ahead)
        near = window
        seen, known, calls = known, step(known, known), calls + 1
        while known in chain:
            seen, known = known, step(known, known)
    return calls


def source(seen, chain, length: int, state) -> list[int]:
    """The state whose evaluation tells the next step of `state`."""
    block = first_block(state, length)
    if block <= first_block(seen, length):
        return seen
    deciding = [draft for draft in chain if first_block(draft, length) == block]
    return (deciding or chain[-1:])[0]


def blank(prompt, room: int, length: int) -> list[int]:
    """The prompt and masks to the end of a block."""
    total = -(-(len(prompt) + room) // length) * length
    return list(prompt) + [MASK] * (total - len(prompt))


def first_block(canvas, length: int) -> tuple[int, int]:
    """Where the first unfinished block begins and ends."""
    block = canvas.index(MASK) // length
    return block * length, (block + 1) * length


def llada_order(logits, tokens, unscored) -> np.ndarray:
    """LLaDA's confidences: softmax(logits)[token], some ids at -inf before it."""
    logits = logits.astype(np.float64).copy()
    logits[:, unscored] = -np.inf
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return share[np.arange(len(tokens)), tokens]


def finished(canvas, begin: int, end: int) -> str:
    """Why a state is final, or "" if it is not."""
    for token in canvas[begin:end]:
        if token in (MASK, STOP):
            return "stop" if token == STOP else ""
    return "length"


def policy_step(net, canvas, source, end: int, length: int, policy: str) -> list[int]:
    """The next state of `canvas` with the predictions that `source` gets."""
    lo, hi = first_block(canvas, length)
    places = [p for p in range(lo, min(hi, end)) if canvas[p] == MASK]
    return commits(canvas, places, dense_logits(net, source, places, length), policy)


def commits(canvas, places, logits, policy: str) -> list[int]:
    """`canvas` after a policy has chosen among open places with these logits."""
    logits = logits.astype(np.float64)
    logits[:, [MASK, *range(SIZE, ROWS)]] = -np.inf
    tokens = np.argmax(logits, axis=1)
    odds = []
    for row, token in zip(logits, tokens, strict=True):
        others = np.delete(row, token)
        top = others.max()
        odds.append(row[token] - top - np.log(np.sum(np.exp(others - top))))
    kind, value = policy.rstrip(")").split("(")
    order = sorted(range(len(places)), key=lambda i: (-odds[i], places[i]))
    if kind == "threshold":
        sure = [i for i in order if 1 / (1 + np.exp(-odds[i])) >= float(value)]
        order = sure or order[:1]
    elif kind == "left_to_right":
        order = list(range(len(places)))[: int(value)]
    else:
        order = order[: int(value)]
    moved = list(canvas)
    for i in order:
        moved[places[i]] = int(tokens[i])
    return moved
