"""Answers that go to a file, wherever they are decoded and in whatever order."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxdave
from jaxdave.cli.answers_file import open_answers
from jaxdave.cli.progress import shown_progress
from jaxdave.cli.prompts import Request
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.engine.prompt_batches import EncodedPrompt
from jaxdave.engine.results import check_finite
from jaxdave.engine.samples import SampleConfig, request_of

Answer = Mapping[str, Any]
"""`TextCompletion.to_dict` of an answer."""


def answer_settings(
    load: LoadConfig,
    config: DecodeConfig,
    template_args: Mapping[str, Any],
    stops: Sequence[str],
    requests: Sequence[Request],
    samples: SampleConfig,
) -> dict[str, Any]:
    """What the answers of a file depend on; `--resume` goes on with the same only.

    Args:
        load: The model.
        config: What decides the decode.
        template_args: What the chat template reads beside the messages.
        stops: Texts before which an answer ends.
        requests: The prompts.
        samples: Answers to each prompt; how many are decoded together does not matter.

    Returns:
        The header of the file's journal.
    """
    settings = (load, config, sorted(template_args.items()), stops, requests)
    settings = settings if samples.count is None else (*settings, samples.count)
    digest = hashlib.sha256(repr(settings).encode("utf-8", "surrogatepass"))
    return {"jaxdave": jaxdave.__version__, "settings": digest.hexdigest()}


def write_answers(
    output: Path,
    settings: Mapping[str, Any],
    prompts: Sequence[EncodedPrompt],
    decode: Callable[[Sequence[EncodedPrompt]], Iterator[Answer]],
    samples: SampleConfig,
) -> None:
    """Write an answer for each prompt to a file, and say so.

    Args:
        output: The file.
        settings: `answer_settings`.
        prompts: As `SampleConfig.expand` returns them; those that an earlier run has
            answered are left out, but for the rest of a group that lacks an answer.
        decode: Gives the answers of prompts, in any order. One that comes twice is
            written once.
        samples: Answers to each prompt.

    Raises:
        ValueError: As `open_answers`; an answer is missing, or the model's scores are
            not finite numbers.
        OSError: The file cannot be written.
    """
    calls = tokens = 0
    with open_answers(output, settings) as file:
        done = {
            request_of(value["index"], value.get("sample", 0))
            for value in file.finished
        }
        resumed = f" ({len(done)} of an earlier run)" if done else ""
        rest = samples.unfinished(prompts, done)
        new = (answer for answer in decode(rest) if answer["index"] not in done)
        answers = shown_progress(new, len(prompts), len(done), tokens_of=_num_tokens)
        for answer in answers:
            request = answer["index"]
            check_finite({samples.index_of(request): answer["finish_reason"]})
            file.write(samples.record(answer))
            done.add(request)
            calls, tokens = calls + answer["nfe"]["total"], tokens + _num_tokens(answer)
        missing = [prompt.request for prompt in prompts if prompt.request not in done]
        if missing:
            raise ValueError(
                f"{len(missing)} answers are missing, the first is to prompt "
                f"{samples.index_of(missing[0])}; go on with --resume"
            )
    text = (
        f"{len(prompts)} answers{resumed} in {output}: {calls} calls, {tokens} tokens"
    )
    print(text, file=sys.stderr)


def _num_tokens(answer: Answer) -> int:
    return answer["valid_tokens"]
