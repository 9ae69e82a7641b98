"""Parameters out of range, refused when a policy is made."""

import math
from collections.abc import Sequence


def check_count(usual: int, **given: int) -> None:
    """Raise ValueError for what is not a whole number of at least 1."""
    for name, value in given.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{name}={value} must be a whole number of at least 1; "
                f"{usual} is the usual choice"
            )


def check_share(usual: float, **given: float) -> None:
    """Raise ValueError for a number outside 0..1."""
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name}={value} must be in 0..1; {usual} is the usual choice"
            )


def check_amount(usual: float, **given: float) -> None:
    """Raise ValueError for a number below 0, or one that is not finite."""
    for name, value in given.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(
                f"{name}={value} must be 0 or more; {usual} is the usual choice"
            )


def check_choice(choices: Sequence[str], **given: str) -> None:
    """Raise ValueError for a word that is none of the choices."""
    for name, value in given.items():
        if value not in choices:
            raise ValueError(
                f"{name}={value!r} is unknown; use one of {', '.join(choices)}"
            )
