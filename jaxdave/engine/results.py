"""What a decode returns, on the host: counts of calls, completions, and their text."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdave.core.prediction import NO_TOKEN
from jaxdave.core.state import RowState, Stats
from jaxdave.engine.reference_calls import DecodedPath, reference_calls
from jaxdave.engine.trajectory import Trajectory, read_trajectory
from jaxdave.runtime.memory import PeakMemory

FinishReason = Literal["stop", "length", "nonfinite"]
_SHOWN_IDS = 8
"""Token ids that are printed of a completion."""


@dataclasses.dataclass(frozen=True)
class Nfe:
    """Calls of the model by kind, however many drafts each carried.

    Of a batch under guarded numerics they may differ a little from one run to the next,
    as rows are computed in other shapes when others have ended; texts never do.

    Attributes:
        prefill: Calls that read the prompt, 1.
        verify: Calls that evaluated drafts.
        commit: Calls that only filled the cache; this engine needs none.
        refresh: Calls that began a block of a full-attention model.
        recheck: Calls that decided what was too close under guarded numerics.
    """

    prefill: int
    verify: int
    commit: int = 0
    refresh: int = 0
    recheck: int = 0

    @property
    def total(self) -> int:
        """All calls."""
        return self.prefill + self.verify + self.commit + self.refresh + self.recheck

    def counts(self) -> dict[str, int]:
        """All kinds by name, and their total."""
        return {**dataclasses.asdict(self), "total": self.total}

    def __str__(self) -> str:
        return f"{self.total} calls"


@dataclasses.dataclass(frozen=True, repr=False)
class Completion:
    """One request's answer in token ids, and what it took.

    A verify call evaluates the policy's own next state and, beside it, drafts of the
    states after that: the latter are what is proposed, and those that the policy
    confirms are accepted. Every call that is certain of its decision confirms one step
    more than it accepts drafts, so that without rechecks steps = calls + accepted (but
    for policies that weigh candidates, some of whose calls confirm nothing).

    Deviation from FreeDave's code (generation/core.py, `num_proposed_tokens` and
    `num_hit_tokens`), which counts tokens, and the policy's own next state as a
    proposal that always hits, so that its hit rate is 1 without drafts. Where a step
    commits one token and drafts are a chain, its rate is (accepted + verify calls) /
    (proposed + verify calls).

    Attributes:
        token_ids: The answer, up to and not including the first end token.
        finish_reason: "stop" when an end token was reached, "length" when
            `max_new_tokens` were decoded, "nonfinite" when no score of a position was a
            finite number; what was decoded before that is not to be trusted.
        valid_tokens: How many of `token_ids` are text.
        nfe: Calls of the model by kind.
        reference_nfe: What the public loop without drafts would have spent on the same
            path, up to the end of the block in which the answer ends. Exact where every
            step commits as many tokens (see `engine.reference_calls`).
        accepted: Policy steps that each call after the prefill confirmed.
        committed_at: The call that made each of `token_ids` known (0: the prefill).
        steps: Policy steps in all.
        sizes: Verify calls by the draft lengths that the spec allows.
        decoded_tokens: All positions that calls have made known, the end token and what
            lies behind it included, up to `max_new_tokens`.
        proposed_drafts: Drafts that calls have evaluated beside the policy's own next
            state: all nodes of a tree, 0 without drafts.
        accepted_drafts: Those of them that the policy has confirmed.
        trajectory: Steps and log-probabilities of the tokens, if they were recorded
            (`DecodeConfig.record_steps`).
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    valid_tokens: int
    nfe: Nfe
    reference_nfe: int
    accepted: tuple[int, ...]
    committed_at: tuple[int, ...]
    steps: int
    sizes: tuple[int, ...] = ()
    decoded_tokens: int = 0
    proposed_drafts: int = 0
    accepted_drafts: int = 0
    trajectory: Trajectory | None = None

    @property
    def hit_rate(self) -> float | None:
        """The share of the proposed drafts that was accepted; None if there were none.

        The nodes of a tree are alternatives to each other, so that a tree's rate is
        lower than that of a chain which saves as many calls.
        """
        return hit_rate(self.accepted_drafts, self.proposed_drafts)

    @property
    def tokens_per_call(self) -> float:
        """Tokens of text for each call of the model."""
        return self.valid_tokens / self.nfe.total

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON values, under the names of `jaxdave generate --json`."""
        values: dict[str, Any] = {
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "valid_tokens": self.valid_tokens,
            "nfe": self.nfe.counts(),
            "reference_nfe": self.reference_nfe,
            "tokens_per_nfe": self.tokens_per_call,
            "steps": self.steps,
            "proposed_drafts": self.proposed_drafts,
            "accepted_drafts": self.accepted_drafts,
            "hit_rate": self.hit_rate,
        }
        if self.trajectory is not None:
            values["trajectory"] = self.trajectory.to_dict()
        return values

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        ids = ", ".join(map(str, self.token_ids[:_SHOWN_IDS]))
        more = ", ..." if len(self.token_ids) > _SHOWN_IDS else ""
        return f"[{ids}{more}] ({_summary(self)})"

    def __repr__(self) -> str:
        return f"Completion({self})"


def hit_rate(accepted: int, proposed: int) -> float | None:
    """The share of proposed drafts that was accepted.

    Args:
        accepted: Accepted drafts, of one answer or of several.
        proposed: Proposed drafts of the same answers.

    Returns:
        The share; None where nothing was proposed.

    Example:
        >>> hit_rate(3, 4), hit_rate(0, 0)
        (0.75, None)
    """
    return accepted / proposed if proposed else None


def _summary(completion: Completion) -> str:
    return (
        f"{completion.nfe.total} calls, {completion.valid_tokens} tokens, "
        f"{completion.tokens_per_call:.2f} tokens/call, {completion.finish_reason}"
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a batch of prompts was decoded to.

    Attributes:
        completions: In the order of the prompts.
        seconds: Of the whole batch, without compilation.
        compile_seconds: Spent on compiling and measuring just now.
        memory: The most memory that the process, or its device, had used by then.
    """

    completions: tuple[Completion, ...]
    seconds: float
    compile_seconds: float
    memory: PeakMemory | None = None

    def to_dict(self) -> dict[str, Any]:
        """The batch as JSON values."""
        return {
            "completions": [one.to_dict() for one in self.completions],
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "memory": memory_dict(self.memory),
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        lines = [f"[{row}] {one}" for row, one in enumerate(self.completions)]
        return "\n".join([*lines, f"{self.seconds:.2f} s"])


def memory_dict(memory: PeakMemory | None) -> dict[str, Any]:
    """A peak of memory as JSON values.

    Args:
        memory: The peak, or None where it is not known.

    Returns:
        "bytes" and "source", as reports of evaluations have them.
    """
    return dict(zip(PeakMemory._fields, memory or (None, None), strict=True))


@dataclasses.dataclass(frozen=True, repr=False)
class TextCompletion:
    """One request's answer as text. Two are equal when text, ids and end are.

    Attributes:
        text: The answer, special tokens left out, up to the first stop string.
        token_ids: The answer's ids; before a stop string as many as the text needs, of
            which the last may hold the beginning of the stop string too.
        finish_reason: As in `Completion`; "stop" at a stop string as well.
        completion: What it took, cut as the text is.
        request: Keys the noise of this answer at a temperature.
        seconds: Of the whole batch that it was decoded in, without compilation.
        compile_seconds: Spent on compiling and measuring for that batch.
        batch_rows: Prompts that were decoded together.
        memory: The most memory that the process, or its device, had used by then.
        settings: How it was decoded, under the names of `jaxdave generate --json`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    completion: Completion = dataclasses.field(compare=False)
    request: int = dataclasses.field(default=0, compare=False)
    seconds: float = dataclasses.field(default=0.0, compare=False)
    compile_seconds: float = dataclasses.field(default=0.0, compare=False)
    batch_rows: int = dataclasses.field(default=1, compare=False)
    memory: PeakMemory | None = dataclasses.field(default=None, compare=False)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def nfe(self) -> Nfe:
        """Calls of the model by kind."""
        return self.completion.nfe

    @property
    def valid_tokens(self) -> int:
        """Tokens of the text."""
        return self.completion.valid_tokens

    @property
    def tokens_per_call(self) -> float:
        """Tokens of text for each call of the model."""
        return self.completion.tokens_per_call

    @property
    def proposed_drafts(self) -> int:
        """As in `Completion`."""
        return self.completion.proposed_drafts

    @property
    def accepted_drafts(self) -> int:
        """As in `Completion`."""
        return self.completion.accepted_drafts

    @property
    def hit_rate(self) -> float | None:
        """The share of the proposed drafts that was accepted; None without drafts."""
        return self.completion.hit_rate

    @property
    def trajectory(self) -> Trajectory | None:
        """As in `Completion`."""
        return self.completion.trajectory

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON values, under the names of `jaxdave generate --json`."""
        rate = self.valid_tokens / self.seconds if self.seconds else 0.0
        fields = self.completion.to_dict()
        tokens_per_nfe = fields.pop("tokens_per_nfe")
        return {
            "index": self.request,
            "text": self.text,
            **fields,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "tokens_per_nfe": tokens_per_nfe,
            "tokens_per_second": rate,
            "memory": memory_dict(self.memory),
            **self.settings,
            "batch_rows": self.batch_rows,
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def __str__(self) -> str:
        return f"{self.text}\n({_summary(self.completion)})"

    def __repr__(self) -> str:
        return f"TextCompletion({self.text!r}, {_summary(self.completion)})"


class HostRows(NamedTuple):
    """The arrays of rows that results are read from, [B, ...].

    They are half of all, as fetching one from the device takes some 50 us whatever its
    size. Attributes as in `RowState`; of `stats` there is no `error`.
    """

    tokens_T: Any
    begin: Any
    end: Any
    n: Any
    done: Any
    stats: Stats


def host_fields(rows: RowState) -> HostRows:
    """The arrays that results are read from, still on the device.

    Args:
        rows: Rows of a decode.

    Returns:
        Those of their arrays.
    """
    fields = HostRows(*(getattr(rows, name) for name in HostRows._fields))
    return fields._replace(stats=rows.stats._replace(error=()))  # pyright: ignore


def read_rows(
    rows: HostRows,
    *,
    max_new_tokens: int,
    length: int,
    mask_id: int,
    stop_ids: tuple[int, ...],
    is_block_causal: bool,
    tokens_per_step: int | None,
) -> tuple[Completion, ...]:
    """The completions of finished rows.

    Args:
        rows: The rows, on the host.
        max_new_tokens: How much of a row is its answer: blocks are decoded whole.
        length: The block length.
        mask_id: The id of a masked position.
        stop_ids: The ids that end an answer.
        is_block_causal: The model is, so that the public loop stores finished blocks.
        tokens_per_step: Tokens that every policy step commits; None where that varies.

    Returns:
        A completion for every row.
    """
    return tuple(
        _read_row(
            rows,
            index,
            max_new_tokens,
            length,
            mask_id,
            stop_ids,
            is_block_causal,
            tokens_per_step,
        )
        for index in range(len(rows.done))
    )


def answer_end(
    tokens: np.ndarray, begin: int, end: int, mask_id: int, stop_ids: tuple[int, ...]
) -> tuple[int, int]:
    """Where a row's answer ends.

    Args:
        tokens: Token ids of the row, [T].
        begin: The first position after the prompt.
        end: After the last position that may be decoded.
        mask_id: The id of a masked position; `NO_TOKEN` counts as one.
        stop_ids: The ids that end an answer.

    Returns:
        (the position after the last token of the answer, the position after the last
        token that has no masked position before it).
    """
    generated = tokens[begin:end]
    masked = np.flatnonzero((generated == mask_id) | (generated == NO_TOKEN))
    known = int(masked[0]) if len(masked) else len(generated)
    stops = np.flatnonzero(np.isin(generated[:known], stop_ids))
    return begin + (int(stops[0]) if len(stops) else known), begin + known


def _read_row(
    rows: HostRows,
    index: int,
    max_new_tokens: int,
    length: int,
    mask_id: int,
    stop_ids: tuple[int, ...],
    is_block_causal: bool,
    tokens_per_step: int | None,
) -> Completion:
    tokens, call = rows.tokens_T[index], rows.stats.call_T[index]
    begin, end = int(rows.begin[index]), int(rows.end[index])
    answer = begin + max_new_tokens
    last, known = answer_end(tokens, begin, answer, mask_id, stop_ids)
    stats = rows.stats
    verify, refresh, recheck = (
        int(part[index]) for part in (stats.verify, stats.refresh, stats.recheck)
    )
    # The row's step index counts policy steps, however many each call has confirmed.
    steps = int(rows.n[index])
    decoded = np.flatnonzero(call[begin:end] >= 0)
    if not len(decoded):
        raise ValueError(
            f"no token was committed in {steps} policy steps; a policy's step must "
            "fill an open position whenever there is one"
        )
    accepted = tuple(
        int(a) for a in stats.accepted_C[index][: verify + refresh + recheck]
    )
    path = DecodedPath(
        call_T=np.asarray(call),
        begin=begin,
        end=end,
        steps=steps,
        steps_of_call=(1, *accepted),
        tokens_per_step=tokens_per_step,
        block_length=length,
        is_block_causal=is_block_causal,
    )
    ids = tuple(int(t) for t in tokens[begin:last])
    return Completion(
        token_ids=ids,
        finish_reason=row_finish(tokens[begin:answer], last < known),
        valid_tokens=len(ids),
        nfe=Nfe(prefill=1, verify=verify, refresh=refresh, recheck=recheck),
        reference_nfe=reference_calls(path),
        accepted=accepted,
        sizes=tuple(int(count) for count in stats.size_Z[index]),
        committed_at=tuple(int(c) for c in call[begin:last]),
        steps=steps,
        decoded_tokens=int(np.sum(decoded < max_new_tokens)),
        proposed_drafts=int(stats.drafts[index, 0]),
        accepted_drafts=int(stats.drafts[index, 1]),
        trajectory=read_trajectory(
            stats, index, tokens, begin, min(answer, end), mask_id
        ),
    )


def row_finish(generated: np.ndarray, is_stopped: bool) -> FinishReason:
    """Why a row has ended.

    Args:
        generated: Tokens after the prompt, to the end of what was decoded.
        is_stopped: An end token was reached.

    Returns:
        The reason, as `Completion.finish_reason`.
    """
    if np.any(generated == NO_TOKEN):
        return "nonfinite"
    return "stop" if is_stopped else "length"


def check_finite(finish_reasons: Mapping[int, str | None]) -> None:
    """Refuse answers that ended for want of a finite score.

    Args:
        finish_reasons: By number of the prompt.

    Raises:
        ValueError: One of them is "nonfinite".
    """
    broken = [n for n, reason in finish_reasons.items() if reason == "nonfinite"]
    if broken:
        raise ValueError(
            f"prompt {broken[0]}: the model's scores are not finite numbers; its "
            "weights are broken or overflow, so fetch the checkpoint again or use "
            "--dtype float32"
        )
