"""Chat templates: from messages to text, in the dialect of Jinja of transformers.

A template comes with a checkpoint, from whoever published it. It runs in Jinja's
sandbox, and within limits: it may not run for ever nor fill the memory.

Source: the tags, globals and filters are those that the chat-template documentation of
transformers defines (v5): `generation`, `break` and `continue`; `raise_exception`,
`strftime_now`, and `tojson` without HTML escapes.
"""

import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from jaxdave.runtime.files import parse_json

Messages = Sequence[Mapping[str, Any]]
"""A conversation: one mapping for each turn, with "role" and "content"."""
RenderFn = Callable[[Messages, Mapping[str, Any]], str]
"""(messages, template arguments) -> text, with the opening of the answer."""

MAX_LINES = 2_000_000
"""Lines of a template that one rendering may run, a few seconds' worth."""
MAX_SIZE = 50_000_000
"""Bytes that a text, or a variable of a template, may take."""
_MAX_NUMBER = 1_000_000
"""Largest number that a template may give to an operation that repeats or pads."""
_PYTHON_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_FILE_NAME = "<template>"
"""What Jinja calls templates that are given as text."""


def compile_template(source: str, tokens: Mapping[str, str]) -> RenderFn:
    """Compile a chat template.

    Args:
      source: the template.
      tokens: special tokens by name, such as "eos_token", which it can read.

    Returns:
      A function that renders messages. It raises ValueError, in one line, where the
      template refuses the messages or goes beyond a limit.

    Raises:
      ValueError: the template is no valid Jinja.

    Example:
      >>> render = compile_template("{{ messages[0].content }}{{ eos_token }}",
      ...                           {"eos_token": "<end>"})
      >>> render([{"role": "user", "content": "Hello"}], {})
      'Hello<end>'
    """
    from jinja2.exceptions import TemplateError

    try:
        template = _environment().from_string(source)
    except (TemplateError, RecursionError) as error:
        raise ValueError(
            f"the chat template is broken ({_one_line(error)}); fetch "
            "chat_template.jinja or tokenizer_config.json again"
        ) from error

    def render(messages: Messages, arguments: Mapping[str, Any]) -> str:
        variables = {
            "messages": [_plain(message) for message in messages],
            "add_generation_prompt": True,
            # Templates ask `if tools is not none`, which holds for what is undefined.
            "tools": None,
            "documents": None,
            **tokens,
            **arguments,
        }
        try:
            return _within_limits(lambda: template.generate(**variables))
        except _LimitError as error:
            raise ValueError(
                f"the chat template goes beyond a limit ({error}); mend the template"
            ) from None
        except MemoryError:
            raise ValueError(
                "the chat template fills the memory; mend the template"
            ) from None
        # A template's expressions run as Python and may raise whatever that does.
        except (*_PYTHON_ERRORS, TemplateError) as error:
            raise ValueError(
                f"the chat template refuses the messages ({_one_line(error)}); "
                "use the roles and the order that the model was trained with"
            ) from error

    return render


def parse_template_args(words: Sequence[str]) -> dict[str, Any]:
    """Arguments of a chat template from a command line.

    Args:
        words: NAME=VALUE each. A value that is JSON (true, 3, "x") is what it says;
            any other is a text.

    Returns:
        Values by name.

    Raises:
        ValueError: A word has no "=", or no name before it.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(
                f"template argument {word!r} must read NAME=VALUE, e.g. "
                "enable_thinking=false"
            )
        try:
            arguments[name] = parse_json(value)
        except ValueError:
            arguments[name] = value
    return arguments


def content_text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The content of a message as one text.

    Args:
      content: a text, parts that each have a "text", or None.

    Returns:
      The text; parts are joined, and None is empty.
    """
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content)


class _LimitError(Exception):
    """A template has run too long, or made something too large."""


def _environment() -> Any:
    """The sandbox with everything that templates may use."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what an assistant has said: its content."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Jinja's sandbox, in which nothing is repeated or padded without measure."""

        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context, operator, left, right):
            for number in (left, right):
                _check_number(number)
            if operator == "*":
                sizes = [len(x) for x in (left, right) if hasattr(x, "__len__")]
                counts = [x for x in (left, right) if isinstance(x, int)]
                if sizes and counts and sizes[0] * counts[0] > MAX_SIZE:
                    raise _LimitError(f"a text repeated {counts[0]} times")
            if operator == "**":
                _check_number(right, 1000)
            if operator == "%" and isinstance(left, str):
                _check_format(left)
            return super().call_binop(context, operator, left, right)

        def call(self, context, callee, /, *args, **kwargs):  # pyright: ignore
            for argument in (*args, *kwargs.values()):
                _check_number(argument)
            return super().call(context, callee, *args, **kwargs)

    def raise_exception(message: str):
        raise TemplateError(message)

    def strftime_now(format: str) -> str:
        return datetime.datetime.now().strftime(format)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        _check_number(indent)
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    for name in ("center", "indent", "wordwrap", "truncate", "format", "round"):
        environment.filters[name] = _limited(environment.filters[name])
    environment.filters["tojson"] = tojson
    return environment


def _limited(filter_fn: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja that refuses absurd numbers."""

    def limited(*args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            _check_number(argument)
            if isinstance(argument, str) and filter_fn.__name__ == "do_format":
                _check_format(argument)
        return filter_fn(*args, **kwargs)

    # Jinja marks filters that want the environment by an attribute.
    limited.__dict__.update(filter_fn.__dict__)
    return limited


def _check_number(value: Any, largest: int = _MAX_NUMBER) -> None:
    if isinstance(value, int) and abs(value) > largest:
        raise _LimitError(f"the number {str(value)[:20]}")


def _check_format(text: str) -> None:
    """Refuse a width of seven digits or more in a format, such as "%9999999d"."""
    digits = 0
    for character in text:
        digits = digits + 1 if character.isdigit() else 0
        if digits > 6:
            raise _LimitError("a number in a format")


def _within_limits(generate: Callable[[], Any]) -> str:
    """Join the pieces of a rendering, which may not run for ever.

    Jinja compiles a template to Python, so that its lines can be counted as they run.
    Each may at most multiply what there is by a small number, so that a variable that
    doubles from line to line is seen long before it fills the memory.
    """
    lines, size = 0, 0
    pieces: list[str] = []

    def count_line(frame: FrameType, event: str, _: Any):
        nonlocal lines
        if frame.f_code.co_filename != _FILE_NAME:
            return None
        lines += 1
        if lines > MAX_LINES:
            raise _LimitError(f"{MAX_LINES} lines run")
        if event != "call":
            for value in frame.f_locals.values():
                if _size(value) > MAX_SIZE:
                    raise _LimitError(f"a variable of more than {MAX_SIZE} bytes")
        return count_line

    previous = sys.gettrace()
    sys.settrace(count_line)
    try:
        for piece in generate():
            size += len(piece)
            if size > MAX_SIZE:
                raise _LimitError(f"a text of more than {MAX_SIZE} bytes")
            pieces.append(piece)
    finally:
        sys.settrace(previous)
    return "".join(pieces)


def _size(value: Any) -> int:
    """Roughly the bytes of a variable; of a namespace, of its largest entry."""
    if isinstance(value, str | bytes | list | tuple | dict):
        return len(value) * (1 if isinstance(value, str | bytes) else 8)
    attributes = getattr(value, "_Namespace__attrs", None)
    if attributes is None:
        return 0
    return max((_size(part) for part in attributes.values()), default=0)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is one text."""
    return {**message, "content": content_text(message.get("content"))}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
