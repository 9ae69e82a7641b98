"""Which positions of a text are hidden while it is scored, and what each one counts.

Every rule here is an average of chains: hide all, then tell the tokens one by one in
some order, adding up the log of each. The mean over all orders bounds the log of the
mean from below, which is what an any-order model says of the text.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Masks(NamedTuple):
    """hidden_SN: which of N positions are hidden in each of S samples, bool.
    weight_SN: what the log-probability of each counts, float32; 0: it is not asked."""

    hidden_SN: np.ndarray
    weight_SN: np.ndarray


Rule = Callable[[int, np.random.Generator], Masks]
"""(positions, noise) -> the masks of a stretch that is scored as one."""


def bound(samples: int) -> Rule:
    """The mean over all orders, from so many samples of it or, where there are no more
    sets of positions than that, exactly.

    The number of hidden positions is stratified (LLaDA, arXiv 2502.09992, appendix B),
    which leaves the mean as it is and takes most of the noise away.
    Raises ValueError unless there is at least one sample.
    """
    if samples < 1:
        raise ValueError(f"mc_num={samples} must be at least 1; try 128")

    def draw(count: int, noise: np.random.Generator) -> Masks:
        if 2**count - 1 <= samples:
            return every(count)
        return sampled(count, samples, noise)

    return draw


def every(count: int) -> Masks:
    """All sets of hidden positions but the empty one, by their share of the mean."""
    sets = np.arange(1, 2**count)[:, None]
    hidden_SN = (sets >> np.arange(count)[None]) & 1 == 1
    size_S = hidden_SN.sum(axis=1)
    weight_S = [1 / (size * math.comb(count, size)) for size in size_S.tolist()]
    return _weighted(hidden_SN, np.array(weight_S))


def sampled(count: int, samples: int, noise: np.random.Generator) -> Masks:
    """Random sets of hidden positions; every size is as likely as any other.

    The sizes are spread evenly from a random one on.
    """
    steps = np.arange(samples) * count // samples
    size_S = (noise.integers(count) + steps) % count + 1
    rank_SN = noise.random((samples, count)).argsort(axis=1).argsort(axis=1)
    return _weighted(rank_SN < size_S[:, None], count / size_S / samples)


def chain(count: int, noise: np.random.Generator) -> Masks:
    """One order alone, left to right: the exact likelihood of decoding so."""
    del noise
    return Masks(np.triu(np.ones((count, count), bool)), np.eye(count, dtype="f4"))


def over(
    rule: Rule, stretches: Sequence[range], size: int, noise: np.random.Generator
) -> Masks:
    """The masks of a window of `size` positions, each stretch of it by the rule.

    What lies past the last stretch is hidden and not asked.
    """
    drawn = [rule(len(stretch), noise) for stretch in stretches]
    samples = max(len(masks.hidden_SN) for masks in drawn)
    hidden_SL = np.zeros((samples, size), bool)
    weight_SL = np.zeros((samples, size), np.float32)
    for stretch, masks in zip(stretches, drawn, strict=True):
        at = np.s_[: len(masks.hidden_SN), stretch.start : stretch.stop]
        hidden_SL[at], weight_SL[at] = masks
    hidden_SL[:, stretches[-1].stop :] = True
    return Masks(hidden_SL, weight_SL)


def _weighted(hidden_SN: np.ndarray, weight_S: np.ndarray) -> Masks:
    return Masks(hidden_SN, (hidden_SN * weight_S[:, None]).astype(np.float32))
