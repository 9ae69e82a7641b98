"""The methods of a table: the paper's rows, as settings of the decoders."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxdave.engine.decode_config import DecodeConfig

THRESHOLD = 0.9
"""Where neither the command line nor the preset says."""


class Method(NamedTuple):
    """A way to decode.

    title: what tables print. base: the method whose text this one must give. drafted:
    whether calls carry drafts. choose(settings, threshold): its own settings.
    """

    name: str
    title: Callable[[DecodeConfig], str]
    base: str
    drafted: bool
    choose: Callable[[DecodeConfig, float], DecodeConfig]


def _static(settings: DecodeConfig, _: float) -> DecodeConfig:
    return dataclasses.replace(settings, method="static", threshold=None)


def _threshold(settings: DecodeConfig, threshold: float) -> DecodeConfig:
    return dataclasses.replace(
        settings, method="threshold", threshold=threshold, tokens_per_step=None,
        policy=None,
    )  # fmt: skip


def _freedave(settings: DecodeConfig, _: float) -> DecodeConfig:
    return dataclasses.replace(settings, method="freedave", threshold=None)


def _both(settings: DecodeConfig, threshold: float) -> DecodeConfig:
    return dataclasses.replace(_threshold(settings, threshold), method="freedave")


def _over(settings: DecodeConfig) -> str:
    return f" over {settings.policy}" if settings.policy else ""


METHODS = {
    method.name: method
    for method in (
        Method("static", lambda s: s.policy or "static", "static", False, _static),
        Method(
            "threshold", lambda s: f"threshold {s.threshold:g}", "threshold", False,
            _threshold,
        ),
        Method(
            "freedave", lambda s: f"FreeDave d={s.draft_steps}{_over(s)}", "static",
            True, _freedave,
        ),
        Method(
            "freedave-threshold",
            lambda s: f"FreeDave++ d={s.draft_steps}, {s.threshold:g}",
            "threshold", True, _both,
        ),
    )
}  # fmt: skip
"""`static` is the policy that was asked for, and its own where none was.
`freedave-threshold`: FreeDave over the threshold policy, the public code's
FreeDave++."""
