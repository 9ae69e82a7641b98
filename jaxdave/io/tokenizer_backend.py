"""The two tokenizer libraries behind one record.

tokenizers reads tokenizer.json at once; transformers, whose import takes seconds, reads
the tokenizers whose class is more than that file says.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdave.io.chat_template import RenderFn, compile_template
from jaxdave.io.special_tokens import special_tokens_map
from jaxdave.runtime.files import read_json, read_regular
from jaxdave.runtime.messages import one_line

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
        reason = one_line(error)
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
