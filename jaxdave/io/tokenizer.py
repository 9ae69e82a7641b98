"""Text to token ids and back, from the tokenizer files of a checkpoint folder."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.runtime.files import read_json

Messages = Sequence[Mapping[str, Any]]


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


# Classes that are nothing but tokenizer.json; every other one may change what is in it.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Dream's class is code of its repository; it is Qwen2's class under another name.
_ALIKE = {"DreamTokenizer": "Qwen2Tokenizer"}
_SOURCES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class RawTokenizer:
    """What both tokenizer libraries can do, under the same names."""

    template: str | None
    size: int
    id_of: Callable[[str | None], int | None]
    render: Callable[[Messages], str]
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def open_tokenizer(folder: Path) -> RawTokenizer:
    if not any((folder / name).is_file() for name in _SOURCES):
        raise ValueError(
            f"{folder}: no tokenizer; the folder must hold one of {', '.join(_SOURCES)}"
        )
    settings = read_json(folder / "tokenizer_config.json")
    plain = settings.get("tokenizer_class") in _PLAIN_CLASSES
    opened = plain and (folder / "tokenizer.json").is_file()
    try:
        return _open_plain(folder, settings) if opened else _open_any(folder)
    except Exception as error:  # the libraries raise bare Exception, and much else
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: unreadable tokenizer ({reason}); fetch the folder again"
        ) from error


def _open_plain(folder: Path, settings: dict[str, Any]) -> RawTokenizer:
    """Without transformers, whose import alone takes longer than a short answer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = settings.get("chat_template")
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else template
    return RawTokenizer(
        template=template,
        size=1 + max(tokenizer.get_vocab().values()),
        id_of=lambda token: None if token is None else tokenizer.token_to_id(token),
        render=_renderer(template, named_tokens(folder)),
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )


def _renderer(template: str | None, named: Mapping[str, str]):
    """The chat template as a function, in the dialect that transformers defines."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def complain(message: str):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = complain
    environment.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
    compiled = environment.from_string(template or "")
    return lambda messages: _rendered(
        lambda: compiled.render(messages=messages, add_generation_prompt=True, **named)
    )


def _open_any(folder: Path) -> RawTokenizer:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers
    from transformers import AutoTokenizer, PreTrainedConfig

    settings = read_json(folder / "tokenizer_config.json")
    alike = _ALIKE.get(str(settings.get("tokenizer_class")))
    kind = AutoTokenizer if alike is None else getattr(transformers, alike)
    # An empty config keeps it from reading config.json, whose auto_map asks for code.
    tokenizer: Any = kind.from_pretrained(
        str(folder),
        config=PreTrainedConfig(),
        trust_remote_code=False,
        local_files_only=True,
    )
    vocab = tokenizer.get_vocab()
    return RawTokenizer(
        template=tokenizer.chat_template,
        size=1 + max(vocab.values()),
        id_of=vocab.get,
        render=lambda messages: _rendered(
            lambda: tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        ),
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        decode=lambda ids: tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ),
    )


def _rendered(render: Callable[[], str]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return render()
    except (TemplateError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the chat template refuses the messages ({reason}); "
            "use the roles and the order that the model was trained with"
        ) from error


def named_tokens(folder: Path) -> dict[str, str]:
    """The texts of mask_token, eos_token and so on; tokenizer_config.json wins."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(folder / name, optional=True).items():
            value = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(value, str):
                found[key] = value
    return found


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token -> id (None for a token that it lacks); all ids are below size."""

    id_of: Callable[[str | None], int | None]
    size: int


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a folder. Raises ValueError where it has no tokenizer."""
    whole = read_json(folder / "tokenizer.json", optional=True)
    found = _model_vocabulary(whole.get("model") or {})
    found |= read_json(folder / "vocab.json", optional=True)
    if not found:  # a kind of file that only its own library reads
        tokenizer = open_tokenizer(folder)
        return Vocabulary(tokenizer.id_of, tokenizer.size)
    found |= read_json(folder / "added_tokens.json", optional=True)
    found |= {one["content"]: one["id"] for one in whole.get("added_tokens") or []}
    settings = read_json(folder / "tokenizer_config.json", optional=True)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        found[token["content"]] = int(number)
    return Vocabulary(lambda token: found.get(token or ""), 1 + max(found.values()))


def _model_vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """A model has its tokens by id, or in the order of their ids."""
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):
        return {token: number for number, (token, _) in enumerate(vocab)}
    return dict(vocab)
