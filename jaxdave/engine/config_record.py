"""Frozen records whose fields are options of command lines and keys of JSON files.

A field with a help text is an option. From it a command line, a harness or a file knows
the name, the type, the default and how a word is parsed. This module imports no JAX.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self


class Option(NamedTuple):
    """A setting as a command line, a JSON file or another program may give it.

    Attributes:
        name: The name of the field.
        type: Its plain type, such as `int | None`, which has no arrays or functions.
        default: The value where nothing is given.
        help: One line of help.
        parse: From a word to the value; None where the type alone says how.
    """

    name: str
    type: Any
    default: Any
    help: str
    parse: Callable[[str], Any] | None


def options(record: type) -> tuple[Option, ...]:
    """The fields of a configuration that can be given from outside of Python.

    Args:
        record: A dataclass, whose fields are made by `option_field`.

    Returns:
        An option for every field with a help text, in the order of the fields.
    """
    return tuple(
        Option(
            name=field.name,
            type=field.metadata.get("type", field.type),
            default=field.default,
            help=field.metadata["help"],
            parse=field.metadata.get("parse"),
        )
        for field in dataclasses.fields(record)
        if "help" in field.metadata
    )


class ConfigRecord:
    """To and from plain mappings, for frozen dataclasses."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A configuration from field names and values, such as a JSON file has.

        Words are parsed and lists become tuples where a field needs that.

        Args:
            values: Values by field name; a field left out has its default.

        Returns:
            The configuration.

        Raises:
            ValueError: A name is no field, or a value is out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore
        for name in values:
            if name not in fields:
                raise ValueError(_unknown_field(cls.__name__, name, fields))
        return cls(**{name: _read(fields[name], x) for name, x in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """The values by field name, as `from_dict` takes them."""
        names = (field.name for field in dataclasses.fields(self))  # pyright: ignore
        return {name: getattr(self, name) for name in names}


def _unknown_field(record: str, name: str, fields: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(name, fields, n=3, cutoff=0.5)
    remedy = "did you mean " if nearest else "use one of "
    question = "?" if nearest else ""
    return (
        f"{record} has no field {name!r}; {remedy}"
        f"{', '.join(nearest or sorted(fields))}{question}"
    )


def _read(field: dataclasses.Field, value: Any) -> Any:
    parse = field.metadata.get("parse")
    if parse is not None and isinstance(value, str):
        return parse(value)
    return tuple(value) if isinstance(value, list) else value


def option_field(default: Any, help: str, **more: Any) -> Any:
    """A field with its help text, and how it is given where its type does not say.

    Args:
        default: The value where nothing is given.
        help: One line of help.
        **more: `type` and `parse`, as `Option` has them.

    Returns:
        The field of a dataclass.
    """
    return dataclasses.field(default=default, metadata={"help": help, **more})
