"""Answers that end before stop strings, which the host looks for between calls.

The loop of `stream`, one round at a time: a row whose text is settled is read as it
stands, and the batch ends when all are. So an answer costs the calls up to its stop
string, whatever it is decoded with.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxdave.engine.batching import TokenIds
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.results import Completion, Result
from jaxdave.engine.stop_strings import cut_at_stop, is_final, num_ids_of
from jaxdave.engine.streaming import stream
from jaxdave.runtime.memory import peak_memory

DecodeFn = Callable[[Sequence[int]], str]
"""Maps token ids to their text."""


class StoppedResult(NamedTuple):
    """What a batch of prompts was decoded to.

    Attributes:
        texts: The answers, in the order of the prompts.
        result: What they took; ids and ends are those of the texts.
    """

    texts: tuple[str, ...]
    result: Result


def generate_until(
    decoder: Decoder,
    params: Any,
    decode: DecodeFn,
    prompts: TokenIds,
    stops: Sequence[Sequence[str]],
    *,
    limits: Sequence[int] | None = None,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
    group_size: int = 1,
) -> StoppedResult:
    """Decode every prompt to its first stop string, or to its end.

    Args:
        decoder: What to decode.
        params: The model's parameters.
        decode: Maps token ids to their text.
        prompts: Token ids, of any lengths.
        stops: For every prompt the stop strings of its answer.
        limits: For every prompt how many tokens its answer may have; None: the room.
        seed: Keys the noise at a temperature.
        requests: Number of each request.
        draft_text: For every prompt the ids of what the answer may look like.
        group_size: So many prompts in a row are the same and are evaluated once.

    Returns:
        Texts and what they took. A text is the beginning of what the decoder gives
        without stop strings. Where the decoder has no early exit, every row goes on to
        its end.

    Raises:
        ValueError: As `generation.generate`.
    """
    limits = [decoder.max_new_tokens] * len(prompts) if limits is None else limits
    ids: list[list[int]] = [[] for _ in prompts]
    found: dict[int, Completion] = {}
    updates = stream(
        decoder,
        params,
        prompts,
        seed=seed,
        requests=requests,
        draft_text=draft_text,
        group_size=group_size,
    )
    start = time.perf_counter()
    for update in updates:
        row = update.row
        ids[row].extend(update.token_ids)
        # An update without tokens tells that the row has ended.
        is_over = not update.token_ids
        if decoder.spec.layout.early_exit:
            is_over |= len(ids[row]) >= limits[row]
            is_over = is_over or is_final(decode(ids[row]), stops[row])
        if is_over and row not in found:
            found[row] = updates.completion(row)
        if len(found) == len(prompts):
            break
    seconds = time.perf_counter() - start
    answers = [
        cut_answer(_limited(found[row], limits[row]), decode, stops[row])
        for row in range(len(prompts))
    ]
    result = Result(
        tuple(completion for _, completion in answers),
        seconds,
        updates.compile_seconds,
        peak_memory(),
    )
    return StoppedResult(tuple(text for text, _ in answers), result)


def cut_answer(
    completion: Completion, decode: DecodeFn, stops: Sequence[str]
) -> tuple[str, Completion]:
    """Cut an answer before its first stop string.

    Args:
        completion: The answer.
        decode: Maps token ids to their text.
        stops: Stop strings.

    Returns:
        (the text, the answer with as many ids as the text needs, and why it ends).
    """
    whole = decode(completion.token_ids)
    text = cut_at_stop(whole, stops)
    if text == whole:
        return text, completion
    cut = _limited(completion, num_ids_of(text, completion.token_ids, decode))
    is_broken = completion.finish_reason == "nonfinite"
    reason = completion.finish_reason if is_broken else "stop"
    return text, dataclasses.replace(cut, finish_reason=reason)


def _limited(completion: Completion, count: int) -> Completion:
    """An answer with at most so many ids."""
    if len(completion.token_ids) <= count:
        return completion
    reason = completion.finish_reason
    return dataclasses.replace(
        completion,
        token_ids=completion.token_ids[:count],
        committed_at=completion.committed_at[:count],
        valid_tokens=count,
        finish_reason="length" if reason == "stop" else reason,
    )
