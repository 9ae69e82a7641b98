"""The `model_args` of lm-evaluation-harness, checked."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from jaxdave.engine import decode_config
from jaxdave.engine.decode_config import DecodeConfig

IGNORED = ("device", "max_batch_size")
"""What the harness adds of its own: jax chooses devices, and batches are as asked."""
BATCH = 8
"""Rows side by side where the harness says "auto"."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How texts are scored.

    mc_num: samples of the bound. likelihood: "bound" or "chain" (left to right, exact).
    is_greedy: whether to find out if a text is what the model would write.
    """

    mc_num: int = 128
    likelihood: str = "bound"
    is_greedy: bool = False

    def __post_init__(self) -> None:
        if self.mc_num < 1:
            raise ValueError(f"mc_num={self.mc_num} must be at least 1; try 128")
        if self.likelihood not in ("bound", "chain"):
            raise ValueError(
                f"likelihood={self.likelihood!r} is unknown; use bound or chain"
            )


@dataclasses.dataclass(frozen=True)
class Reading:
    """How texts are read.

    max_length: tokens of prompt and answer together; None: what the model allows.
    mask_id: goes before what the folder says. add_bos_token: begin every text with it.
    """

    max_length: int | None = None
    mask_id: int | None = None
    add_bos_token: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2")


@dataclasses.dataclass(frozen=True)
class Options:
    """All of them. given: the names that were given, which go before a task's."""

    settings: DecodeConfig
    scoring: Scoring
    reading: Reading
    given: frozenset[str]


_PARTS = (DecodeConfig, Scoring, Reading)


def read(args: Mapping[str, Any]) -> Options:
    """The options of keyword arguments, such as the harness makes of its command line.

    Raises ValueError for a name that is unknown and a value of the wrong kind.
    """
    args = {name: value for name, value in args.items() if name not in IGNORED}
    if "pretrained" in args:  # what the harness's other models call it
        args.setdefault("model", args.pop("pretrained"))
    args["batch_size"] = _batch_size(args.get("batch_size", 1))
    kinds = {name: kind for part in _PARTS for name, kind in _fields(part).items()}
    unknown = sorted(set(args) - set(kinds))
    if unknown:
        raise ValueError(
            f"model_args: {unknown[0]!r} is unknown; use {', '.join(sorted(kinds))}"
        )
    checked = {name: _checked(name, args[name], kinds[name]) for name in args}

    def part(kind):
        return kind(
            **{name: checked[name] for name in _fields(kind) if name in checked}
        )

    settings = part(DecodeConfig)
    decode_config.check_config(settings)
    return Options(settings, part(Scoring), part(Reading), frozenset(args))


def _fields(part: type) -> dict[str, Any]:
    return typing.get_type_hints(part)


def _batch_size(said: Any) -> Any:
    """The rows of "auto" and "auto:4", and the number that a text holds."""
    if isinstance(said, str) and said.startswith("auto"):
        return BATCH
    return int(said) if isinstance(said, str) and said.isdigit() else said


def _checked(name: str, value: Any, kind: Any) -> Any:
    """The value as a kind takes it: a text may have been read as a number."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = typing.get_args(kind) if is_union else (kind,)
    if float in kinds and type(value) is int:
        return float(value)
    if str in kinds and type(value) in (int, float):
        return str(value)
    if any(_fits(value, one) for one in kinds):
        return value
    wanted = " or ".join(_named(one) for one in kinds)
    raise ValueError(f"model_args: {name}={value!r} must be {wanted}")


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    return type(value) is kind


def _named(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    words |= {str: "a text", type(None): "none"}
    return words.get(kind) or " or ".join(map(repr, typing.get_args(kind)))
