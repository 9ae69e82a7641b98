"""Decodes that are run call by call, for streams of final tokens and for live views.

`stream` yields tokens as no later call can change them any more, `snapshots` everything
after every call. Both run the loop that `generate` begins with, one round at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdave.core.host_arrays import host_array
from jaxdave.core.prediction import NO_TOKEN
from jaxdave.core.state import DecodeState
from jaxdave.engine.batching import TokenIds
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import PreparedDecode, prepare, read_completions
from jaxdave.engine.results import (
    Completion,
    FinishReason,
    answer_end,
    host_fields,
    row_finish,
)
from jaxdave.runtime.platform import in_32_bits


class StreamUpdate(NamedTuple):
    """Tokens of one row that are final, with nothing undecided to their left.

    Attributes:
        row: Index of the prompt.
        positions: Their positions in the sequence.
        token_ids: The tokens.
        call: The network call that committed them, 0 for the prefill.
        finish_reason: As in `Completion`, of the last update of a row; else None.
    """

    row: int
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    call: int
    finish_reason: FinishReason | None = None


class Snapshot(NamedTuple):
    """All rows of a decode after a network call.

    Attributes:
        call: The call, 0 for the prefill.
        tokens_BT: Token ids of prompts and answers; what is not decided yet holds the
            mask id. Blocks are decoded whole, so an answer is the first
            `max_new_tokens` of what follows its prompt.
        done_B: True for rows that have ended.
        final_until_B: For a policy that edits, before which position of each row no
            later step changes anything; else None.
    """

    call: int
    tokens_BT: np.ndarray
    done_B: np.ndarray
    final_until_B: np.ndarray | None = None


class PartialAnswer(NamedTuple):
    """A row's answer after a network call, up to the end of the block in progress.

    Attributes:
        final_ids: Tokens that no later call changes, with nothing undecided before.
        open_ids: What follows in the block that is being denoised; undecided positions
            hold the mask id. Empty where the row has ended.
    """

    final_ids: tuple[int, ...]
    open_ids: tuple[int, ...]


def stream(
    decoder: Decoder,
    params: Any,
    prompts: TokenIds,
    *,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
    group_size: int = 1,
) -> "TokenStream":
    """Decode tokens that come as they become final, row by row, in order of position.

    Args:
        decoder: As `generate`, and so are the others.
        params: The model's parameters.
        prompts: Token ids, of any lengths.
        seed: Keys the noise at a temperature.
        requests: Number of each request.
        draft_text: For every prompt the ids of what the answer may look like.
        group_size: So many prompts in a row are the same.

    Returns:
        An iterator of updates; the last one of a row has no tokens and names the call
        that ended it. The tokens are those of `generate`.

    Raises:
        ValueError: As `generate`, and at once.
    """
    # Not part of the generator, which would begin
    # with it only when the first update is asked for.
    prepared = prepare(decoder, params, prompts, seed, requests, draft_text, group_size)
    begins = [len(prompt) for prompt in prompts]
    return TokenStream(begins, CallByCall(decoder, params, prepared))


def snapshots(
    decoder: Decoder,
    params: Any,
    prompts: TokenIds,
    *,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
) -> "CallByCall":
    """Decode, and see all rows after every network call.

    Blocks that are being denoised are seen with the masks that are left in them, so
    this is what a live view shows; `stream` gives the tokens that are final.

    Args:
        decoder: As `generate`, and so are the others.
        params: The model's parameters.
        prompts: Token ids, of any lengths.
        seed: Keys the noise at a temperature.
        requests: Number of each request.
        draft_text: For every prompt the ids of what the answer may look like.

    Returns:
        An iterator of snapshots, the first of them after the prefill and the last when
        all rows are done. The last one's tokens are those of `generate`.

    Raises:
        ValueError: As `generate`, and at once.

    Example:
        >>> import jaxdave
        >>> model = jaxdave.load("sdar-1m")
        >>> decoder = jaxdave.freedave(model.config, draft_steps=4, max_new_tokens=8)
        >>> prompt_ids = model.codec.encode_prompt("How many pens?")
        >>> seen = jaxdave.snapshots(decoder, model.params, [prompt_ids])
        >>> masks = [(one.tokens_BT == model.config.mask_id).sum() for one in seen]
        >>> masks == sorted(masks, reverse=True)
        True
    """
    prepared = prepare(decoder, params, prompts, seed, requests, draft_text)
    return CallByCall(decoder, params, prepared)


def partial_answer(
    decoder: Decoder, snapshot: Snapshot, begin: int, row: int = 0
) -> PartialAnswer:
    """What a snapshot knows of a row's answer.

    Args:
        decoder: What is decoded.
        snapshot: One of its snapshots.
        begin: The length of the row's prompt.
        row: The row.

    Returns:
        The final tokens and the open block. What lies behind an end token of the block
        is left out.
    """
    layout = decoder.spec.layout
    tokens_T, done = snapshot.tokens_BT[row], bool(snapshot.done_B[row])
    final = _final_length(decoder, snapshot, begin, row)
    final_ids = tuple(int(t) for t in tokens_T[begin:final])
    if done:
        return PartialAnswer(final_ids, ())
    # Policies decide in the first block that has a mask, or is not final if they edit,
    # and nowhere else.
    end = begin + decoder.max_new_tokens
    masked = np.flatnonzero(np.isin(tokens_T[begin:end], (layout.mask_id, NO_TOKEN)))
    edits = decoder.spec.policy.edits
    first_open = begin + int(masked[0]) if len(masked) and not edits else final
    first = begin if layout.anchored else 0
    length = layout.block_length
    block_end = first + ((first_open - first) // length + 1) * length
    open_ids = tokens_T[final : min(end, block_end)]
    stops = np.flatnonzero(np.isin(open_ids, layout.stop_ids))
    open_ids = open_ids[: int(stops[0]) if len(stops) else None]
    shown = np.where(open_ids == NO_TOKEN, layout.mask_id, open_ids)
    return PartialAnswer(final_ids, tuple(int(t) for t in shown))


class CallByCall(Iterator[Snapshot]):
    """A decode that is run one network call at a time, and a snapshot after each.

    Attributes:
        decoder: What is decoded.
        compile_seconds: Spent on compiling and measuring just now.
    """

    def __init__(self, decoder: Decoder, params: Any, prepared: PreparedDecode) -> None:
        """Args: as `snapshots`; prepared: what `prepare` has made of the prompts."""
        self.decoder = decoder
        self.compile_seconds = prepared.seconds
        self._state: DecodeState | None = None
        self._snapshots = self._run(params, prepared)

    def __next__(self) -> Snapshot:
        """The next snapshot."""
        return next(self._snapshots)

    def completion(self, row: int) -> Completion:
        """What a row has come to so far, as `generate` would return it.

        Args:
            row: Index of a prompt.

        Returns:
            Its tokens so far and what they took; of a row that has ended, all.
        """
        assert self._state is not None, "no snapshot was asked for"
        rows = self._state.fetch(host_fields(self._state.rows))
        own = jax.tree.map(lambda array: array[row : row + 1], rows)
        return read_completions(self.decoder, own)[0]

    def _run(self, params: Any, prepared: PreparedDecode) -> Iterator[Snapshot]:
        """The loop that `generate` begins with, one round at a time."""
        with in_32_bits():
            state = prepared.prefill(params, prepared.loop.runtime, prepared.prompts)
        runtime = prepared.loop.runtime._replace(max_calls=host_array(np.int32(1)))
        # Call 0 is the prefill.
        for call in range(self.decoder.max_rounds + 1):
            self._state = state
            rows = state.rows
            final_until = rows.progress and rows.progress.final_until
            fetched = state.fetch((rows.tokens_T, rows.done, final_until))
            # Rows that fill up a batch come last.
            parts = jax.tree.map(lambda a: a[: prepared.num_prompts], fetched)
            snapshot = Snapshot(call, *parts)
            yield snapshot
            if snapshot.done_B.all():
                return
            with in_32_bits():
                state = prepared.loop.run(params, runtime, state)


class TokenStream(Iterator[StreamUpdate]):
    """The updates of prompts as they come, and what their rows have taken so far."""

    def __init__(self, begins: Sequence[int], calls: CallByCall) -> None:
        """Args: begins: lengths of the prompts; calls: their decode."""
        self._calls = calls
        self._updates = _stream_updates(calls.decoder, begins, calls)

    def __next__(self) -> StreamUpdate:
        """The next update."""
        return next(self._updates)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling and measuring just now."""
        return self._calls.compile_seconds

    def completion(self, row: int) -> Completion:
        """As of `CallByCall`.

        Args:
            row: Index of a prompt that an update has come of.

        Returns:
            Its tokens so far and what they took.
        """
        return self._calls.completion(row)


def _stream_updates(
    decoder: Decoder, begins: Sequence[int], calls: Iterator[Snapshot]
) -> Iterator[StreamUpdate]:
    """Yield what is newly final in each snapshot of rows that begin at `begins`."""
    sent = list(begins)
    open_rows = set(range(len(begins)))
    for snapshot in calls:
        call, tokens_BT = snapshot.call, snapshot.tokens_BT
        for row in sorted(open_rows):
            begin, done = begins[row], bool(snapshot.done_B[row])
            end = _final_length(decoder, snapshot, begin, row)
            if end > sent[row]:
                ids = tuple(int(t) for t in tokens_BT[row, sent[row] : end])
                yield StreamUpdate(row, tuple(range(sent[row], end)), ids, call)
                sent[row] = end
            if done:
                open_rows.remove(row)
                generated = tokens_BT[row, begin : begin + decoder.max_new_tokens]
                is_stopped = end < begin + decoder.max_new_tokens
                reason = row_finish(generated, is_stopped)
                yield StreamUpdate(row, (), (), call, reason)


def _final_length(decoder: Decoder, snapshot: Snapshot, begin: int, row: int) -> int:
    """The position after the last token of a row that no later step can change."""
    layout, policy = decoder.spec.layout, decoder.spec.policy
    tokens_T, done = snapshot.tokens_BT[row], bool(snapshot.done_B[row])
    end = begin + decoder.max_new_tokens
    last, solid = answer_end(tokens_T, begin, end, layout.mask_id, layout.stop_ids)
    if snapshot.final_until_B is not None and not done:
        return min(last, max(begin, int(snapshot.final_until_B[row])))
    # Without revision a token is final once nothing to its left is masked: no end token
    # can come before it any more.
    if done or not policy.revises:
        return last
    # Tokens of the block that is being decoded may still be taken back.
    first = begin if layout.anchored else 0
    return min(last, max(begin, solid - (solid - first) % layout.block_length))
