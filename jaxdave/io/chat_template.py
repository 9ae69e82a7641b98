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

from jaxdave.io.template_limits import (
    MAX_SIZE,
    LimitError,
    check_format,
    check_number,
    check_repetition,
    check_result,
    limited,
)
from jaxdave.runtime.files import parse_json
from jaxdave.runtime.messages import one_line

Messages = Sequence[Mapping[str, Any]]
"""A conversation: one mapping for each turn, with "role" and "content"."""
RenderFn = Callable[[Messages, Mapping[str, Any]], str]
"""(messages, template arguments) -> text, with the opening of the answer."""

MAX_LINES = 500_000
"""Lines of a template that one rendering may run, a few seconds' worth: each is counted
and looked at. A conversation of a thousand turns takes some tens of thousands."""
_LIMITED_FILTERS = (
    "center",
    "format",
    "indent",
    "join",
    "map",
    "pprint",
    "replace",
    "round",
    "string",
    "tojson",
    "truncate",
    "wordwrap",
)
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
            f"the chat template is broken ({one_line(error)}); fetch "
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
        except LimitError as error:
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
                f"the chat template refuses the messages ({one_line(error)}); "
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
                check_number(number)
            if operator == "*":
                check_repetition(left, right)
                check_repetition(right, left)
            if operator == "**":
                check_number(right, 1000)
            if operator == "%" and isinstance(left, str):
                values = right if isinstance(right, tuple) else (right,)
                check_format(left, values)
            return super().call_binop(context, operator, left, right)

        def call(self, context, callee, /, *args, **kwargs):  # pyright: ignore
            values = [*args, *kwargs.values()]
            for value in values:
                check_number(value)
            # The sandbox wraps `str.format`.
            method = getattr(callee, "__wrapped__", callee)
            owner, name = (getattr(method, n, None) for n in ("__self__", "__name__"))
            if isinstance(owner, str) and name in ("format", "format_map"):
                check_format(owner, values)
            elif isinstance(owner, str) and name == "join":
                if isinstance(args[0] if args else None, list | tuple):
                    check_result("join", args[0], [owner])
            elif isinstance(owner, str):
                check_result(str(name), owner, values)
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
    # It makes up a text of any length, another one each time.
    del environment.globals["lipsum"]
    environment.filters["tojson"] = tojson
    for name in _LIMITED_FILTERS:
        function = environment.filters[name]
        first = int(hasattr(function, "jinja_pass_arg"))
        environment.filters[name] = limited(name, function, first)
    return environment


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
            raise LimitError(f"{MAX_LINES} lines run")
        if event != "call":
            for value in frame.f_locals.values():
                if _size(value) > MAX_SIZE:
                    raise LimitError(f"a variable of more than {MAX_SIZE} bytes")
        return count_line

    previous = sys.gettrace()
    sys.settrace(count_line)
    try:
        for piece in generate():
            size += len(piece)
            if size > MAX_SIZE:
                raise LimitError(f"a text of more than {MAX_SIZE} bytes")
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
