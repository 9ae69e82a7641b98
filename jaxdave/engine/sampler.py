"""Text in, text out: one object that holds a model and how it is decoded.

`Sampler` stands above the functional layer (`jaxdave.generate`, `jaxdave.stream`),
which takes token ids and returns them.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from jaxdave.core.config import ModelConfig
from jaxdave.core.draft_api import DraftedParams
from jaxdave.drafting.tree_table import TreeTable
from jaxdave.engine import generation
from jaxdave.engine.batching import (
    TokenIds,
    check_params,
    check_room,
    check_token_ids,
)
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import Decoder, make_decoder
from jaxdave.engine.results import FinishReason, Result, TextCompletion

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
        config: What decides the decode. Where it leaves `max_new_tokens` out, the
            model's is used.
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
        # What does not fit the model is refused here.
        check_params(self.decoder.spec, self._params)

    def __call__(
        self,
        prompt: Prompt,
        *,
        request: int = 0,
        draft_text: str | None = None,
    ) -> TextCompletion:
        """Answer a prompt.

        Args:
            prompt: One user turn as text, a conversation as a list of messages with
                "role" and "content", or token ids.
            request: Keys the noise at a temperature, beside the seed.
            draft_text: What the answer may look like. It can save calls of the model
                and never changes the text.

        Returns:
            The answer.

        Raises:
            ValueError: The prompt is empty or broken, or too long.
        """
        drafts = None if draft_text is None else [draft_text]
        return self.batch([prompt], requests=[request], draft_texts=drafts)[0]

    def batch(
        self,
        prompts: Sequence[Prompt],
        *,
        requests: Sequence[int] | None = None,
        draft_texts: Sequence[str | None] | None = None,
    ) -> list[TextCompletion]:
        """Answer prompts together.

        Args:
            prompts: As for a call, any number of them.
            requests: What keys the noise of each prompt; None: 0 for all, so that an
                answer does not depend on the others.
            draft_texts: For every prompt what its answer may look like, or None.

        Returns:
            The answers, in the order of the prompts.

        Raises:
            ValueError: A prompt is empty or broken, or too long.
        """
        ids = [self.encode(prompt) for prompt in prompts]
        result = generation.generate(
            self.decoder if draft_texts is None else self._text_decoder,
            self._params,
            ids,
            seed=self.config.seed,
            requests=requests,
            draft_text=self._encode_answers(draft_texts),
        )
        requests = [0] * len(ids) if requests is None else requests
        return [
            self._with_text(result, row, request)
            for row, request in enumerate(requests)
        ]

    def stream(
        self,
        prompt: Prompt,
        *,
        request: int = 0,
        draft_text: str | None = None,
    ) -> "TextStream":
        """Answer a prompt piece by piece, as its text becomes final.

        Args:
            prompt: As for a call.
            request: As for a call.
            draft_text: As for a call.

        Returns:
            An iterator of pieces of text, which together are the `text` of a call.

        Raises:
            ValueError: The prompt is empty or broken, or too long.
        """
        drafts = None if draft_text is None else [draft_text]
        updates = generation.stream(
            self.decoder if drafts is None else self._text_decoder,
            self._params,
            [self.encode(prompt)],
            seed=self.config.seed,
            requests=[request],
            draft_text=self._encode_answers(drafts),
        )
        return TextStream(self.model.codec, updates)

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
            ids = check_prompt_ids(prompt, self.model)
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

    def _with_text(self, result: Result, row: int, request: int) -> TextCompletion:
        completion = result.completions[row]
        return TextCompletion(
            text=self.model.codec.decode(completion.token_ids),
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            completion=completion,
            request=request,
            seconds=result.seconds,
            compile_seconds=result.compile_seconds,
            batch_rows=len(result.completions),
            settings=self._settings,
        )

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        """What JSON says of how texts were decoded."""
        config, model = self.config, self.model
        is_drafted = config.method == "freedave"
        return {
            "method": config.method,
            "draft_steps": config.draft_steps if is_drafted else 1,
            "seed": config.seed,
            "model": model.name,
            "numerics": str(self.decoder.numerics),
            # Norms are never quantised, so theirs is the dtype of the activations.
            "dtype": str(model.params["norm"]["scale"].dtype),
            "quantize": model.quantize,
        }


class TextStream(Iterator[str]):
    """The pieces of an answer as they become final.

    Attributes:
        token_ids: Ids of the answer so far.
        calls: Calls of the model so far.
        is_finished: True when the row's last call is known.
        finish_reason: As in `TextCompletion`, once it is finished; None before.
    """

    def __init__(
        self, codec: TextCodec, updates: Iterator[generation.StreamUpdate]
    ) -> None:
        """Args: codec: decodes ids; updates: those of one row."""
        self.token_ids: list[int] = []
        self.calls = 1
        self.is_finished = False
        self.finish_reason: FinishReason | None = None
        self._codec = codec
        self._updates = updates
        self._num_shown = 0

    def __next__(self) -> str:
        """The next piece, which is never empty."""
        for update in self._updates:
            self.token_ids.extend(update.token_ids)
            self.calls, self.is_finished = update.call + 1, not update.token_ids
            self.finish_reason = update.finish_reason
            piece = self._new_text(is_last=False)
            if piece:
                return piece
        piece = self._new_text(is_last=True)
        if not piece:
            raise StopIteration
        return piece

    def _new_text(self, is_last: bool) -> str:
        """The text that has not been shown; half a character waits for its end."""
        # All ids are decoded each time, as a character's bytes may be spread over
        # several tokens. A decoder shows an unfinished one as U+FFFD.
        text = self._codec.decode(self.token_ids)
        if text.endswith("\ufffd") and not is_last:
            return ""
        piece, self._num_shown = text[self._num_shown :], len(text)
        return piece


def split_text(codec: TextCodec, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds to an answer.

    Args:
        codec: Decodes the ids.
        token_ids: Ids of the answer.

    Returns:
        A text for every id; that of half a character comes with its end.
    """
    num_shown, pieces = 0, []
    for count in range(1, len(token_ids) + 1):
        text = codec.decode(token_ids[:count])
        is_whole = count == len(token_ids) or not text.endswith("\ufffd")
        pieces.append(text[num_shown:] if is_whole else "")
        num_shown = len(text) if is_whole else num_shown
    return pieces


def check_prompt_ids(value: Any, model: TextModel) -> list[int]:
    """Check that a prompt is token ids of a model.

    Args:
        value: Anything, such as a value of a JSON file.
        model: The model.

    Returns:
        The ids.

    Raises:
        ValueError: It is no sequence of ids, or holds the mask id.
    """
    config = model.config
    return check_token_ids(value, "prompt_ids", config.vocab_size, config.mask_id)
