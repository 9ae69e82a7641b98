"""Settings from a TOML file: sections to dataclasses, errors with file and line.

An error names the file, the line and the value, so that it can be mended without a look
at the code: nothing that is misspelt is ignored.
"""

import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxdave.runtime.files import read_regular
from jaxdave.runtime.messages import one_line

Record = TypeVar("Record")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A TOML file of sections.

    Attributes:
        path: The file.
        text: Its text.
        sections: Its tables by name.
    """

    path: Path
    text: str = dataclasses.field(repr=False)
    sections: Mapping[str, Mapping[str, Any]]

    def check_sections(self, names: typing.Collection[str]) -> None:
        """Refuse sections that mean nothing.

        Args:
            names: The sections that do.

        Raises:
            ValueError: There is another one.
        """
        for name in self.sections:
            if name not in names:
                raise ValueError(
                    f"{self._place(name, None)}section [{name}] is unknown; use "
                    f"{_suggest(name, names)}"
                )

    def read(self, section: str, record: type[Record], **given: Any) -> Record:
        """Make a dataclass of a section.

        Args:
            section: The section's name; one that is missing has no keys.
            record: The dataclass, whose fields are the keys.
            **given: Fields that are not read from the file.

        Returns:
            The record.

        Raises:
            ValueError: A key is unknown or missing, or a value has another type or is
                refused by the record.
        """
        table = self.sections.get(section, {})
        fields = {f.name: f for f in dataclasses.fields(record) if f.name not in given}  # pyright: ignore
        hints = typing.get_type_hints(record)
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in fields:
                raise ValueError(
                    f"{self._place(section, key)}{key} = {value!r} is no field of "
                    f"[{section}]; use {_suggest(key, fields)}"
                )
            try:
                values[key] = convert(value, hints[key])
            except ValueError as error:
                raise ValueError(
                    f"{self._place(section, key)}{key} = {value!r} {error}"
                ) from None
        for name, field in fields.items():
            if name not in values and _is_required(field):
                raise ValueError(
                    f"{self.path}: [{section}] has no {name}, which is needed"
                )
        return self.make(section, lambda: record(**values, **given))

    def make(self, section: str, function: typing.Callable[[], Record]) -> Record:
        """Call a function; its errors become errors of a section.

        Args:
            section: The section that its values are from.
            function: What is called.

        Returns:
            What it returns.

        Raises:
            ValueError: It has raised one; file and line stand before the message.
        """
        try:
            return function()
        except ValueError as error:
            text = str(error)
            named = re.findall(r"\b(\w+)=", text)
            keys = self.sections.get(section, {})
            key = next((name for name in named if name in keys), None)
            raise ValueError(f"{self._place(section, key)}{text}") from error

    def _place(self, section: str, key: str | None) -> str:
        """The file and, where it is found, the line of a key or a section."""
        inside = False
        for number, line in enumerate(self.text.splitlines(), 1):
            if heading := re.match(r"\s*\[+\s*([\w.\-]+)\s*\]+", line):
                inside = heading[1] == section
                if inside and key is None:
                    return f"{self.path}, line {number}: "
            elif inside and key and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
                return f"{self.path}, line {number}: "
        return f"{self.path}: "


def read_config_file(path: Path) -> ConfigFile:
    """Read a TOML file.

    Args:
        path: The file.

    Returns:
        Its sections.

    Raises:
        ValueError: It cannot be read, is no TOML, or has keys outside of sections.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
        tables = tomllib.loads(text)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; name a TOML file") from None
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path}: cannot be read ({reason}); name another") from error
    except ValueError as error:
        reason = one_line(error)
        raise ValueError(f"{path}: is no TOML ({reason}); mend that line") from error
    for key, value in tables.items():
        if not isinstance(value, dict):
            raise ValueError(
                f"{path}: {key} = {value!r} is in no section; put it under one, "
                "such as [train]"
            )
    return ConfigFile(path=path, text=text, sections=tables)


def convert(value: Any, hint: Any) -> Any:
    """Make a value of a type from one of TOML.

    Args:
        value: Text, number, bool or list.
        hint: The type, as an annotation.

    Returns:
        The value.

    Raises:
        ValueError: It has another type; the message follows on "KEY = VALUE".
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        problems = []
        for choice in args:
            try:
                return convert(value, choice)
            except ValueError as error:
                problems.append(str(error).removeprefix("must be "))
        raise ValueError(f"must be {' or '.join(p for p in problems if p != 'none')}")
    if origin is typing.Literal:
        if value in args and type(value) in map(type, args):
            return value
        raise ValueError(f"must be one of {', '.join(map(repr, args))}")
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError("must be a list in brackets")
        return tuple(convert(item, args[0]) for item in value)
    if hint is type(None):
        raise ValueError("must be none")
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is Any or type(value) is hint:
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    raise ValueError(f"must be {words.get(hint, 'a text in quotes')}")


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _suggest(name: str, names: typing.Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"{close[0]} perhaps" if close else ", ".join(names)
