"""From records to numbers: rates as ratios of sums, each with its interval."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdave.engine.results import hit_rate
from jaxdave.eval.run.records import Record

RESAMPLES = 2000
"""Number of bootstrap resamples."""
Z = 1.959964
"""Standard normal quantile of a 95 % interval."""
KINDS = ("prefill", "verify", "commit", "refresh", "recheck", "total")
"""Kinds of network calls, and their total."""


class Estimate(NamedTuple):
    """A number with its 95 % interval.

    Attributes:
        value: The number; None: it does not exist (0 / 0).
        low: Lower end of the interval, or None.
        high: Upper end of the interval, or None.
    """

    value: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """An item whose text differs between two methods.

    Attributes:
        id: Id of the item.
        at: First position where the token ids differ, from 0.
    """

    id: str
    at: int


def wilson_interval(right: int, count: int) -> Estimate:
    """Compute a share with Wilson's interval.

    Unlike the normal approximation it stays within 0 and 1, and keeps its coverage for
    few items and for shares near 0 or 1.

    Example:
        >>> wilson_interval(50, 100).value
        0.5

    Source: Wilson 1927; Newcombe 1998, Statistics in Medicine 17, method 3.

    Args:
        right: Number of items that are right.
        count: Number of items.

    Returns:
        The share and its interval.

    Raises:
        ValueError: There are no items, or more right ones than items.
    """
    if not 0 <= right <= count or not count:
        raise ValueError(f"{right} right of {count} items is no share; give some items")
    share, z2 = right / count, Z * Z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(share * (1 - share) / count + z2 / count / 4) / (1 + z2)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def ratio_of_sums(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """Compute a ratio of sums over items, with its bootstrap interval over items.

    Example:
        >>> ratio_of_sums([10, 90], [10, 30]).value
        2.5

    Args:
        numerator: One value per item.
        denominator: One value per item.

    Returns:
        The ratio; None for 0 / 0.
    """

    def ratio(a, b):
        return a / b

    return _bootstrap(ratio, numerator, denominator)


def gain(
    numerator: Sequence[float],
    denominator: Sequence[float],
    base_numerator: Sequence[float],
    base_denominator: Sequence[float],
) -> Estimate:
    """Compute how many times larger one ratio of sums is than another.

    The bootstrap draws items, not values, so that the two are paired: an item that is
    hard for both does not widen the interval.

    Args:
        numerator: One value per item.
        denominator: One value per item.
        base_numerator: Of the method that is compared with, for the same items.
        base_denominator: Of that method, for the same items.

    Returns:
        The quotient of the two ratios.
    """

    def quotient(a, b, c, d):
        return (a / b) / (c / d)

    columns = numerator, denominator, base_numerator, base_denominator
    return _bootstrap(quotient, *columns)


def _bootstrap(function: Callable[..., Any], *columns: Sequence[float]) -> Estimate:
    """A function of sums over items, and its percentile interval; seed 0."""
    table = np.asarray(columns, np.float64)
    rng, count = np.random.default_rng(0), table.shape[1]
    # How often each item is drawn: one product then gives the sums of all resamples.
    weights = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = function(*table.sum(axis=1))
        resampled = function(*(table @ weights.T))
    resampled = resampled[np.isfinite(resampled)]
    low, high = (
        np.percentile(resampled, (2.5, 97.5)) if len(resampled) else (None, None)
    )
    return Estimate(*(_finite_or_none(number) for number in (value, low, high)))


def _finite_or_none(value: float | None) -> float | None:
    """JSON has neither infinity nor NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def text_differences(
    records: Sequence[Record], base: Mapping[str, Record]
) -> tuple[Difference, ...]:
    """Find the items whose text differs from another method's.

    Args:
        records: Records of a method.
        base: Records of the other method, by item id.

    Returns:
        The items that differ, in the order of the records.
    """
    pairs = ((r.id, first_difference(r, base[r.id])) for r in records)
    return tuple(Difference(id, at) for id, at in pairs if at is not None)


def first_difference(one: Record, other: Record) -> int | None:
    """Find the first position where two answers differ.

    Args:
        one: An answer.
        other: Another answer to the same item.

    Returns:
        The position, from 0; None if they are equal. An answer that ends where the
        other goes on differs at its end.
    """
    a, b = one.token_ids, other.token_ids
    if (a, one.finish_reason) == (b, other.finish_reason):
        return None
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))


def count_metrics(records: Sequence[Record]) -> dict[str, Any]:
    """Compute the metrics that do not depend on a clock.

    They are the same in every run of the same settings.

    Args:
        records: Records of one cell, at least one.

    Returns:
        JSON values by the keys of a results file.
    """
    right = sum(record.right for record in records)
    valid, decoded, calls = (
        [float(value) for value in column]
        for column in zip(
            *((r.valid_tokens, r.decoded_tokens, r.nfe["total"]) for r in records),
            strict=True,
        )
    )
    proposed = sum(record.proposed_drafts for record in records)
    accepted = sum(record.accepted_drafts for record in records)
    return {
        "items": len(records),
        "right": right,
        "accuracy": wilson_interval(right, len(records))._asdict(),
        "valid_tokens": int(sum(valid)),
        "decoded_tokens": int(sum(decoded)),
        "nfe": {kind: sum(r.nfe[kind] for r in records) for kind in KINDS},
        "rows": sum(r.rows for r in records),
        "steps": sum(r.steps for r in records),
        "proposed_drafts": proposed,
        "accepted_drafts": accepted,
        "hit_rate": hit_rate(accepted, proposed),
        "reference_nfe": sum(r.reference_nfe for r in records),
        "tokens_per_nfe": ratio_of_sums(valid, calls)._asdict(),
        "decoded_tokens_per_nfe": ratio_of_sums(decoded, calls)._asdict(),
        "ended": {
            reason: sum(r.finish_reason == reason for r in records)
            for reason in ("stop", "length")
        },
    }


def timing_metrics(records: Sequence[Record]) -> dict[str, Any]:
    """Compute the metrics that a clock decides.

    Args:
        records: Records of one cell, at least one.

    Returns:
        JSON values by the keys of a results file. Compilation and warm-up calls are
        counted apart from `seconds`.
    """
    tokens, seconds = [r.valid_tokens for r in records], [r.seconds for r in records]
    return {
        "seconds": sum(seconds),
        "tokens_per_second": ratio_of_sums(tokens, seconds)._asdict(),
        "compile_seconds": sum(r.compile_seconds for r in records),
    }


def gain_metrics(
    records: Sequence[Record], base: Mapping[str, Record]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute how much better the rates of a method are than static's.

    Args:
        records: Records of a method.
        base: Records of static decoding, by item id.

    Returns:
        Estimates of the gain in tokens per call, and in tokens per second.
    """
    others = [base[record.id] for record in records]

    def tokens(rows: Sequence[Record]) -> list[float]:
        return [row.valid_tokens for row in rows]

    def calls(rows: Sequence[Record]) -> list[float]:
        return [row.nfe["total"] for row in rows]

    def seconds(rows: Sequence[Record]) -> list[float]:
        return [row.seconds for row in rows]

    def gain_in(cost: Callable[[Sequence[Record]], list[float]]) -> dict[str, Any]:
        return gain(
            tokens(records), cost(records), tokens(others), cost(others)
        )._asdict()

    return gain_in(calls), gain_in(seconds)
