"""Texts that end at a stop string, generated in batches of equal settings.

This is the part of the integration that does not need the harness.
"""

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generate_until import DecodeFn, generate_until
from jaxdave.engine.results import Completion
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


class Answer(NamedTuple):
    """One generated text.

    Attributes:
        text: The text before its first stop string.
        completion: What it took.
        seconds: Its share of the seconds of its batch.
        batch_rows: Rows that were decoded together, copies among them.
    """

    text: str
    completion: Completion
    seconds: float
    batch_rows: int


def generate_answers(
    make_decoder: Callable[[Any], Decoder],
    params: Any,
    decode: DecodeFn,
    requests: Sequence[GenerationRequest],
    *,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[int, Answer]]:
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
        (index of the request, its answer), in the order in which they are done.
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
            asked = [requests[index] for index in batch]
            texts, result = generate_until(
                decoder,
                params,
                decode,
                [request.prompt for request in asked],
                [request.stops for request in asked],
                limits=[request.max_new_tokens for request in asked],
                seed=seed,
                requests=[noise_keys[index] for index in batch],
            )
            seconds = result.seconds / count
            answers = (
                Answer(text, completion, seconds, len(batch))
                for text, completion in zip(texts, result.completions, strict=True)
            )
            yield from itertools.islice(zip(batch, answers, strict=True), count)


def _noise_keys(requests: Sequence[GenerationRequest]) -> list[int]:
    """The number that keys the noise of each request, whatever the others are."""
    occurrences: Counter[tuple[int, ...]] = Counter()
    keys = []
    for request in requests:
        text = ",".join(map(str, request.prompt)).encode()
        keys.append((zlib.crc32(text) + occurrences[request.prompt]) % 2**32)
        occurrences[request.prompt] += 1
    return keys
