"""The options of a decode as `/set` reads and lists them, by their names in the shell.

`DecodeConfig` is the list: whatever option a command has, the chat has too.
"""

import difflib
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdave.engine.config_record import Option, options
from jaxdave.engine.decode_config import DecodeConfig

DEFAULT = "default"
"""The word that takes a setting back."""
_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False,
           "no": False}  # fmt: skip


class Setting(NamedTuple):
    """A setting as it is listed.

    Attributes:
        name: Its name on the command line, without dashes before it.
        value: Its value as `/set` takes it.
        help: What it does.
    """

    name: str
    value: str
    help: str


def changed(config: DecodeConfig, name: str, word: str) -> DecodeConfig:
    """A configuration with one option changed.

    Args:
        config: The configuration.
        name: The option's name, with dashes or underscores.
        word: Its value as the command line takes it; "on" or "off" for a switch;
            "default" for what it is when nothing is given.

    Returns:
        The changed configuration.

    Raises:
        ValueError: There is no such option, or the value does not fit.

    Example:
        >>> changed(DecodeConfig(), "draft-steps", "4").draft_steps
        4
    """
    option = _find(name)
    value = option.default if word == DEFAULT else _value(option, word)
    return DecodeConfig.from_dict({**config.to_dict(), option.name: value})


def listing(config: DecodeConfig) -> list[Setting]:
    """All settings and their values.

    Args:
        config: The configuration.

    Returns:
        The settings, in the order of the command line's help.
    """
    return [_setting(config, option) for option in options(DecodeConfig)]


def described(config: DecodeConfig, name: str) -> Setting:
    """One setting and its value.

    Args:
        config: The configuration.
        name: The option's name, with dashes or underscores.

    Returns:
        The setting.

    Raises:
        ValueError: There is no such option.
    """
    return _setting(config, _find(name))


def _setting(config: DecodeConfig, option: Option) -> Setting:
    return Setting(
        _shell_name(option.name), _word(getattr(config, option.name)), option.help
    )


def _find(name: str) -> Option:
    found = {_shell_name(option.name): option for option in options(DecodeConfig)}
    wanted = _shell_name(name.removeprefix("--"))
    if wanted not in found:
        nearest = difflib.get_close_matches(wanted, found, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else "/set lists them"
        raise ValueError(f"there is no setting {name!r}; {remedy}")
    return found[wanted]


def _shell_name(name: str) -> str:
    return name.replace("_", "-")


def _word(value: Any) -> str:
    """A value as `/set` takes it."""
    if value is None:
        return DEFAULT
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(getattr(value, "name", value))


def _value(option: Option, word: str) -> Any:
    """The value that a word stands for."""
    kinds = _plain_types(option.type)
    # Text that is parsed by the configuration, or stays text.
    if option.parse is not None or str in kinds:
        return word
    if bool in kinds:
        return _parse(option, word, lambda text: _SWITCH[text.lower()], "on or off")
    if float in kinds:
        return _parse(option, word, float, "a number")
    if int in kinds:
        return _parse(option, word, int, "a whole number")
    return [word]


def _plain_types(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _parse(
    option: Option, word: str, parse: Callable[[str], Any], expected: str
) -> Any:
    try:
        return parse(word)
    except (ValueError, KeyError):
        raise ValueError(
            f"{_shell_name(option.name)}={word!r} must be {expected}, or {DEFAULT}"
        ) from None
