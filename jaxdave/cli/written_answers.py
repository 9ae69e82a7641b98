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

Answer = Mapping[str, Any]
"""`TextCompletion.to_dict` of an answer."""


def answer_settings(
    load: LoadConfig,
    config: DecodeConfig,
    template_args: Mapping[str, Any],
    stops: Sequence[str],
    requests: Sequence[Request],
) -> dict[str, Any]:
    """What the answers of a file depend on; `--resume` goes on with the same only.

    Args:
        load: The model.
        config: What decides the decode.
        template_args: What the chat template reads beside the messages.
        stops: Texts before which an answer ends.
        requests: The prompts.

    Returns:
        The header of the file's journal.
    """
    settings = (load, config, sorted(template_args.items()), stops, requests)
    digest = hashlib.sha256(repr(settings).encode("utf-8", "surrogatepass"))
    return {"jaxdave": jaxdave.__version__, "settings": digest.hexdigest()}


def write_answers(
    output: Path,
    settings: Mapping[str, Any],
    prompts: Sequence[EncodedPrompt],
    decode: Callable[[Sequence[EncodedPrompt]], Iterator[Answer]],
) -> None:
    """Write an answer for each prompt to a file, and say so.

    Args:
        output: The file.
        settings: `answer_settings`.
        prompts: The prompts; those that an earlier run has answered are left out.
        decode: Gives the answers of prompts, in any order. One that comes twice is
            written once.

    Raises:
        ValueError: As `open_answers`; an answer is missing, or the model's scores are
            not finite numbers.
        OSError: The file cannot be written.
    """
    calls = tokens = 0
    with open_answers(output, settings) as file:
        done = {value["index"] for value in file.finished}
        resumed = f" ({len(done)} of an earlier run)" if done else ""
        rest = [prompt for prompt in prompts if prompt.request not in done]
        answers = shown_progress(
            decode(rest), len(prompts), len(done), tokens_of=_num_tokens
        )
        for answer in answers:
            if answer["index"] in done:
                continue
            check_finite({answer["index"]: answer["finish_reason"]})
            file.write(answer)
            done.add(answer["index"])
            calls, tokens = calls + answer["nfe"]["total"], tokens + _num_tokens(answer)
        missing = [prompt.request for prompt in prompts if prompt.request not in done]
        if missing:
            raise ValueError(
                f"{len(missing)} prompts have no answer, the first is prompt "
                f"{missing[0]}; go on with --resume"
            )
    text = (
        f"{len(prompts)} answers{resumed} in {output}: {calls} calls, {tokens} tokens"
    )
    print(text, file=sys.stderr)


def _num_tokens(answer: Answer) -> int:
    return answer["valid_tokens"]
