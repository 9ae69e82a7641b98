"""`jaxdave generate`: prompts read and checked, decoded in batches, printed."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdave.cli.prompts import Request, encode
from jaxdave.core.config import Numerics
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.engine.results import TextCompletion, check_finite
from jaxdave.engine.sampler import Sampler


def run(
    load: LoadConfig,
    config: DecodeConfig,
    requests: Sequence[Request],
    template_args: Mapping[str, Any],
    batch_size: int,
    as_json: bool,
) -> None:
    """Decode and print; every prompt is checked before the first is decoded.

    Args:
        load: The model.
        config: What decides the decode.
        requests: The prompts.
        template_args: What the chat template reads beside the messages.
        batch_size: Prompts decoded together.
        as_json: Print an object for each prompt in place of its text.

    Raises:
        ValueError: The model, a setting or a prompt is bad, or the model's scores are
            not finite numbers.
    """
    from jaxdave.io import checkpoint

    model = checkpoint.load(
        load.model,
        dtype=load.dtype,
        block_length=config.block_length,
        quantize=load.quantize,
    )
    model = model.with_template_args(**template_args)
    room = config.max_new_tokens
    room = model.max_new_tokens if room is None else room
    prompts = [encode(request, model, room) for request in requests]
    sampler = Sampler(model, config)
    if sys.stdout.isatty() and len(requests) == 1 and not as_json:
        return _print_live(sampler, prompts[0], requests[0].draft_text)
    results = _decode(sampler, requests, prompts, batch_size)
    if not as_json:
        return _print_texts(results, many=len(requests) > 1)
    slot_probe, reasons = _slot_probe(sampler), {}
    for result in results:
        reasons[result.request] = result.finish_reason
        fields = {**result.to_dict(), "slot_probe": slot_probe}
        print(json.dumps(fields, ensure_ascii=False), flush=True)
    check_finite(reasons)


def _slot_probe(sampler: Sampler) -> bool | None:
    """True if drafts cannot change the text on this backend; None unless exact."""
    if sampler.decoder.spec.numerics is not Numerics.EXACT:
        return None
    from jaxdave.engine.bitwise_check import slot_probe

    return slot_probe(sampler.decoder.spec, sampler.model.params).holds


def _decode(
    sampler: Sampler,
    requests: Sequence[Request],
    prompts: Sequence[Sequence[int]],
    batch_size: int,
) -> Iterator[TextCompletion]:
    """The answers, batch by batch."""
    texts = [request.draft_text for request in requests]
    # One program for all batches, so draft texts are read in all or in none.
    has_text = any(text is not None for text in texts)
    for first in range(0, len(requests), batch_size):
        batch = slice(first, first + batch_size)
        yield from sampler.batch(
            prompts[batch],
            requests=[request.index for request in requests[batch]],
            draft_texts=texts[batch] if has_text else None,
        )


def _print_texts(results: Iterator[TextCompletion], many: bool) -> None:
    calls = tokens = 0
    seconds, reasons = 0.0, {}
    for result in results:
        reasons[result.request] = result.finish_reason
        title = f"[{result.request}] " if many else ""
        print(f"{title}{result.text}", flush=True)
        calls, tokens = calls + result.nfe.total, tokens + result.valid_tokens
        # `seconds` are those of the whole batch.
        seconds += result.seconds / result.batch_rows
    _print_footer(calls, tokens, seconds)
    check_finite(reasons)


def _print_live(
    sampler: Sampler, prompt: Sequence[int], draft_text: str | None
) -> None:
    """Print text as it becomes final."""
    start = time.perf_counter()
    stream = sampler.stream(prompt, draft_text=draft_text)
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    seconds = time.perf_counter() - start
    more = "" if stream.is_finished else "+"
    _print_footer(stream.calls, len(stream.token_ids), seconds, more)
    check_finite({0: stream.finish_reason})


def _print_footer(calls: int, tokens: int, seconds: float, more: str = "") -> None:
    from rich.console import Console

    text = (
        f"{calls}{more} calls, {tokens} tokens, {tokens / calls:.2f} tokens/call, "
        f"{seconds:.2f} s"
    )
    Console(stderr=True, highlight=False).print(text, style="dim")
