"""Answers that end at a stop string, in batches of requests with the same settings."""

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import stream
from jaxdave.eval.likelihood.batching import padded_batches


class Asked(NamedTuple):
    """A prompt's ids, how many new tokens it may get, its stop strings, and what its
    decoder is made of: requests with an equal `how` are decoded together."""

    prompt: tuple[int, ...]
    room: int
    stops: tuple[str, ...]
    how: Any


Decode = Callable[[Sequence[int]], str]


def answers(
    decoder_of: Callable[[Any], Decoder],
    params: Any,
    decode: Decode,
    asked: Sequence[Asked],
    *,
    rows: int,
    seed: int,
) -> Iterator[tuple[int, str]]:
    """(index, text before the first stop string) of every request, as they are done.

    At a temperature the noise is keyed by the prompt, and by how often it was asked
    before. The longest prompts come first, so that memory runs out at once or never.
    """
    keys = _keys(asked)
    order = sorted(
        range(len(asked)), key=lambda i: (repr(asked[i].how), -len(asked[i].prompt), i)
    )
    for how, group in itertools.groupby(order, key=lambda index: asked[index].how):
        decoder = decoder_of(how)
        for batch, count in padded_batches(group, rows):
            chosen = [asked[index] for index in batch]
            requests = [keys[index] for index in batch]
            texts = _texts(decoder, params, decode, chosen, seed, requests)
            yield from zip(batch[:count], texts[:count], strict=True)


def _texts(decoder: Decoder, params, decode: Decode, asked, seed, requests):
    """The answers of one batch, which ends when every row has its stop string."""
    ids: list[list[int]] = [[] for _ in asked]
    still_open = set(range(len(asked)))
    prompts = [one.prompt for one in asked]
    for update in stream(decoder, params, prompts, seed=seed, requests=requests):
        row, one = update.row, asked[update.row]
        ids[row].extend(update.token_ids)
        is_over = not update.token_ids or len(ids[row]) >= one.room
        if is_over or is_settled(decode(ids[row]), one.stops):
            still_open.discard(row)
        if not still_open:
            break
    return [
        cut(decode(found[: one.room]), one.stops)
        for found, one in zip(ids, asked, strict=True)
    ]


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    found = [text.find(stop) for stop in stops if stop]
    return text[: min((at for at in found if at >= 0), default=len(text))]


def is_settled(text: str, stops: Sequence[str]) -> bool:
    """Whether nothing that may follow changes what `cut` makes of a text.

    A longer stop string may yet turn out to begin before the one that was found, and
    half a character at the end may yet become another.
    """
    text = text.rstrip("\ufffd")
    kept = cut(text, stops)
    longest = max(map(len, stops), default=0)
    return len(kept) < len(text) and len(kept) + longest - 1 <= len(text)


def _keys(asked: Sequence[Asked]) -> list[int]:
    """What keys the noise of each request, whatever the others are."""
    seen: Counter[tuple[int, ...]] = Counter()
    keys = []
    for one in asked:
        text = ",".join(map(str, one.prompt)).encode()
        keys.append((zlib.crc32(text) + seen[one.prompt]) % 2**32)
        seen[one.prompt] += 1
    return keys
