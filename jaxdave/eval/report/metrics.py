"""From records to numbers: rates as ratios of sums, each with its interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdave.eval.run.records import Record

RESAMPLES = 2000
Z = 1.959964
"""Of a 95 % interval."""
KINDS = ("prefill", "verify", "commit", "refresh", "recheck", "total")


class Span(NamedTuple):
    """A number and its 95 % interval; None: there is no such number."""

    value: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """An item whose text is another, and the first position where it is."""

    id: str
    at: int


def wilson(right: int, count: int) -> Span:
    """A share with Wilson's interval, which stays in 0..1 and is honest for few items.

    Raises ValueError for no items.
    """
    if not 0 <= right <= count or not count:
        raise ValueError(f"{right} right of {count} items is no share; give some items")
    share, room = right / count, Z * Z / count
    middle = (share + room / 2) / (1 + room)
    half = Z * math.sqrt(share * (1 - share) / count + room / count / 4) / (1 + room)
    return Span(share, max(0.0, middle - half), min(1.0, middle + half))


def ratio(over: Sequence[float], under: Sequence[float]) -> Span:
    """A ratio of sums over items, with its bootstrap interval over items."""
    return _spread(lambda a, b: a / b, over, under)


def gain(
    over: Sequence[float], under: Sequence[float],
    base_over: Sequence[float], base_under: Sequence[float],
) -> Span:  # fmt: skip
    """How many times larger one ratio of sums is than another, item by item paired."""
    return _spread(
        lambda a, b, c, d: (a / b) / (c / d), over, under, base_over, base_under
    )


def _spread(make, *columns: Sequence[float]) -> Span:
    """A function of sums, and its spread when the items are drawn anew, seed 0."""
    table = np.asarray(columns, np.float64)
    rng, count = np.random.default_rng(0), table.shape[1]
    weights = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, drawn = make(*table.sum(axis=1)), make(*(table @ weights.T))
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (None, None)
    return Span(*(_number(one) for one in (value, low, high)))


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def differences(
    records: Sequence[Record], base: Mapping[str, Record]
) -> tuple[Difference, ...]:
    """The items whose text is not the base's, in order."""
    found = ((r.id, first_difference(r, base[r.id])) for r in records)
    return tuple(Difference(id, at) for id, at in found if at is not None)


def first_difference(one: Record, other: Record) -> int | None:
    """The first position where two answers differ; None: nowhere.

    An answer that ends where the other goes on differs at its end.
    """
    a, b = one.token_ids, other.token_ids
    if (a, one.finish_reason) == (b, other.finish_reason):
        return None
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))


def counts(records: Sequence[Record]) -> dict[str, Any]:
    """What does not depend on a clock: the same in every run of the same settings."""
    right = sum(record.right for record in records)
    valid, decoded, calls = (
        [float(value) for value in column]
        for column in zip(
            *((r.valid_tokens, r.decoded_tokens, r.nfe["total"]) for r in records),
            strict=True,
        )
    )
    return {
        "items": len(records),
        "right": right,
        "accuracy": wilson(right, len(records))._asdict(),
        "valid_tokens": int(sum(valid)),
        "decoded_tokens": int(sum(decoded)),
        "nfe": {kind: sum(r.nfe[kind] for r in records) for kind in KINDS},
        "rows": sum(r.rows for r in records),
        "steps": sum(r.steps for r in records),
        "reference_nfe": sum(r.reference_nfe for r in records),
        "tokens_per_nfe": ratio(valid, calls)._asdict(),
        "decoded_tokens_per_nfe": ratio(decoded, calls)._asdict(),
        "ended": {
            reason: sum(r.finish_reason == reason for r in records)
            for reason in ("stop", "length")
        },
    }


def times(records: Sequence[Record]) -> dict[str, Any]:
    """What a clock says; compiling and warm-up calls are apart."""
    tokens, seconds = [r.valid_tokens for r in records], [r.seconds for r in records]
    return {
        "seconds": sum(seconds),
        "tokens_per_second": ratio(tokens, seconds)._asdict(),
        "compile_seconds": sum(r.compile_seconds for r in records),
    }


def gains(
    records: Sequence[Record], base: Mapping[str, Record]
) -> tuple[dict[str, float], dict[str, float]]:
    """How many times static's tokens per call, and how many times its tokens/s."""
    others = [base[record.id] for record in records]
    columns = lambda rows: [r.valid_tokens for r in rows]  # noqa: E731
    calls = lambda rows: [r.nfe["total"] for r in rows]  # noqa: E731
    seconds = lambda rows: [r.seconds for r in rows]  # noqa: E731
    return tuple(
        gain(columns(records), under(records), columns(others), under(others))._asdict()
        for under in (calls, seconds)
    )  # pyright: ignore[reportReturnType]
