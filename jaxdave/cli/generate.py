"""`jaxdave generate`: prompts read and checked, decoded in batches, printed."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxdave.cli.prompts import Asked, encode, encode_hints
from jaxdave.engine.decode_config import DecodeConfig, make_decoder

if TYPE_CHECKING:
    from jaxdave.engine.results import Result, Row
    from jaxdave.io.checkpoint import Model
    from jaxdave.io.tokenizer import Codec


def run(settings: DecodeConfig, asked: Sequence[Asked], as_json: bool) -> None:
    """Decode and print; every prompt is checked before the first is decoded."""
    from jaxdave.io import checkpoint

    model = checkpoint.load(
        settings.model, dtype=settings.dtype, block_length=settings.block_length,
        quantize=settings.quantize,
    )  # fmt: skip
    room = settings.max_new_tokens
    room = model.max_new_tokens if room is None else room
    settings = dataclasses.replace(settings, max_new_tokens=room)
    prompts, hints = [encode(a, model, room) for a in asked], encode_hints(asked, model)
    decoder = make_decoder(model.config, settings, model.tables, hints is not None)
    if sys.stdout.isatty() and len(asked) == 1 and not as_json:
        return _print_live(settings, model, decoder, prompts, hints)
    results = _decode(settings, model, decoder, asked, prompts, hints)
    if as_json:
        holds = probed(decoder, model)
        for index, row, result in results:
            fields = describe(settings, model, index, row, result)
            fields["numerics"] = decoder.numerics
            fields["slot_probe"] = holds
            print(json.dumps(fields, ensure_ascii=False), flush=True)
        return
    _print_texts(model.codec, results, many=len(asked) > 1)


def probed(decoder, model: "Model") -> bool | None:
    """Whether drafts cannot change the text on this backend; None under `fast`."""
    if not decoder.spec.exact:
        return None
    from jaxdave.engine.bitwise_check import slot_probe

    return slot_probe(decoder.spec, model.params).holds


def describe(
    settings: DecodeConfig, model: "Model", index: int, row: "Row", result: "Result"
) -> dict[str, Any]:
    """The JSON object of one answer; `seconds` are those of its whole batch."""
    seconds = result.seconds
    return {
        "index": index,
        "text": model.codec.decode(row.token_ids),
        "token_ids": list(row.token_ids),
        "finish_reason": row.finish_reason,
        "valid_tokens": row.valid_tokens,
        "nfe": row.nfe.counts(),
        "reference_nfe": row.reference_nfe,
        "seconds": seconds,
        "compile_seconds": result.compile_seconds,
        "tokens_per_nfe": row.valid_tokens / row.nfe.total,
        "tokens_per_second": row.valid_tokens / seconds if seconds else 0.0,
        "method": settings.method,
        "draft_steps": settings.draft_steps if settings.method == "freedave" else 1,
        "seed": settings.seed,
        "model": model.name,
        "numerics": settings.numerics,
        "dtype": settings.dtype,
        "quantize": settings.quantize,
        "batch_rows": len(result.rows),
    }


def pieces(codec: "Codec", ids: Sequence[int]) -> list[str]:
    """The text that each id adds; that of half a character comes with its end."""
    shown, found = "", []
    for count in range(1, len(ids) + 1):
        text = codec.decode(ids[:count])
        whole = count == len(ids) or not text.endswith("\ufffd")
        found.append(text[len(shown) :] if whole else "")
        shown = text if whole else shown
    return found


def _decode(
    settings: DecodeConfig, model: "Model", decoder, asked, prompts, hints
) -> Iterator[tuple[int, "Row", "Result"]]:
    from jaxdave.engine.generation import generate

    for first in range(0, len(asked), settings.batch_size):
        batch = slice(first, first + settings.batch_size)
        indices = [a.index for a in asked[batch]]
        result = generate(
            decoder, model.params, prompts[batch], seed=settings.seed, requests=indices,
            draft_text=hints and hints[batch],
        )  # fmt: skip
        for index, row in zip(indices, result.rows, strict=True):
            yield index, row, result


def _print_texts(codec: "Codec", results, many: bool) -> None:
    calls = tokens = 0
    seconds: dict[int, float] = {}
    for index, row, result in results:
        title = f"[{index}] " if many else ""
        print(f"{title}{codec.decode(row.token_ids)}", flush=True)
        calls, tokens = calls + row.nfe.total, tokens + row.valid_tokens
        seconds[id(result)] = result.seconds
    _print_footer(calls, tokens, sum(seconds.values()))


def _print_live(
    settings: DecodeConfig, model: "Model", decoder, prompts, hints
) -> None:
    """Print tokens as they become final."""
    from jaxdave.engine.generation import stream

    start = time.perf_counter()
    ids: list[int] = []
    shown, calls, is_end_seen = "", 1, False
    updates = stream(
        decoder, model.params, prompts, seed=settings.seed, draft_text=hints
    )
    for update in updates:
        ids.extend(update.token_ids)
        calls, is_end_seen = update.call + 1, not update.token_ids
        text = model.codec.decode(ids)
        # Half a character may still become a whole one.
        if not text.endswith("\ufffd"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(model.codec.decode(ids)[len(shown) :], flush=True)
    seconds = time.perf_counter() - start
    _print_footer(calls, len(ids), seconds, "" if is_end_seen else "+")


def _print_footer(calls: int, tokens: int, seconds: float, more: str = "") -> None:
    from rich.console import Console

    text = (
        f"{calls}{more} calls, {tokens} tokens, {tokens / calls:.2f} tokens/call, "
        f"{seconds:.2f} s"
    )
    Console(stderr=True, highlight=False).print(text, style="dim")
