"""The methods of a table: the paper's rows, as settings of the decoders."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxdave.engine.decode_config import DEFAULT_THRESHOLD as DEFAULT_THRESHOLD
from jaxdave.engine.decode_config import DecodeConfig


class Method(NamedTuple):
    """A way to decode.

    Attributes:
        name: What `--methods` calls it.
        title: What tables print for its configuration.
        base: The method whose text this one must give.
        drafted: Calls carry drafts.
        choose: (what all methods share, the threshold of those that have one) -> the
            configuration of this method.
    """

    name: str
    title: Callable[[DecodeConfig], str]
    base: str
    drafted: bool
    choose: Callable[[DecodeConfig, float], DecodeConfig]


def _static(config: DecodeConfig, _: float) -> DecodeConfig:
    return dataclasses.replace(config, method="static", threshold=None)


def _threshold(config: DecodeConfig, threshold: float) -> DecodeConfig:
    return dataclasses.replace(
        config,
        method="threshold",
        threshold=threshold,
        tokens_per_step=None,
        policy=None,
    )


def _freedave(config: DecodeConfig, _: float) -> DecodeConfig:
    return dataclasses.replace(config, method="freedave", threshold=None)


def _freedave_threshold(config: DecodeConfig, threshold: float) -> DecodeConfig:
    return dataclasses.replace(_threshold(config, threshold), method="freedave")


def _static_title(config: DecodeConfig) -> str:
    return str(config.policy or "static")


def _threshold_title(config: DecodeConfig) -> str:
    return f"threshold {config.threshold:g}"


def _freedave_title(config: DecodeConfig) -> str:
    over = f" over {config.policy}" if config.policy else ""
    return f"FreeDave d={config.draft_steps}{over}"


def _freedave_threshold_title(config: DecodeConfig) -> str:
    return f"FreeDave++ d={config.draft_steps}, {config.threshold:g}"


METHODS = {
    method.name: method
    for method in (
        Method(
            name="static",
            title=_static_title,
            base="static",
            drafted=False,
            choose=_static,
        ),
        Method(
            name="threshold",
            title=_threshold_title,
            base="threshold",
            drafted=False,
            choose=_threshold,
        ),
        Method(
            name="freedave",
            title=_freedave_title,
            base="static",
            drafted=True,
            choose=_freedave,
        ),
        Method(
            name="freedave-threshold",
            title=_freedave_threshold_title,
            base="threshold",
            drafted=True,
            choose=_freedave_threshold,
        ),
    )
}
"""`static` is the user's policy, and one token a step where there is none.
`freedave-threshold`: FreeDave over the threshold policy, the public code's
FreeDave++."""
