"""Pearson's coefficient of two figures of the same prompts over the steps of runs.

Axes: S steps, Q prompts (of all runs), R runs, P prompts of a run.
"""

from typing import NamedTuple

import numpy as np

from bench.harness.paired import Interval

RESAMPLES = 2000


class Correlations(NamedTuple):
    """How two figures go together.

    Attributes:
        same_step: Both less their means over the prompts of the same run and step: how
            prompts differ at one time.
        ranks: The same of ranks among the prompts of a run and step.
        raw: Of all values as they are.
        other_step: As `same_step`, the second figure from another step of the same
            prompt, the mean over all other steps.
        unrelated: As `raw`, the second figure from another step of another prompt of
            any run.
    """

    same_step: Interval
    ranks: Interval
    raw: Interval
    other_step: Interval
    unrelated: float


def correlate(first_RSP: np.ndarray, second_RSP: np.ndarray) -> Correlations:
    """Correlate two figures, with bootstrap intervals over prompts.

    A resample draws prompts, each with all its steps, as steps of a prompt are alike.

    Args:
        first_RSP: A figure, float [R, S, P].
        second_RSP: Another.

    Returns:
        The coefficients; NaN where a figure is constant.
    """
    pair = np.asarray(first_RSP, float), np.asarray(second_RSP, float)
    centred = [_joined(one - one.mean(axis=2, keepdims=True)) for one in pair]
    ranked = [_joined(_ranks(one) - (one.shape[2] - 1) / 2) for one in pair]
    raw = [_joined(one) for one in pair]
    return Correlations(
        same_step=_bootstrap(pearson, *centred),
        ranks=_bootstrap(pearson, *ranked),
        raw=_bootstrap(pearson, *raw),
        other_step=_bootstrap(pearson_of_other_steps, *centred),
        unrelated=pearson_of_unrelated(*raw),
    )


def pearson(first_SQ: np.ndarray, second_SQ: np.ndarray) -> float:
    """Pearson's coefficient of values of the same step and prompt.

    Args:
        first_SQ: A figure, float [S, Q].
        second_SQ: Another.

    Returns:
        The coefficient; NaN where a figure is constant.
    """
    first_SQ, second_SQ, scale = _standard(first_SQ, second_SQ)
    return float(np.sum(first_SQ * second_SQ) / scale)


def pearson_of_other_steps(first_SQ: np.ndarray, second_SQ: np.ndarray) -> float:
    """Pearson's coefficient with the second figure from other steps of the prompt.

    Args:
        first_SQ: A figure, float [S, Q], of at least two steps.
        second_SQ: Another.

    Returns:
        The mean over all shifts of the steps: each value meets every other step once.
    """
    first_SQ, second_SQ, scale = _standard(first_SQ, second_SQ)
    of_prompts = np.sum(first_SQ.sum(axis=0) * second_SQ.sum(axis=0))
    same = np.sum(first_SQ * second_SQ)
    return float((of_prompts - same) / (len(first_SQ) - 1) / scale)


def pearson_of_unrelated(first_SQ: np.ndarray, second_SQ: np.ndarray) -> float:
    """Pearson's coefficient of values of different steps of different prompts.

    Args:
        first_SQ: A figure, float [S, Q], of at least two steps and prompts.
        second_SQ: Another.

    Returns:
        The mean over all shifts of steps and prompts.
    """
    first_SQ, second_SQ, scale = _standard(first_SQ, second_SQ)
    of_prompts = np.sum(first_SQ.sum(axis=0) * second_SQ.sum(axis=0))
    of_steps = np.sum(first_SQ.sum(axis=1) * second_SQ.sum(axis=1))
    # What has the step or the prompt in common is taken from all, whose sum is 0.
    rest = np.sum(first_SQ * second_SQ) - of_prompts - of_steps
    steps, prompts = first_SQ.shape
    return float(rest / (steps - 1) / (prompts - 1) / scale)


def _bootstrap(statistic, first_SQ: np.ndarray, second_SQ: np.ndarray) -> Interval:
    """The statistic with its 95 % percentile interval over prompts."""
    rng = np.random.default_rng(0)
    prompts = first_SQ.shape[1]
    found = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(prompts, size=prompts)
        found.append(statistic(first_SQ[:, chosen], second_SQ[:, chosen]))
    # A resample of one prompt alone says nothing of few prompts.
    found = [one for one in found if not np.isnan(one)] or [np.nan]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(statistic(first_SQ, second_SQ), float(low), float(high))


def _joined(values_RSP: np.ndarray) -> np.ndarray:
    """The prompts of all runs beside each other, [S, Q]."""
    return np.concatenate(list(values_RSP), axis=1)


def _ranks(values_RSP: np.ndarray) -> np.ndarray:
    """Ranks among the prompts of a run and step from 0, the mean of equal values."""
    below = np.sum(values_RSP[..., None, :] < values_RSP[..., :, None], axis=-1)
    equal = np.sum(values_RSP[..., None, :] == values_RSP[..., :, None], axis=-1)
    return below + (equal - 1) / 2


def _standard(
    first_SQ: np.ndarray, second_SQ: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both less their means, and the product of their lengths (NaN for 0)."""
    first_SQ, second_SQ = first_SQ - first_SQ.mean(), second_SQ - second_SQ.mean()
    scale = float(np.linalg.norm(first_SQ) * np.linalg.norm(second_SQ))
    return first_SQ, second_SQ, scale if scale > 0 else float("nan")
