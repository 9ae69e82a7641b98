"""Text to token ids and back, from the tokenizer files of a checkpoint folder.

`Codec` is the public face and `load_codec` makes one. Below it, from the top down: the
ids that a folder's JSON files name, its vocabulary, and the two libraries (tokenizers,
and transformers where a tokenizer class needs it) behind one record.
"""

import dataclasses
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.io.chat_template import Messages, RenderFn, compile_template
from jaxdave.runtime.files import read_json, read_regular


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
    if not any(message["content"] for message in messages):
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
    backend: "TokenizerBackend",
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


# Ids that the folder's JSON files name.


def special_tokens_map(folder: Path) -> dict[str, str]:
    """Read the texts of a folder's special tokens.

    Args:
      folder: a folder with tokenizer files.

    Returns:
      "mask_token", "eos_token" and so on -> the token's text. tokenizer_config.json
      overrides special_tokens_map.json.
    """
    tokens = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(folder / name, optional=True).items():
            value = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(value, str):
                tokens[key] = value
    return tokens


def stop_and_pad_ids(
    folder: Path, id_of: Callable[[str | None], int | None], size: int
) -> tuple[tuple[int, ...], int]:
    """Read the ids that end an answer and the id that pads.

    generation_config.json goes before config.json, and that before the tokenizer files.

    Args:
      folder: a checkpoint folder.
      id_of: token -> id, as in `Vocabulary`.
      size: size of the vocabulary; ids must be below it.

    Returns:
      The stop ids, and the pad id: the first stop id where no file names one.

    Raises:
      ValueError: no file names a stop id, or one is no id of the vocabulary.
    """
    names = special_tokens_map(folder)
    generation = read_json(folder / "generation_config.json", optional=True)
    config = read_json(folder / "config.json", optional=True)
    candidates = (
        generation.get("eos_token_id"),
        config.get("eos_token_id"),
        id_of(names.get("eos_token")),
    )
    # A null says nothing, and does not hide what the other files say.
    eos: Any = next((ids for ids in candidates if ids is not None), None)
    stop_ids = eos if isinstance(eos, list) else [eos]
    if not stop_ids or not all(type(i) is int and 0 <= i < size for i in stop_ids):
        raise ValueError(
            f"{folder}: eos_token_id={eos!r} must be one or more token ids below "
            f"{size}; mend generation_config.json"
        )
    pads = (
        generation.get("pad_token_id"),
        config.get("pad_token_id"),
        id_of(names.get("pad_token")),
    )
    pad_id = next((pad for pad in pads if type(pad) is int), stop_ids[0])
    return tuple(stop_ids), pad_id


# The vocabulary, read from JSON: opening a tokenizer of 150,000 ids takes seconds.


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
      id_of: token -> id; None for a token that the tokenizer lacks, and for None.
      size: one more than the largest id.
    """

    id_of: Callable[[str | None], int | None]
    size: int


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a folder, if possible without opening its tokenizer.

    Args:
      folder: a folder with tokenizer files.

    Returns:
      The vocabulary, added tokens included.

    Raises:
      ValueError: the folder has no tokenizer, or one that cannot be read.
    """
    tokenizer_json = read_json(folder / "tokenizer.json", optional=True)
    ids = _model_vocabulary(tokenizer_json.get("model") or {})
    ids |= read_json(folder / "vocab.json", optional=True)
    if not ids:  # a kind of file that only its own library reads
        backend = open_tokenizer(folder)
        return Vocabulary(id_of=backend.id_of, size=backend.size)
    # Added tokens come last: they replace entries of the same text in the model's part.
    ids |= read_json(folder / "added_tokens.json", optional=True)
    added_tokens = tokenizer_json.get("added_tokens") or []
    ids |= {token["content"]: token["id"] for token in added_tokens}
    settings = read_json(folder / "tokenizer_config.json", optional=True)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        ids[token["content"]] = int(number)

    def id_of(token: str | None) -> int | None:
        return ids.get(token or "")

    return Vocabulary(id_of=id_of, size=1 + max(ids.values()))


def _model_vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Read tokenizer.json's model: a map token -> id, or pairs in the order of ids."""
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):
        return {token: number for number, (token, _) in enumerate(vocab)}
    return dict(vocab)


# The two tokenizer libraries.

# Classes that add nothing to tokenizer.json; any other class may change its meaning.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Dream's class is code of its repository; it is Qwen2's class under another name.
_CLASS_ALIASES = {"DreamTokenizer": "Qwen2Tokenizer"}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class TokenizerBackend:
    """What either tokenizer library can do, under the same names.

    Attributes:
      chat_template: the Jinja source of the chat template, or None.
      size: one more than the largest id.
      id_of: token -> id; None for a token that the tokenizer lacks, and for None.
      render: (messages, template arguments) -> text with the opening of the answer;
        raises ValueError where the template refuses the messages.
      encode: text -> ids, none added at either end.
      decode: ids -> text, special tokens left out.
    """

    chat_template: str | None
    size: int
    id_of: Callable[[str | None], int | None]
    render: RenderFn
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def open_tokenizer(folder: Path) -> TokenizerBackend:
    """Open the tokenizer of a folder with the lighter library that reads it right.

    Args:
      folder: a folder with tokenizer files.

    Returns:
      The tokenizer.

    Raises:
      ValueError: the folder has no tokenizer, or one that neither library reads.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(
            f"{folder}: no tokenizer; the folder must hold one of "
            f"{', '.join(_TOKENIZER_FILES)}"
        )
    settings = read_json(folder / "tokenizer_config.json")
    # Any class but a plain one may do more than tokenizer.json says, so that only
    # transformers reads it right; importing that takes seconds.
    is_plain = settings.get("tokenizer_class") in _PLAIN_CLASSES
    is_plain = is_plain and (folder / "tokenizer.json").is_file()
    try:
        if is_plain:
            return _open_with_tokenizers(folder, settings)
        return _open_with_transformers(folder)
    except Exception as error:  # the libraries raise bare Exception, and much else
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: unreadable tokenizer ({reason}); fetch the folder again"
        ) from error


def _open_with_tokenizers(folder: Path, settings: dict[str, Any]) -> TokenizerBackend:
    """Open tokenizer.json without transformers, whose import takes seconds."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def id_of(token: str | None) -> int | None:
        return None if token is None else tokenizer.token_to_id(token)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    chat_template = _read_chat_template(folder, settings)
    return TokenizerBackend(
        chat_template=chat_template,
        size=1 + max(tokenizer.get_vocab().values()),
        id_of=id_of,
        render=compile_template(chat_template or "", special_tokens_map(folder)),
        encode=encode,
        decode=decode,
    )


def _read_chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template of a folder; of several, the one named "default"."""
    # Newer checkpoints keep the template in a file of its own, which has precedence.
    file = folder / "chat_template.jinja"
    if os.path.lexists(file):
        return read_regular(file).decode("utf-8-sig")
    return _default_template(settings.get("chat_template"))


def _default_template(template: Any) -> str | None:
    """One of the forms that tokenizer files give templates in, as text."""
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _open_with_transformers(folder: Path) -> TokenizerBackend:
    """Open a tokenizer whose class is more than its tokenizer.json."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers
    from transformers import AutoTokenizer, PreTrainedConfig

    settings = read_json(folder / "tokenizer_config.json")
    alias = _CLASS_ALIASES.get(str(settings.get("tokenizer_class")))
    tokenizer_class = AutoTokenizer if alias is None else getattr(transformers, alias)
    # An empty config keeps it from reading config.json, whose auto_map asks for code.
    tokenizer: Any = tokenizer_class.from_pretrained(
        str(folder),
        config=PreTrainedConfig(),
        trust_remote_code=False,
        local_files_only=True,
    )
    vocab = tokenizer.get_vocab()

    # Rendered by us for both libraries, so that limits hold and both read alike.
    chat_template = _default_template(tokenizer.chat_template)
    tokens = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    render = compile_template(chat_template or "", tokens)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    return TokenizerBackend(
        chat_template=chat_template,
        size=1 + max(vocab.values()),
        id_of=vocab.get,
        render=render,
        encode=encode,
        decode=decode,
    )
