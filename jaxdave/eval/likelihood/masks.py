"""Which positions of a text are masked while it is scored, and their weights.

Most rules are chains or averages of chains: mask all positions, then reveal the tokens
one by one in some order, adding up their log-probabilities. The mean over all orders is
a lower bound on the log of the mean probability, which is what an any-order model says
of the text (Jensen's inequality). `RULES` names the rules.

Axes: S samples (sets of masked positions), N positions of one stretch, L positions of
the window.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Masks(NamedTuple):
    """Sets of masked positions, and what each position contributes to the estimate.

    Attributes:
        hidden_SN: bool [S, N], True where a position is masked.
        weight_SN: float32 [S, N], factor of the log-probability of the token there; 0
            where it does not count.
    """

    hidden_SN: np.ndarray
    weight_SN: np.ndarray


MaskRule = Callable[[int, np.random.Generator], Masks]
"""Function (number of positions, generator) -> the masks of one stretch of text."""


def bound(samples: int) -> MaskRule:
    """Return the rule that estimates the mean over all orders.

    The number of masked positions is stratified over the samples, which leaves the
    mean as it is and removes most of the variance. Where there are no more sets of
    positions than samples the mean is exact.

    Example:
        >>> bound(7)(3, np.random.default_rng(0)).hidden_SN.shape
        (7, 3)

    Source: LLaDA, arXiv 2502.09992, appendix B. Deviation: stratified sizes, and exact
    where that costs no more.

    Args:
        samples: Number of samples per stretch, at least 1.

    Returns:
        The rule.

    Raises:
        ValueError: `samples` is below 1.
    """
    if samples < 1:
        raise ValueError(f"mc_num={samples} must be at least 1; try 128")

    def rule(count: int, generator: np.random.Generator) -> Masks:
        # 2^n - 1 sets that are not empty: with as many samples nothing is left to draw.
        if 2**count - 1 <= samples:
            return all_subsets(count)
        return sampled_subsets(count, samples, generator)

    return rule


def all_subsets(count: int) -> Masks:
    """Return every set of masked positions but the empty one.

    A token is revealed when `size` positions are still masked, and which ones those are
    is uniform over all sets of that size: hence the weight 1 / (size * C(count, size)).

    Args:
        count: Number of positions.

    Returns:
        2^count - 1 sets, weighted by their share of the mean over all orders.
    """
    sets = np.arange(1, 2**count)[:, None]
    hidden_SN = (sets >> np.arange(count)[None]) & 1 == 1
    size_S = hidden_SN.sum(axis=1)
    weight_S = [1 / (size * math.comb(count, size)) for size in size_S.tolist()]
    return _weighted(hidden_SN, np.array(weight_S))


def sampled_subsets(count: int, samples: int, generator: np.random.Generator) -> Masks:
    """Return random sets of masked positions, in which every size is equally likely.

    Args:
        count: Number of positions.
        samples: Number of sets.
        generator: Source of randomness.

    Returns:
        `samples` sets, weighted so that the estimate is unbiased.
    """
    # Sizes are spread evenly over 1..count from a random one on (systematic sampling).
    steps = np.arange(samples) * count // samples
    size_S = (generator.integers(count) + steps) % count + 1
    # Argsort twice gives each position its rank in a random order.
    rank_SN = generator.random((samples, count)).argsort(axis=1).argsort(axis=1)
    return _weighted(rank_SN < size_S[:, None], count / size_S / samples)


def chain(count: int, generator: np.random.Generator) -> Masks:
    """Return the masks of one order, left to right.

    The sum is then the exact likelihood of decoding one token at a time in that order.

    Args:
        count: Number of positions.
        generator: Not used; part of the `MaskRule` signature.

    Returns:
        `count` sets; in each only the first masked position counts.
    """
    del generator
    return Masks(np.triu(np.ones((count, count), bool)), np.eye(count, dtype="f4"))


def reverse_chain(count: int, generator: np.random.Generator) -> Masks:
    """Return the masks of one order, right to left.

    The sum is then the exact likelihood of decoding one token at a time in that order.

    Source: Dream's evaluation (HKUNLP/Dream, eval.py: nll_type="ar_btf").

    Args:
        count: Number of positions.
        generator: Not used; part of the `MaskRule` signature.

    Returns:
        `count` sets; in each only the last masked position counts.
    """
    del generator
    return Masks(np.tril(np.ones((count, count), bool)), np.eye(count, dtype="f4"))


def one_pass(count: int, generator: np.random.Generator) -> Masks:
    """Return the set of all positions, in which every position counts.

    The sum is the exact likelihood of decoding all tokens in one step, independently of
    each other; of a single token it is what every rule gives.

    Source: the model's product distribution over all masks (LLaDA, arXiv 2502.09992,
    section 2.1).

    Args:
        count: Number of positions.
        generator: Not used; part of the `MaskRule` signature.

    Returns:
        One set.
    """
    del generator
    return Masks(np.ones((1, count), bool), np.ones((1, count), np.float32))


def pseudo(count: int, generator: np.random.Generator) -> Masks:
    """Return the sets of one position each.

    The sum is the pseudo-log-likelihood: every token given all others. It is no
    likelihood, as texts do not sum to 1, and suits comparisons of texts of one length.

    Source: Salazar et al. (arXiv 1910.14659).

    Args:
        count: Number of positions.
        generator: Not used; part of the `MaskRule` signature.

    Returns:
        `count` sets.
    """
    del generator
    return Masks(np.eye(count, dtype=bool), np.eye(count, dtype="f4"))


CONFIDENCE = "confidence"
"""The one order that is not known beforehand, see `score.score_by_confidence`."""

RULES: dict[str, Callable[[int], MaskRule | str]] = {
    "bound": bound,
    "chain": lambda samples: chain,
    "reverse": lambda samples: reverse_chain,
    "one_pass": lambda samples: one_pass,
    "pseudo": lambda samples: pseudo,
    "confidence": lambda samples: CONFIDENCE,
}
"""Rule by name, from the number of samples that `bound` takes."""


def window_masks(
    rule: MaskRule,
    stretches: Sequence[range],
    size: int,
    generator: np.random.Generator,
) -> Masks:
    """Return the masks of a window whose stretches are scored one by one.

    Args:
        rule: Rule that draws the masks of each stretch.
        stretches: Positions of each stretch in the window, in order.
        size: Number of positions L of the window.
        generator: Source of randomness.

    Returns:
        Masks [S, L]. Positions after the last stretch are not masked and do not count;
        stretches with fewer samples than others have weight 0 in the rest.
    """
    drawn = [rule(len(stretch), generator) for stretch in stretches]
    samples = max(len(masks.hidden_SN) for masks in drawn)
    hidden_SL = np.zeros((samples, size), bool)
    weight_SL = np.zeros((samples, size), np.float32)
    for stretch, masks in zip(stretches, drawn, strict=True):
        at = np.s_[: len(masks.hidden_SN), stretch.start : stretch.stop]
        hidden_SL[at], weight_SL[at] = masks
    return Masks(hidden_SL, weight_SL)


def _weighted(hidden_SN: np.ndarray, weight_S: np.ndarray) -> Masks:
    return Masks(hidden_SN, (hidden_SN * weight_S[:, None]).astype(np.float32))
