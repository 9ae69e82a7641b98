"""Text in, text out: one object that holds a model and how it is decoded.

`Sampler` stands above the functional layer (`jaxdave.generate`, `jaxdave.stream`),
which takes token ids and returns them.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jaxdave.core.config import ModelConfig
from jaxdave.core.decode_defaults import NO_DEFAULTS
from jaxdave.core.draft_api import DraftedParams
from jaxdave.drafting.tree_table import TreeTable
from jaxdave.engine import generation, streaming
from jaxdave.engine.batching import (
    TokenIds,
    check_params,
    check_room,
    check_token_ids,
)
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import Decoder, make_decoder
from jaxdave.engine.generate_until import generate_until
from jaxdave.engine.placement import replicate_beside
from jaxdave.engine.results import Completion, Result, TextCompletion
from jaxdave.engine.stop_strings import check_stops
from jaxdave.engine.text_stream import TextStream

Messages = Sequence[Mapping[str, str]]
"""A conversation: messages with "role" and "content"."""
Prompt = str | Messages | Sequence[int]
"""One user turn, a conversation, or token ids."""


class TextCodec(Protocol):
    """What a sampler needs of a tokenizer; `jaxdave.io.tokenizer.Codec` has it."""

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of one user turn and the opening of its answer.

        Args:
            text: What the user says.

        Returns:
            Token ids.
        """
        ...

    def encode_messages(self, messages: Any) -> list[int]:
        """The ids of a conversation and the opening of its next answer.

        Args:
            messages: Mappings with "role" and "content".

        Returns:
            Token ids.
        """
        ...

    def encode_answer(self, text: str) -> list[int]:
        """The ids of a text as part of an answer.

        Args:
            text: The text.

        Returns:
            Token ids.
        """
        ...

    def decode(self, ids: Any) -> str:
        """The text of ids.

        Args:
            ids: Token ids.

        Returns:
            The text, without special tokens.
        """
        ...


class TextModel(Protocol):
    """What a sampler needs of a model; `jaxdave.load` returns one."""

    @property
    def config(self) -> ModelConfig:
        """Its architecture."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def quantize(self) -> str | None:
        """How its weights are quantised, if they are."""
        ...

    @property
    def params(self) -> Any:
        """Its parameters."""
        ...

    @property
    def codec(self) -> TextCodec:
        """Its tokenizer."""
        ...

    @property
    def tables(self) -> Mapping[str, TreeTable]:
        """Its calibrated draft trees."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Its usual length of an answer."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A model and how it is decoded.

    Attributes:
        model: What `jaxdave.load` returns.
        config: What decides the decode. What it leaves open (`max_new_tokens`, and the
            fields of `DecodeDefaults`) is as the model has it.
        draft_params: Parameters of a draft function that takes some (a draft model).

    Raises:
        ValueError: The configuration does not fit the model, in one line.

    Example:
        >>> import jaxdave
        >>> model = jaxdave.load("sdar-1m")
        >>> sampler = jaxdave.Sampler(model, jaxdave.DecodeConfig(max_new_tokens=64))
        >>> question = "Mia has 3 pens. She buys 4 more pens. How many are there?"
        >>> sampler(question).text == sampler.undrafted()(question).text
        True
    """

    model: TextModel
    config: DecodeConfig = DecodeConfig()
    draft_params: Any = None

    def __post_init__(self) -> None:
        if self.config.max_new_tokens is None:
            room = self.model.max_new_tokens
            config = dataclasses.replace(self.config, max_new_tokens=room)
            object.__setattr__(self, "config", config)
        # What only looks like a model, such as another program's, may have none.
        defaults = getattr(self.model, "decode_defaults", NO_DEFAULTS)
        config = self.config.with_defaults(defaults, self.model.config)
        object.__setattr__(self, "config", config)
        if self.draft_params is not None:
            # A draft model is small: every device of a mesh has all of it.
            beside = replicate_beside(self.draft_params, self.model.params)
            object.__setattr__(self, "draft_params", beside)
        # What does not fit the model is refused here.
        check_params(self.decoder.spec, self._params)

    def __call__(
        self,
        prompt: Prompt,
        *,
        request: int = 0,
        draft_text: str | None = None,
        stop: str | Sequence[str] = (),
    ) -> TextCompletion:
        """Answer a prompt.

        Args:
            prompt: One user turn as text, a conversation as a list of messages with
                "role" and "content", or token ids.
            request: Keys the noise at a temperature, beside the seed.
            draft_text: What the answer may look like. It can save calls of the model
                and never changes the text.
            stop: Texts before the first of which the answer ends, and with it the
                decode. They are taken as they are, and are not part of the answer.

        Returns:
            The answer.

        Raises:
            ValueError: The prompt is empty or broken, or too long, or a stop string is
                empty or no text.
        """
        drafts = None if draft_text is None else [draft_text]
        return self.batch([prompt], requests=[request], draft_texts=drafts, stop=stop)[
            0
        ]

    def batch(
        self,
        prompts: Sequence[Prompt],
        *,
        requests: Sequence[int] | None = None,
        draft_texts: Sequence[str | None] | None = None,
        stop: str | Sequence[str] = (),
        stops: Sequence[str | Sequence[str]] | None = None,
        group_size: int = 1,
    ) -> list[TextCompletion]:
        """Answer prompts together.

        Args:
            prompts: As for a call, any number of them.
            requests: What keys the noise of each prompt; None: 0 for all, so that an
                answer does not depend on the others.
            draft_texts: For every prompt what its answer may look like, or None.
            stop: As for a call, of every answer. The host looks for them between
                calls, so that rows which have ended do not leave the batch.
            stops: For every prompt stop strings of its own, beside `stop`.
            group_size: So many prompts in a row are the same and are evaluated once,
                as for several answers to one question, each with a request of its own.

        Returns:
            The answers, in the order of the prompts.

        Raises:
            ValueError: As a call.
        """
        each = _stops_of_each(len(prompts), stop, stops)
        ids = [self.encode(prompt) for prompt in prompts]
        decoder = self.decoder if draft_texts is None else self._text_decoder
        options: dict[str, Any] = {
            "seed": self.config.seed,
            "requests": requests,
            "draft_text": self._encode_answers(draft_texts),
            "group_size": group_size,
        }
        decode = self.model.codec.decode
        if any(each):
            texts, result = generate_until(
                decoder, self._params, decode, ids, each, **options
            )
        else:
            result = generation.generate(decoder, self._params, ids, **options)
            texts = [decode(one.token_ids) for one in result.completions]
        requests = [0] * len(ids) if requests is None else requests
        return [
            self._with_text(text, result, row, request)
            for row, (text, request) in enumerate(zip(texts, requests, strict=True))
        ]

    def stream(
        self,
        prompt: Prompt,
        *,
        request: int = 0,
        draft_text: str | None = None,
        stop: str | Sequence[str] = (),
    ) -> TextStream:
        """Answer a prompt piece by piece, as its text becomes final.

        Args:
            prompt: As for a call.
            request: As for a call.
            draft_text: As for a call.
            stop: As for a call. What may be the beginning of a stop string is held back
                until it is known not to be one.

        Returns:
            An iterator of pieces of text, which together are the `text` of a call.

        Raises:
            ValueError: As a call.
        """
        stops = check_stops(stop)
        drafts = None if draft_text is None else [draft_text]
        decoder = self.decoder if drafts is None else self._text_decoder
        updates = streaming.stream(
            decoder,
            self._params,
            [self.encode(prompt)],
            seed=self.config.seed,
            requests=[request],
            draft_text=self._encode_answers(drafts),
        )
        early_exit = decoder.spec.layout.early_exit
        return TextStream(
            self.model.codec.decode, updates, stops, early_exit=early_exit
        )

    def snapshots(
        self, prompt: Prompt, *, request: int = 0
    ) -> Iterator["AnswerSnapshot"]:
        """Answer a prompt, and see the answer after every network call.

        Args:
            prompt: As for a call.
            request: As for a call.

        Returns:
            An iterator of snapshots; the last one has the completion.

        Raises:
            ValueError: The prompt is empty or broken, or too long. At once, when the
                programs are compiled as well.

        Example:
            >>> import jaxdave
            >>> model = jaxdave.load("sdar-1m")
            >>> sampler = jaxdave.Sampler(model, jaxdave.DecodeConfig(max_new_tokens=8))
            >>> *_, last = sampler.snapshots("How many pens?")
            >>> last.completion.token_ids == sampler("How many pens?").token_ids
            True
        """
        ids = self.encode(prompt)
        found = streaming.snapshots(
            self.decoder,
            self._params,
            [ids],
            seed=self.config.seed,
            requests=[request],
        )
        return (self._answer_snapshot(found, one, len(ids)) for one in found)

    def warm_up(self, prompt: Prompt) -> None:
        """Compile what prompts of about this length need, or load it from disk.

        Args:
            prompt: As for a call.

        Raises:
            ValueError: The prompt is empty or broken, or too long.
        """
        generation.prepare(self.decoder, self._params, [self.encode(prompt)])

    def undrafted(self) -> "Sampler":
        """A sampler of the same policy without drafts.

        It takes more calls of the model and gives the same text, which is the promise
        of lossless decoding.

        Returns:
            The sampler.
        """
        return Sampler(self.model, self.config.undrafted(), self.draft_params)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt.

        Args:
            prompt: As for a call.

        Returns:
            The ids; those of a text or a conversation are followed by what opens an
            answer in the model's chat template.

        Raises:
            ValueError: The prompt is empty or broken, or too long.
        """
        codec = self.model.codec
        if isinstance(prompt, str):
            ids = codec.encode_prompt(prompt)
        elif isinstance(prompt, list | tuple) and any(
            isinstance(part, Mapping) for part in prompt
        ):
            ids = codec.encode_messages(prompt)  # pyright: ignore
        else:
            ids = check_prompt_ids(prompt, self.model.config)
        check_room(ids, self.model, self.decoder.max_new_tokens)
        return ids

    @functools.cached_property
    def decoder(self) -> Decoder:
        """What `jaxdave.generate` takes to decode as this sampler does."""
        model = self.model
        return make_decoder(
            model.config,
            self.config,
            tables=model.tables,
            draft_params=self.draft_params,
        )

    @property
    def _params(self) -> Any:
        """What the functional layer takes as parameters."""
        if self.draft_params is None:
            return self.model.params
        return DraftedParams(model=self.model.params, draft=self.draft_params)

    @functools.cached_property
    def _text_decoder(self) -> Decoder:
        """The decoder for prompts with draft texts."""
        model = self.model
        return make_decoder(
            model.config, self.config, tables=model.tables, has_draft_text=True
        )

    def _encode_answers(self, texts: Sequence[str | None] | None) -> TokenIds | None:
        if texts is None:
            return None
        return [self.model.codec.encode_answer(text or "") for text in texts]

    def _with_text(
        self, text: str, result: Result, row: int, request: int
    ) -> TextCompletion:
        completion = result.completions[row]
        return TextCompletion(
            text=text,
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            completion=completion,
            request=request,
            seconds=result.seconds,
            compile_seconds=result.compile_seconds,
            batch_rows=len(result.completions),
            memory=result.memory,
            settings=self._settings,
        )

    def _answer_snapshot(
        self, calls: streaming.CallByCall, snapshot: streaming.Snapshot, begin: int
    ) -> "AnswerSnapshot":
        answer = streaming.partial_answer(self.decoder, snapshot, begin)
        # Read once: every array that is fetched takes its time.
        completion = calls.completion(0) if snapshot.done_B[0] else None
        return AnswerSnapshot(
            call=snapshot.call,
            final_ids=answer.final_ids,
            open_ids=answer.open_ids,
            completion=completion,
        )

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        """What JSON says of how texts were decoded."""
        config, model = self.config, self.model
        is_drafted = config.method == "freedave"
        return {
            "method": config.method,
            "policy": self.decoder.spec.policy.name,
            "temperature": self.decoder.spec.sampling.temperature,
            "draft_steps": config.draft_steps if is_drafted else 1,
            "seed": config.seed,
            "model": model.name,
            "numerics": str(self.decoder.numerics),
            # Norms are never quantised, so theirs is the dtype of the activations.
            "dtype": str(model.params["norm"]["scale"].dtype),
            "quantize": model.quantize,
        }


class AnswerSnapshot(NamedTuple):
    """An answer after a network call.

    Attributes:
        call: The call, 0 for the prefill.
        final_ids: Tokens that no later call changes, with nothing undecided before.
        open_ids: What follows in the block that is being denoised; undecided positions
            hold the mask id.
        completion: The whole answer, in the last snapshot; None before.
    """

    call: int
    final_ids: tuple[int, ...]
    open_ids: tuple[int, ...]
    completion: Completion | None


def _stops_of_each(
    count: int,
    stop: str | Sequence[str],
    stops: Sequence[str | Sequence[str]] | None,
) -> list[tuple[str, ...]]:
    """The stop strings of every prompt."""
    shared = check_stops(stop)
    if stops is None:
        return [shared] * count
    if len(stops) != count:
        raise ValueError(f"{len(stops)} stops for {count} prompts; give one each")
    return [shared + check_stops(own) for own in stops]


def check_prompt_ids(value: Any, config: ModelConfig) -> list[int]:
    """Check that a prompt is token ids of a model.

    Args:
        value: Anything, such as a value of a JSON file.
        config: The model's config.

    Returns:
        The ids.

    Raises:
        ValueError: It is no sequence of ids, or holds the mask id.
    """
    return check_token_ids(value, "prompt_ids", config.vocab_size, config.mask_id)
