"""Texts that end at a stop string, generated in batches of equal settings.

This is the part of the integration that does not need the harness. A stop string is
found in decoded text, not among token ids, as it may begin or end within a token.
"""

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import stream
from jaxdave.eval.likelihood.batching import padded_batches


class GenerationRequest(NamedTuple):
    """One text to generate.

    Attributes:
        prompt: Token ids.
        max_new_tokens: Tokens of the text at most. The decoder may generate more, as
            under full attention it generates whole blocks.
        stops: Stop strings; the text ends before the first of them.
        settings: What the decoder is made of; requests of equal settings are decoded
            together.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[str, ...]
    settings: Any


DecodeFn = Callable[[Sequence[int]], str]
"""Maps token ids to their text."""


def generate_until(
    make_decoder: Callable[[Any], Decoder],
    params: Any,
    decode: DecodeFn,
    requests: Sequence[GenerationRequest],
    *,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[int, str]]:
    """Generate the text of every request.

    At a temperature the noise is keyed by the prompt, and by how many requests before
    had the same one, so that a text does not depend on the other requests or on the
    batch size.

    Args:
        make_decoder: Maps `GenerationRequest.settings` to a decoder.
        params: Parameters of the model.
        decode: Maps token ids to their text.
        requests: The requests.
        batch_size: Rows that are decoded together.
        seed: Seed of the noise.

    Yields:
        (index of the request, text before its first stop string), in the order in which
        they are done.
    """
    noise_keys = _noise_keys(requests)

    # Longest prompts first, so that memory runs out at once or never. Settings have
    # no order, but the same settings have the same repr.
    def sort_key(index: int):
        request = requests[index]
        return repr(request.settings), -len(request.prompt), index

    order = sorted(range(len(requests)), key=sort_key)
    groups = itertools.groupby(order, key=lambda index: requests[index].settings)
    for settings, group in groups:
        decoder = make_decoder(settings)
        # The last batch is filled up with copies, which are not counted.
        for batch, count in padded_batches(group, batch_size):
            texts = _generate_batch(
                decoder,
                params,
                decode,
                [requests[index] for index in batch],
                seed,
                [noise_keys[index] for index in batch],
            )
            yield from zip(batch[:count], texts[:count], strict=True)


def _generate_batch(
    decoder: Decoder,
    params: Any,
    decode: DecodeFn,
    requests: Sequence[GenerationRequest],
    seed: int,
    noise_keys: Sequence[int],
) -> list[str]:
    """The texts of one batch, which ends when every row has its stop string."""
    ids: list[list[int]] = [[] for _ in requests]
    unfinished = set(range(len(requests)))
    prompts = [request.prompt for request in requests]
    for update in stream(decoder, params, prompts, seed=seed, requests=noise_keys):
        row, request = update.row, requests[update.row]
        ids[row].extend(update.token_ids)
        # An update without tokens tells that the row has ended.
        is_over = not update.token_ids or len(ids[row]) >= request.max_new_tokens
        if is_over or is_final(decode(ids[row]), request.stops):
            unfinished.discard(row)
        if not unfinished:
            break
    return [
        cut_at_stop(decode(tokens[: request.max_new_tokens]), request.stops)
        for tokens, request in zip(ids, requests, strict=True)
    ]


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Cut a text before the first of the stop strings in it.

    Args:
        text: The text.
        stops: Stop strings; empty ones are ignored.

    Returns:
        The text before it; all of it if no stop string is there.

    Example:
        >>> cut_at_stop("one two", ["tw", " "])
        'one'
    """
    positions = [text.find(stop) for stop in stops if stop]
    return text[: min((p for p in positions if p >= 0), default=len(text))]


def is_final(text: str, stops: Sequence[str]) -> bool:
    """Tell if no continuation changes what `cut_at_stop` returns.

    A longer stop string may yet turn out to begin before the one that was found, and
    half a character at the end (decoded as U+FFFD) may yet become another.

    Args:
        text: The text so far.
        stops: Stop strings.

    Returns:
        True if the cut text is final.

    Example:
        >>> is_final("ab", ["b"]), is_final("ab", ["b", "ab c"])
        (True, False)
    """
    text = text.rstrip("\ufffd")
    end = len(cut_at_stop(text, stops))
    max_stop_length = max(map(len, stops), default=0)
    # A stop string that begins before `end` ends by `end + max_stop_length - 1`.
    return end < len(text) and end + max_stop_length - 1 <= len(text)


def _noise_keys(requests: Sequence[GenerationRequest]) -> list[int]:
    """The number that keys the noise of each request, whatever the others are."""
    occurrences: Counter[tuple[int, ...]] = Counter()
    keys = []
    for request in requests:
        text = ",".join(map(str, request.prompt)).encode()
        keys.append((zlib.crc32(text) + occurrences[request.prompt]) % 2**32)
        occurrences[request.prompt] += 1
    return keys
