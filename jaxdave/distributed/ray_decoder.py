"""The actor of Ray Data that decodes batches of prompts with one model."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.engine.prompt_batches import EncodedPrompt, decode_batch
from jaxdave.engine.results import TextCompletion
from jaxdave.engine.sampler import Sampler
from jaxdave.engine.stop_strings import check_stops
from jaxdave.io import checkpoint

PROMPT_COLUMNS = ("prompt", "messages", "prompt_ids")
"""Columns of which a batch has exactly one: a user turn, a conversation, token ids."""


class RayDecoder:
    """Decodes batches of prompts: a class for `ray.data.Dataset.map_batches`.

    Every actor loads the model once. A batch has one of the columns "prompt" (one user
    turn), "messages" (a conversation) and "prompt_ids", and may have "request" (a
    number that keys the noise at a temperature; without it 0 for all, so that an answer
    depends on its prompt alone), "draft_text" and "stop" (a list of texts). Numbers
    that do not depend on the order of the data make answers that do not, either.

    Args:
        load: The model; a folder must be on every host.
        config: What decides the decode.
        template_args: What the chat template reads beside the messages.
        stop: Texts before the first of which an answer ends.
        reads_drafts: Take draft texts into account; they never change an answer.
        group_size: So many rows in a row of a batch are the same prompt, which is
            evaluated once; give them "request" numbers of their own.

    Raises:
        ValueError: The model or a setting is bad.

    Example:
        ::

            prompts = ray.data.from_items([{"prompt": "Why?", "request": 0}])
            answers = prompts.map_batches(
                RayDecoder,
                fn_constructor_kwargs={"load": LoadConfig(model="sdar-4b")},
                batch_size=8,
                compute=ray.data.ActorPoolStrategy(size=4),
                num_gpus=1,
            )
    """

    def __init__(
        self,
        load: LoadConfig | None = None,
        config: DecodeConfig | None = None,
        *,
        template_args: Mapping[str, Any] | None = None,
        stop: str | Sequence[str] = (),
        reads_drafts: bool = False,
        group_size: int = 1,
    ) -> None:
        load = LoadConfig() if load is None else load
        config = DecodeConfig() if config is None else config
        self._stops = check_stops(stop)
        self._reads_drafts = reads_drafts
        self._group_size = group_size
        model = checkpoint.load(
            load.model,
            dtype=load.dtype,
            block_length=config.block_length,
            quantize=load.quantize,
            mesh=load.mesh,
        )
        model = model.with_template_args(**(template_args or {}))
        self._sampler = Sampler(model, config)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Decode the prompts of a batch together.

        Args:
            batch: Columns by name, as arrays or lists of equal length.

        Returns:
            The columns of the batch, and "text", "token_ids", "finish_reason", "calls"
            (network calls in all) and "answer" (everything as `jaxdave generate --json`
            prints it).

        Raises:
            ValueError: There is not exactly one column of prompts, or a prompt is bad.
        """
        answers = decode_batch(
            self._sampler,
            self._prompts(batch),
            stops=self._stops,
            reads_drafts=self._reads_drafts,
            group_size=self._group_size,
        )
        return {**batch, **_columns(answers)}

    def _prompts(self, batch: Mapping[str, Any]) -> list[EncodedPrompt]:
        """The prompts of a batch as token ids."""
        kinds = [name for name in PROMPT_COLUMNS if name in batch]
        if len(kinds) != 1:
            raise ValueError(
                f"columns {', '.join(batch)} must hold exactly one of "
                f"{', '.join(PROMPT_COLUMNS)}; select_columns drops the others"
            )
        values = _plain(batch[kinds[0]])
        count = len(values)
        requests = _plain(batch.get("request", [0] * count))
        draft_texts = _plain(batch.get("draft_text", [None] * count))
        stops = _plain(batch.get("stop", [()] * count))
        rows = zip(values, requests, draft_texts, stops, strict=True)
        return [
            EncodedPrompt(
                request=request,
                ids=self._sampler.encode(value),
                draft_text=draft_text,
                stops=check_stops(() if own is None else own),
            )
            for value, request, draft_text, own in rows
        ]


def _columns(answers: Iterable[TextCompletion]) -> dict[str, list[Any]]:
    """Answers as columns."""
    answers = list(answers)
    return {
        "text": [one.text for one in answers],
        "token_ids": [list(one.token_ids) for one in answers],
        "finish_reason": [one.finish_reason for one in answers],
        "calls": [one.nfe.total for one in answers],
        "answer": [json.dumps(one.to_dict(), ensure_ascii=False) for one in answers],
    }


def _plain(column: Any) -> Any:
    """A column as Python's own lists, numbers and texts, at any depth."""
    if hasattr(column, "tolist"):
        column = column.tolist()
    if isinstance(column, list | tuple):
        return [_plain(value) for value in column]
    if isinstance(column, Mapping):
        return {name: _plain(value) for name, value in column.items()}
    return column
