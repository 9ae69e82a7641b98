"""Opening a folder's tokenizer: its ids, its chat template, its special tokens."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Messages = Sequence[Mapping[str, Any]]

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


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty where it is optional and absent.

    Raises ValueError naming the file.
    """
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: missing file; a checkpoint folder must have it, so fetch or "
            "save the folder again"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as JSON ({error}); fetch the folder again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object; fetch the folder again")
    return value
