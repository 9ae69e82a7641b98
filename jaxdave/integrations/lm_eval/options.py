"""The `model_args` of lm-evaluation-harness, checked.

Beside `Scoring`, `Reading` and `Reporting` they are the fields of `DecodeConfig` and
`LoadConfig`.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from jaxdave.engine.config_record import options
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig, check_batch_size
from jaxdave.eval.likelihood import masks

IGNORED = ("device", "max_batch_size")
"""What the harness adds of its own: JAX chooses devices, and batches are as given."""
AUTO_BATCH_SIZE = 8
"""Rows of a batch where the harness says "auto"."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How texts are scored.

    Attributes:
        mc_num: Samples of the bound.
        likelihood: A name of `masks.RULES`: "bound" (Dream's nll_type mc), "chain"
            (left to right; ar_ftb), "reverse" (ar_btf), "one_pass", "pseudo" or
            "confidence".
        scored: "target" after its context; "context", before the target (full attention
            only); or "both" together, a mean per token. Dream's log_type ftb, btf and
            union. Rolling likelihoods score all of their text.
        is_greedy: Find out if a text is what the model would write.

    Raises:
        ValueError: A value is out of range.
    """

    mc_num: int = 128
    likelihood: str = "bound"
    scored: str = "target"
    is_greedy: bool = False

    def __post_init__(self) -> None:
        if self.mc_num < 1:
            raise ValueError(f"mc_num={self.mc_num} must be at least 1; try 128")
        _check_name("likelihood", self.likelihood, tuple(masks.RULES))
        _check_name("scored", self.scored, ("target", "context", "both"))


def _check_name(option: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{option}={name!r} is unknown; use one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How texts are read.

    Attributes:
        max_length: Tokens of prompt and answer together; None: what the model allows.
        mask_id: Goes before what the folder says.
        add_bos_token: Begin every text with it.
        template_args: NAME=VALUE for the chat template; several are parted by ";".
        escape_until: Leave out the stop strings that tasks give ("until"), as the
            argument of that name does in FreeDave's and Dream's evaluations.

    Raises:
        ValueError: A value is out of range.
    """

    max_length: int | None = None
    mask_id: int | None = None
    add_bos_token: bool = False
    template_args: str = ""
    escape_until: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2")


@dataclasses.dataclass(frozen=True)
class Reporting:
    """What is told beside the harness's results.

    Attributes:
        stats_file: File for a JSON line of what each text has taken, written anew
            whenever texts were generated; "": none. `jaxdave-lm-eval` writes one beside
            its results as well.
    """

    stats_file: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """All of the model's arguments.

    Attributes:
        settings: What decides a decode.
        load: The model.
        batch_size: Rows of a batch.
        scoring: How texts are scored.
        reading: How texts are read.
        reporting: What is told beside the results.
        given: Names of the arguments that were there, which go before a task's.
    """

    settings: DecodeConfig
    load: LoadConfig
    batch_size: int
    scoring: Scoring
    reading: Reading
    reporting: Reporting
    given: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        """How texts are decoded, as JSON values."""
        fields = {**self.settings.to_dict(), **self.load.to_dict()}
        # No argument of the harness suppresses ids.
        del fields["suppressed_ids"]
        return {**fields, "batch_size": self.batch_size}


def read(args: Mapping[str, Any]) -> Options:
    """The options of keyword arguments, such as the harness makes of its command line.

    Args:
        args: Values by name, of their types or as a command line has them.

    Returns:
        The options.

    Raises:
        ValueError: A name is unknown, or a value is of the wrong type or out of range.
    """
    args = {name: value for name, value in args.items() if name not in IGNORED}
    if "pretrained" in args:  # what the harness's other models call it
        args.setdefault("model", args.pop("pretrained"))
    args["batch_size"] = _batch_size(args.get("batch_size", 1))
    types_of = {
        DecodeConfig: {option.name: option.type for option in options(DecodeConfig)},
        LoadConfig: {option.name: option.type for option in options(LoadConfig)},
        Scoring: typing.get_type_hints(Scoring),
        Reading: typing.get_type_hints(Reading),
        Reporting: typing.get_type_hints(Reporting),
    }
    kinds = {"batch_size": int}
    for fields in types_of.values():
        kinds |= fields
    unknown = sorted(set(args) - set(kinds))
    if unknown:
        raise ValueError(
            f"model_args: {unknown[0]!r} is unknown; use {', '.join(sorted(kinds))}"
        )
    values = {name: _checked(name, args[name], kinds[name]) for name in args}
    check_batch_size(values["batch_size"])

    def part(record: type) -> Any:
        fields = types_of[record]
        return record(**{name: x for name, x in values.items() if name in fields})

    return Options(
        settings=part(DecodeConfig),
        load=part(LoadConfig),
        batch_size=values["batch_size"],
        scoring=part(Scoring),
        reading=part(Reading),
        reporting=part(Reporting),
        given=frozenset(args),
    )


def _batch_size(value: Any) -> Any:
    """The rows of "auto" and "auto:4", and the number that a text holds."""
    if isinstance(value, str) and value.startswith("auto"):
        return AUTO_BATCH_SIZE
    return int(value) if isinstance(value, str) and value.isdigit() else value


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
    allowed = " or ".join(_named(one) for one in kinds)
    raise ValueError(f"model_args: {name}={value!r} must be {allowed}")


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    return type(value) is kind


def _named(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    words |= {str: "a text", type(None): "none"}
    return words.get(kind) or " or ".join(map(repr, typing.get_args(kind)))
