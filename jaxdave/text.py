"""Text to token ids and back, from the tokenizer files of a checkpoint folder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jaxdave.config import ModelConfig
from jaxdave.tokenizer import (
    Messages,
    named_tokens,
    open_tokenizer,
    read_json,
)


@dataclasses.dataclass(frozen=True)
class Codec:
    """A tokenizer with its chat template.

    stop_ids: the ids that end an answer. size: all ids of the tokenizer are below it.
    """

    mask_id: int
    stop_ids: tuple[int, ...]
    pad_id: int
    size: int
    _render: Callable[[Messages], str] = dataclasses.field(repr=False)
    _encode: Callable[[str], list[int]] = dataclasses.field(repr=False)
    _decode: Callable[[list[int]], str] = dataclasses.field(repr=False)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of one user turn and the opening of the answer.

        Raises ValueError for an empty prompt.
        """
        if not text.strip():
            raise ValueError(f"prompt {text!r} is empty; write at least one word")
        return self.encode_messages([{"role": "user", "content": text}])

    def encode_messages(self, messages: Messages) -> list[int]:
        """The ids of a conversation and the opening of the answer.

        messages: each with "role" and "content", both texts.
        Raises ValueError for anything else, and for a text with the mask token in it.
        """
        return self.encode_text(self.render(messages))

    def render(self, messages: Messages) -> str:
        """The text of a conversation and the opening of the answer, markup and all.

        Raises ValueError as `encode_messages`.
        """
        _check_messages(messages)
        return self._render(messages)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text with its markup in it, special tokens recognised.

        Raises ValueError for a text with the mask token in it.
        """
        ids = self._encode(text)
        if self.mask_id in ids:
            raise ValueError(
                f"the prompt holds the mask token (id {self.mask_id}), which stands "
                "for text not written yet; take it out of the prompt"
            )
        return ids

    def encode_answer(self, text: str) -> list[int]:
        """The ids of an answer and the end after it; none for an empty text."""
        return [*self._encode(text), *self.stop_ids[:1]] if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens dropped."""
        return self._decode([int(i) for i in ids])


def load_codec(
    folder: Path, mask_id: int | None = None, config: ModelConfig | None = None
) -> Codec:
    """The codec of a checkpoint folder.

    mask_id: overrides the tokenizer's mask token. config: that of a converted folder;
        its ids hold, and a base model without a chat template refuses only messages.
    Raises ValueError when tokenizer files, mask token or chat template are missing.
    """
    named = named_tokens(folder)
    raw = open_tokenizer(folder)
    render = raw.render if raw.template is not None else _no_template(folder)
    if config is not None:
        ids = config.mask_id, config.stop_ids, config.pad_id
        return Codec(*ids, raw.size, render, raw.encode, raw.decode)
    if raw.template is None:
        render([])
    if mask_id is None:
        mask_id = raw.id_of(named.get("mask_token"))
    if mask_id is None:
        raise ValueError(
            f"{folder}: mask_token={named.get('mask_token')!r} must be a token of the "
            "tokenizer; add mask_token to tokenizer_config.json, or pass mask_id"
        )
    stop_ids, pad_id = end_ids(folder, raw.id_of, raw.size)
    return Codec(mask_id, stop_ids, pad_id, raw.size, render, raw.encode, raw.decode)


def _no_template(folder: Path) -> Callable[[Messages], str]:
    def refuse(_: Messages) -> str:
        raise ValueError(
            f"{folder}: the tokenizer has no chat template; add chat_template.jinja"
        )

    return refuse


def end_ids(
    folder: Path, id_of: Callable[[str | None], int | None], size: int
) -> tuple[tuple[int, ...], int]:
    """The ids that end an answer and the id that pads, as the folder's files say.

    id_of, size: the tokenizer's, as in `RawTokenizer`.
    Raises ValueError where no file tells an end.
    """
    named = named_tokens(folder)
    generation = read_json(folder / "generation_config.json", optional=True)
    config = read_json(folder / "config.json", optional=True)
    eos = id_of(named.get("eos_token"))
    raw = generation.get("eos_token_id", config.get("eos_token_id", eos))
    ids = raw if isinstance(raw, list) else [raw]
    if not ids or not all(type(i) is int and 0 <= i < size for i in ids):
        raise ValueError(
            f"{folder}: eos_token_id={raw!r} must be one or more token ids below "
            f"{size}; mend generation_config.json"
        )
    pads = (
        generation.get("pad_token_id"),
        config.get("pad_token_id"),
        id_of(named.get("pad_token")),
    )
    return tuple(ids), next((p for p in pads if type(p) is int), ids[0])


def _check_messages(messages: Messages) -> None:
    shaped = isinstance(messages, (list, tuple)) and all(
        isinstance(m, Mapping)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str)
        for m in messages
    )
    if not shaped:
        raise ValueError(
            'messages must be a list of {"role": TEXT, "content": TEXT} objects; '
            "give each message both"
        )
    if not any(m["content"].strip() for m in messages):
        raise ValueError("messages are empty; give at least one a content")
