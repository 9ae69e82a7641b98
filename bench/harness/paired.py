"""Two decodes of the same problems: ratios of calls and differences of accuracy."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Interval(NamedTuple):
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_of_sums(before_B, after_B, seed: int = 0) -> Interval:
    """Estimate how many times more one costs than the other.

    Args:
        before_B: costs of problems.
        after_B: costs of the same problems otherwise.
        seed: of the resamples.

    Returns:
        sum(before) / sum(after), with the percentile bootstrap over problems.
    """
    before_B, after_B = np.asarray(before_B, float), np.asarray(after_B, float)
    rng = np.random.default_rng(seed)
    # How often each problem is drawn, so that no resample is ever laid out.
    count = len(before_B)
    times_RB = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    ratio_R = (times_RB @ before_B) / (times_RB @ after_B)
    low, high = np.quantile(ratio_R, (0.025, 0.975))
    return Interval(before_B.sum() / after_B.sum(), float(low), float(high))


def accuracy_change(before_B, after_B) -> Interval:
    """Estimate by how much the share of right answers has changed.

    Args:
        before_B: True where the answer was right.
        after_B: True where it is right now.

    Returns:
        The change, in 0..1, with Wald's interval for paired shares after half an
        observation was added to each of the four cells, so that it has a width also
        where no answer has changed (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    before_B, after_B = np.asarray(before_B, bool), np.asarray(after_B, bool)
    lost = float(np.sum(before_B & ~after_B))
    gained = float(np.sum(~before_B & after_B))
    count = len(before_B) + 2.0
    middle = (gained - lost) / count
    spread = gained + lost + 1.0 - (gained - lost) ** 2 / count
    reach = 1.959964 * np.sqrt(spread) / count
    return Interval((gained - lost) / len(before_B), middle - reach, middle + reach)
