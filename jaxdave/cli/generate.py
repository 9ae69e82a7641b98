"""`jaxdave generate`: prompts read and checked, decoded in batches, printed."""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdave.cli import generate_on_ray
from jaxdave.cli.answers_file import check_target, is_complete
from jaxdave.cli.progress import shown_progress, startup_spinner
from jaxdave.cli.prompts import Request, encode
from jaxdave.cli.written_answers import answer_settings, write_answers
from jaxdave.core.config import Numerics
from jaxdave.distributed.ray_config import RayConfig
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.engine.prompt_batches import decode_prompts
from jaxdave.engine.results import TextCompletion, check_finite
from jaxdave.engine.sampler import Sampler
from jaxdave.engine.samples import SampleConfig
from jaxdave.engine.text_stream import TextStream


def run(
    load: LoadConfig,
    config: DecodeConfig,
    requests: Sequence[Request],
    *,
    template_args: Mapping[str, Any],
    stops: Sequence[str],
    samples: SampleConfig,
    as_json: bool,
    output: Path | None,
    resume: bool,
    ray: RayConfig | None = None,
) -> None:
    """Decode and print; every prompt is checked before the first is decoded.

    Args:
        load: The model.
        config: What decides the decode.
        requests: The prompts.
        template_args: What the chat template reads beside the messages.
        stops: Texts before which an answer ends.
        samples: Answers to each prompt, and how many are decoded together.
        as_json: Print an object for each answer in place of its text.
        output: Where the objects go instead; None: nowhere.
        resume: Go on with an unfinished `output`.
        ray: The cluster whose workers decode, for `output` only; None: this process
            does.

    Raises:
        ValueError: The model, a setting or a prompt is bad, or the model's scores are
            not finite numbers.
    """
    if output is not None:
        check_target(output, resume=resume)
        if resume and is_complete(output):
            return print(f"{output} is complete; take it away to decode it again")
    if ray is not None and output is not None:
        return generate_on_ray.run(
            load,
            config,
            requests,
            template_args=template_args,
            stops=stops,
            samples=samples,
            output=output,
            ray=ray,
        )
    with startup_spinner() as stop_spinner:
        from jaxdave.io import checkpoint

        model = checkpoint.load(
            load.model,
            dtype=load.dtype,
            block_length=config.block_length,
            quantize=load.quantize,
            mesh=load.mesh,
        )
        model = model.with_template_args(**template_args)
        room = config.max_new_tokens
        room = model.max_new_tokens if room is None else room
        encoded = [encode(request, model, room) for request in requests]
        prompts = samples.expand(encoded)
        sampler = Sampler(model, config)
        samples.check(sampler.decoder.spec)
        decode = functools.partial(
            decode_prompts,
            sampler,
            stops=stops,
            batch_size=samples.rows,
            group_size=samples.group_size,
        )
        if output is not None:
            stop_spinner()
            settings = answer_settings(
                load, config, template_args, stops, requests, samples
            )
            return write_answers(
                output,
                settings,
                prompts,
                lambda rest: (result.to_dict() for result in decode(rest)),
                samples,
            )
        is_one = len(prompts) == 1
        if sys.stdout.isatty() and is_one and not as_json:
            stream = sampler.stream(
                prompts[0].ids,
                draft_text=prompts[0].draft_text,
                stop=(*stops, *prompts[0].stops),
            )
            return _print_live(stream, stop_spinner)
        stop_spinner()
        results = decode(prompts)
        if not sys.stdout.isatty():
            results = shown_progress(
                results, len(prompts), tokens_of=lambda result: result.valid_tokens
            )
        if not as_json:
            return _print_texts(results, samples, many=len(requests) > 1)
    slot_probe, reasons = _slot_probe(sampler), {}
    for result in results:
        reasons[samples.index_of(result.request)] = result.finish_reason
        fields = {**samples.record(result.to_dict()), "slot_probe": slot_probe}
        print(json.dumps(fields, ensure_ascii=False), flush=True)
    check_finite(reasons)


def _slot_probe(sampler: Sampler) -> bool | None:
    """True if drafts cannot change the text on this backend; None unless exact."""
    if sampler.decoder.spec.numerics is not Numerics.EXACT:
        return None
    from jaxdave.engine.bitwise_check import slot_probe

    return slot_probe(sampler.decoder.spec, sampler.model.params).holds


def _print_texts(
    results: Iterator[TextCompletion], samples: SampleConfig, many: bool
) -> None:
    calls = tokens = 0
    seconds, reasons = 0.0, {}
    for result in results:
        reasons[samples.index_of(result.request)] = result.finish_reason
        print(f"{samples.title(result.request, many)}{result.text}", flush=True)
        calls, tokens = calls + result.nfe.total, tokens + result.valid_tokens
        # `seconds` are those of the whole batch.
        seconds += result.seconds / result.batch_rows
    _print_footer(calls, tokens, seconds)
    check_finite(reasons)


def _print_live(stream: TextStream, stop_spinner: Callable[[], None]) -> None:
    """Print text as it becomes final."""
    start = time.perf_counter()
    stop_spinner()
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    seconds = time.perf_counter() - start
    more = "" if stream.is_finished else "+"
    _print_footer(stream.calls, len(stream.token_ids), seconds, more)
    check_finite({0: stream.finish_reason})


def _print_footer(calls: int, tokens: int, seconds: float, more: str = "") -> None:
    text = (
        f"{calls}{more} calls, {tokens} tokens, {tokens / calls:.2f} tokens/call, "
        f"{seconds:.2f} s"
    )
    if not sys.stderr.isatty():
        return print(text, file=sys.stderr)
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, style="dim")
