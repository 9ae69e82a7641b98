"""`jaxdave generate --distributed`: a file of prompts, decoded by several processes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdave.cli.answers_file import check_target, is_complete
from jaxdave.cli.prompts import Request, encode
from jaxdave.cli.written_answers import answer_settings, write_answers
from jaxdave.distributed.process_answers import SharedDecode
from jaxdave.distributed.process_config import ProcessConfig
from jaxdave.distributed.processes import (
    Processes,
    check_same,
    first_speaks,
    initialize,
)
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.engine.placement import placement_of
from jaxdave.engine.prompt_batches import (
    EncodedPrompt,
    decode_batch,
    has_draft_texts,
)
from jaxdave.engine.sampler import Sampler
from jaxdave.engine.samples import SampleConfig


def run(
    load: LoadConfig,
    config: DecodeConfig,
    read_requests: Callable[[], Sequence[Request]],
    joined: ProcessConfig,
    *,
    template_args: Mapping[str, Any],
    stops: Sequence[str],
    samples: SampleConfig,
    output: Path,
    resume: bool,
) -> None:
    """Decode this process's share of the prompts; the first process writes all answers.

    Args:
        load: The model.
        config: What decides the decode.
        read_requests: Reads the prompts.
        joined: The processes.
        template_args: What the chat template reads beside the messages.
        stops: Texts before which an answer ends.
        samples: Answers to each prompt, and how many one process decodes together.
        output: Where the answers go.
        resume: Go on with an unfinished `output`.

    Raises:
        ValueError: The model, a setting or a prompt is bad on some process.
        SystemExit: It was, and the first process says so.
    """
    processes = initialize(joined)
    with first_speaks(processes):
        done = processes.agree(lambda: _is_done(output, resume, processes))
        # What the first process has there counts.
        if processes.exchange(done)[0]:
            return print(f"{output} is complete; take it away to decode it again")

        def prepared() -> tuple[Sequence[Request], Sampler, list[EncodedPrompt]]:
            from jaxdave.io import checkpoint

            requests = read_requests()
            model = checkpoint.load(
                load.model,
                dtype=load.dtype,
                block_length=config.block_length,
                quantize=load.quantize,
                mesh=load.mesh,
            ).with_template_args(**template_args)
            room = config.max_new_tokens
            room = model.max_new_tokens if room is None else room
            encoded = [encode(request, model, room) for request in requests]
            sampler = Sampler(model, config)
            samples.check(sampler.decoder.spec)
            return requests, sampler, samples.expand(encoded)

        requests, sampler, prompts = processes.agree(prepared)
        settings = answer_settings(
            load, config, template_args, stops, requests, samples
        )
        check_same("options and prompts", processes.exchange(settings))
        reads_drafts = has_draft_texts(prompts)

        is_shared = placement_of(sampler.model.params).spans_processes
        processes = dataclasses.replace(processes, share_model=is_shared)

        def decode(batch: Sequence[EncodedPrompt]) -> list[dict[str, Any]]:
            answers = decode_batch(
                sampler,
                batch,
                stops=stops,
                reads_drafts=reads_drafts,
                group_size=samples.group_size,
            )
            return [answer.to_dict() for answer in answers]

        shared = SharedDecode(processes, decode, samples.rows)
        if not processes.is_first:
            return shared.follow(prompts)
        try:
            write_answers(output, settings, prompts, shared.lead, samples)
        except (ValueError, OSError) as error:
            shared.fail(error)
            raise


def _is_done(output: Path, resume: bool, processes: Processes) -> bool:
    """Check the file of the first process; tells if nothing is left to do."""
    if processes.is_first:
        check_target(output, resume=resume)
    return processes.is_first and resume and is_complete(output)
