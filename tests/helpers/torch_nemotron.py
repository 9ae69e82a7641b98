"""Nemotron's decoding loop in PyTorch, without a cache, and tiny random models.

Written from the published loop's facts: the prompt and every finished block causally,
the open block over them bidirectionally; a block's first token from the causal logits
of the position before it; then every masked position whose probability reaches the
threshold, and always the best one. Every call evaluates the whole sequence anew.
Nothing of jaxdave's networks or loop is used.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from helpers import torch_families
from helpers.family_cases import MASK, REAL_IDS, Case

CASE = Case("nemotron-8", "nemotron", eps=1e-5, block=8, layers=2)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What the loop decodes: whole blocks, and how many calls that takes.

    Attributes:
        tokens: Token ids up to the end of the last block.
        denoise_calls: Calls of an open block, block by block.
        context_calls: Causal calls, the prompt's among them.
    """

    tokens: tuple[int, ...]
    denoise_calls: tuple[int, ...]
    context_calls: int

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(self.denoise_calls) + self.context_calls


def logits(module: Any, context: list[int], block: list[int]) -> torch.Tensor:
    """Logits of an open block, or without one of the context's end: [P or 1, V].

    Ids that are never predicted are minus infinity.
    """
    tokens = np.array(context + block)
    position = np.arange(len(tokens))
    is_open = position >= len(context)
    mask = is_open[:, None] | (position[None, :] <= position[:, None])
    rows, _ = torch_families.run_masked(
        module, tokens[None], mask[None], position[None]
    )
    rows = torch.tensor(rows)
    rows[:, [MASK, *range(REAL_IDS, rows.shape[1])]] = -torch.inf
    return rows[len(context) :] if block else rows[-1:]


def decode(
    module: Any,
    prompt: list[int],
    room: int,
    length: int,
    threshold: float,
    stop_ids: tuple[int, ...] = (),
) -> Decoded:
    """The public loop: whole blocks until so many tokens, or until one has an end."""
    tokens, denoise = list(prompt), []
    while len(tokens) < len(prompt) + room:
        first = int(logits(module, tokens, [])[0].argmax())
        block, calls = [first, *[MASK] * (length - 1)], 0
        while MASK in block:
            probability, token = torch.softmax(logits(module, tokens, block), -1).max(
                -1
            )
            masked = [i for i in range(length) if block[i] == MASK]
            best = max(masked, key=lambda i: float(probability[i]))
            for i in masked:
                if i == best or float(probability[i]) >= threshold:
                    block[i] = int(token[i])
            calls += 1
        tokens, denoise = tokens + block, [*denoise, calls]
        if any(stop in block for stop in stop_ids):
            break
    return Decoded(tuple(tokens[len(prompt) :]), tuple(denoise), len(denoise))
