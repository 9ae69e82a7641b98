"""Text to token ids and back, from the tokenizer files of a checkpoint folder.

`Codec` is what the rest of the package works with, and `load_codec` makes one.
"""

import dataclasses
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.io.chat_template import Messages, RenderFn, content_text
from jaxdave.io.special_tokens import special_tokens_map, stop_and_pad_ids
from jaxdave.io.tokenizer_backend import TokenizerBackend, open_tokenizer


@dataclasses.dataclass(frozen=True)
class Codec:
    """A tokenizer with its chat template.

    It is pickled as its folder and its ids, and opened again on the other side.

    Attributes:
      mask_id: id of the mask token.
      stop_ids: ids that end an answer.
      pad_id: id that pads a row.
      size: size of the vocabulary; every id of the tokenizer is below it.
      template_args: what the chat template reads beside the messages.
      folder: the folder with its files; None: it cannot be pickled.

    Example:
      >>> from jaxdave.io.hub import find_model
      >>> codec = load_codec(find_model("sdar-1m")[1])
      >>> codec.decode(codec.encode_prompt("Hello"))
      'user\\nHello\\nassistant\\n'
    """

    mask_id: int
    stop_ids: tuple[int, ...]
    pad_id: int
    size: int
    _render: RenderFn = dataclasses.field(repr=False)
    _encode: Callable[[str], list[int]] = dataclasses.field(repr=False)
    _decode: Callable[[list[int]], str] = dataclasses.field(repr=False)
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = dataclasses.field(default=None, repr=False, compare=False)

    def with_template_args(self, **arguments: Any) -> "Codec":
        """This codec with arguments for its chat template.

        Args:
          **arguments: what the template reads beside the messages, such as
            enable_thinking=False; they replace earlier ones of their name.

        Returns:
          The codec.
        """
        merged = {**self.template_args, **arguments}
        return dataclasses.replace(self, template_args=merged)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self.folder is None:
            raise pickle.PicklingError(
                "a codec without a folder cannot be opened again"
            )
        ids = self.mask_id, self.stop_ids, self.pad_id
        return _open_again, (self.folder, self.template_args, *ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode one user turn, followed by the opening of the answer.

        Args:
          text: what the user says.

        Returns:
          Token ids.

        Raises:
          ValueError: the text is empty, or contains the mask token.
        """
        if not text.strip():
            raise ValueError(f"prompt {text!r} is empty; write at least one word")
        return self.encode_messages([{"role": "user", "content": text}])

    def encode_messages(self, messages: Messages) -> list[int]:
        """Encode a conversation, followed by the opening of the answer.

        Args:
          messages: the turns, each with a "role" and a "content": a text, parts of the
            form {"type": "text", "text": TEXT}, or None. Other keys are passed on.

        Returns:
          Token ids.

        Raises:
          ValueError: the messages have another form, the chat template refuses them, or
            a text contains the mask token.
        """
        return self.encode_text(self.render(messages))

    def render(self, messages: Messages) -> str:
        """Render a conversation, followed by the opening of the answer, as text.

        Args:
          messages: the turns, each with a "role" and a "content": a text, parts of the
            form {"type": "text", "text": TEXT}, or None. Other keys are passed on.

        Returns:
          The text with the chat template's markup in it.

        Raises:
          ValueError: the messages have another form, or the chat template refuses them.
        """
        _check_messages(messages)
        return self._render(messages, self.template_args)

    def encode_text(self, text: str) -> list[int]:
        """Encode a text that has its markup in it already.

        Args:
          text: any text; special tokens written out in it are recognised.

        Returns:
          Token ids, without any added at either end.

        Raises:
          ValueError: the text contains the mask token.
        """
        check_characters(text)
        ids = self._encode(text)
        if self.mask_id in ids:
            raise ValueError(
                f"the prompt holds the mask token (id {self.mask_id}), which stands "
                "for text not written yet; take it out of the prompt"
            )
        return ids

    def encode_answer(self, text: str) -> list[int]:
        """Encode an answer and the stop id after it.

        Args:
          text: the answer.

        Returns:
          Token ids; none for an empty text.
        """
        check_characters(text)
        return [*self._encode(text), *self.stop_ids[:1]] if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids to text, special tokens left out.

        Args:
          ids: token ids, Python or NumPy integers.

        Returns:
          The text.
        """
        return self._decode([int(i) for i in ids])


def check_characters(text: str) -> None:
    """Refuse a text that has half a character in it.

    Args:
      text: any text.

    Raises:
      ValueError: it cannot be written as UTF-8: it holds a lone surrogate, as broken
        JSON and file names of other encodings do.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds half a character, {text[error.start]!a}, at position "
            f"{error.start}; write the whole character"
        ) from None


def _check_messages(messages: Messages) -> None:
    """Raise ValueError unless messages are turns with a role and a content each."""
    is_valid = isinstance(messages, (list, tuple)) and all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and "content" in message
        and _is_content(message["content"])
        for message in messages
    )
    if not is_valid:
        raise ValueError(
            'messages must be a list of {"role": TEXT, "content": TEXT} objects; '
            "give each message both"
        )
    if not any(content_text(message["content"]).strip() for message in messages):
        raise ValueError("messages are empty; give at least one a content")


def _is_content(content: Any) -> bool:
    """True for a text, None, or a list of parts that are texts."""
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str)
        for part in content
    )


def load_codec(
    folder: Path, mask_id: int | None = None, config: ModelConfig | None = None
) -> Codec:
    """Read the codec of a checkpoint folder.

    Args:
      folder: a folder with tokenizer files.
      mask_id: id of the mask token; overrides the files.
      config: the folder's model config where it is known. Mask, stop and pad ids are
        then the config's, and a base model without a chat template is allowed: its
        codec refuses messages only.

    Returns:
      The codec.

    Raises:
      ValueError: tokenizer files, the mask token, a stop id or the chat template are
        missing, or cannot be read.
    """
    names = special_tokens_map(folder)
    backend = open_tokenizer(folder)
    # A config has settled these ids already, from these files and from the caller.
    if config is not None:
        return _make_codec(
            folder, backend, config.mask_id, config.stop_ids, config.pad_id
        )
    if backend.chat_template is None:
        _refuse_messages(folder)([], {})
    if mask_id is None:
        mask_id = backend.id_of(names.get("mask_token"))
    if mask_id is None:
        raise ValueError(
            f"{folder}: mask_token={names.get('mask_token')!r} must be a token of the "
            "tokenizer; add mask_token to tokenizer_config.json, or pass mask_id"
        )
    stop_ids, pad_id = stop_and_pad_ids(folder, backend.id_of, backend.size)
    return _make_codec(folder, backend, mask_id, stop_ids, pad_id)


def _open_again(folder: Path, template_args: Mapping[str, Any], *ids: Any) -> Codec:
    """A codec that was pickled."""
    codec = _make_codec(folder, open_tokenizer(folder), *ids)
    return codec.with_template_args(**template_args)


def _make_codec(
    folder: Path,
    backend: TokenizerBackend,
    mask_id: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> Codec:
    """The codec of a tokenizer; without a chat template it refuses messages only."""
    has_template = backend.chat_template is not None
    return Codec(
        mask_id=mask_id,
        stop_ids=stop_ids,
        pad_id=pad_id,
        size=backend.size,
        _render=backend.render if has_template else _refuse_messages(folder),
        _encode=backend.encode,
        _decode=backend.decode,
        folder=folder,
    )


def _refuse_messages(folder: Path) -> RenderFn:
    """Make what renders messages in a folder without a chat template."""

    def refuse(messages: Messages, arguments: Mapping[str, Any]) -> str:
        del messages, arguments
        raise ValueError(
            f"{folder}: the tokenizer has no chat template; add chat_template.jinja"
        )

    return refuse
