"""What a decode returns, on the host."""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdave.core.state import RowState, Stats


@dataclasses.dataclass(frozen=True)
class Nfe:
    """Network calls by kind, however many drafts each carried.

    Of a batch under guarded numerics they may differ a little from one run to the next,
    as rows are computed in other shapes when others have ended; texts never do.

    This engine never needs a commit call, nor a refresh for block-causal models;
    recheck calls decide what was too close to call under guarded numerics.
    """

    prefill: int
    verify: int
    commit: int = 0
    refresh: int = 0
    recheck: int = 0

    @property
    def total(self) -> int:
        return self.prefill + self.verify + self.commit + self.refresh + self.recheck

    def counts(self) -> dict[str, int]:
        """All kinds by name, and their total."""
        return {**dataclasses.asdict(self), "total": self.total}


@dataclasses.dataclass(frozen=True)
class Row:
    """One request's answer.

    token_ids: up to and not including the first end token. finish_reason: "stop" when
    an end token was reached, "length" when the room was used up. valid_tokens: how many
    of `token_ids` are text. reference_nfe: what the public static loop would have spent
    on the same path: for block-causal models one prefill, one call per policy step and
    one commit per block; for full attention one call per policy step.
    accepted: policy steps that each later call confirmed. committed_at: the call that
    made each of `token_ids` known (0: the prefill). steps: policy steps in all. sizes:
    verify calls by the sizes of `Program.sizes`. decoded_tokens: all positions that
    calls have made known, the end token and what lies behind it included.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    valid_tokens: int
    nfe: Nfe
    reference_nfe: int
    accepted: tuple[int, ...]
    committed_at: tuple[int, ...]
    steps: int
    sizes: tuple[int, ...] = ()
    decoded_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """The rows in the order of their prompts; seconds of work and of compilation."""

    rows: tuple[Row, ...]
    seconds: float
    compile_seconds: float


class HostRows(NamedTuple):
    """What is read of rows, [B, ...]: half of their arrays, as fetching one takes some
    50 us whatever its size."""

    tokens_T: Any
    begin: Any
    end: Any
    n: Any
    done: Any
    stats: Stats


def host_fields(rows: RowState) -> HostRows:
    """What is read of rows."""
    return HostRows(*(getattr(rows, name) for name in HostRows._fields))


def read_rows(
    rows: HostRows,
    *,
    length: int,
    mask_id: int,
    stop_ids: tuple[int, ...],
    commits: bool,
) -> tuple[Row, ...]:
    """The finished rows, from the host.

    length: the block length. commits: whether the public loop spends calls on a prefill
    and on commits.
    """
    return tuple(
        _read_row(rows, index, length, mask_id, stop_ids, commits)
        for index in range(len(rows.done))
    )


def answer_end(tokens, begin: int, end: int, mask_id: int, stop_ids) -> tuple[int, int]:
    """(after the last token of the answer, after the last committed without a gap)."""
    generated = tokens[begin:end]
    masked = np.flatnonzero(generated == mask_id)
    solid = int(masked[0]) if len(masked) else len(generated)
    stops = np.flatnonzero(np.isin(generated[:solid], stop_ids))
    return begin + (int(stops[0]) if len(stops) else solid), begin + solid


def _read_row(rows, index: int, length: int, mask_id, stop_ids, commits: bool) -> Row:
    tokens, call = rows.tokens_T[index], rows.stats.call_T[index]
    begin, end = int(rows.begin[index]), int(rows.end[index])
    last, solid = answer_end(tokens, begin, end, mask_id, stop_ids)
    stats = rows.stats
    verify, refresh, recheck = (
        int(part[index]) for part in (stats.verify, stats.refresh, stats.recheck)
    )
    steps = int(rows.n[index])
    touched = np.flatnonzero(call[begin:end] >= 0)
    blocks = (begin + int(touched[-1])) // length - begin // length + 1
    ids = tuple(int(t) for t in tokens[begin:last])
    return Row(
        token_ids=ids,
        finish_reason="stop" if last < solid else "length",
        valid_tokens=len(ids),
        nfe=Nfe(prefill=1, verify=verify, refresh=refresh, recheck=recheck),
        reference_nfe=steps + (1 + blocks) * commits,
        accepted=tuple(
            int(a) for a in stats.accepted_C[index][: verify + refresh + recheck]
        ),
        sizes=tuple(int(count) for count in stats.size_Z[index]),
        committed_at=tuple(int(c) for c in call[begin:last]),
        steps=steps,
        decoded_tokens=len(touched),
    )
