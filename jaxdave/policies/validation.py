"""Checks of policies and of their parameters, made before anything is compiled.

Every message names the value, the rule that it breaks and a value that is usual.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdave.core.policy_api import CandidateScoring, Policy, PositionCount
from jaxdave.core.signature import accepts

MAX_COUNT = 2**20
"""The largest count of steps or positions: products of two still fit int32."""
MAX_SIZE = 256
"""The largest count of what takes memory or compute for each: states, vectors."""
MAX_POST_STEPS = 1024
"""The largest number of post steps of a block: calls are counted in arrays of it."""
MAX_AMOUNT, MIN_AMOUNT = 1e9, 1e-30
"""Bounds of amounts above 0: their quotients are still finite in float32."""


def check_count(usual: int, **values: int) -> None:
    """Check that parameters are whole numbers from 1 to `MAX_COUNT`.

    Args:
        usual: A value to suggest, as a rule the default.
        **values: Parameter values by name.

    Raises:
        ValueError: A value is not an int, or out of range.
    """
    _check_whole(usual, MAX_COUNT, values)


def check_size(usual: int, **values: int) -> None:
    """Check that parameters are whole numbers from 1 to `MAX_SIZE`.

    Args:
        usual: A value to suggest, as a rule the default.
        **values: Parameter values by name.

    Raises:
        ValueError: A value is not an int, or out of range.
    """
    _check_whole(usual, MAX_SIZE, values)


def _check_whole(usual: int, largest: int, values: Mapping[str, int]) -> None:
    for name, value in values.items():
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < 1:
            raise ValueError(
                f"{name}={value} must be a whole number of at least 1; "
                f"{usual} is the usual choice"
            )
        if value > largest:
            raise ValueError(
                f"{name}={str(value)[:20]} must be at most {largest}; "
                f"{usual} is the usual choice"
            )


def check_share(usual: float, **values: float) -> None:
    """Check that parameters are numbers in 0..1, both ends included.

    Args:
        usual: A value to suggest, as a rule the default.
        **values: Parameter values by name.

    Raises:
        ValueError: A value is outside 0..1 or NaN.
    """
    for name, value in values.items():
        # Written so that NaN, which no comparison holds for, is refused too.
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name}={value} must be in 0..1; {usual} is the usual choice"
            )


def check_post_steps(max_post_steps: int, usual: int) -> None:
    """Check a number of post steps.

    Args:
        max_post_steps: The number.
        usual: A value to suggest.

    Raises:
        ValueError: It is no whole number from 0 to `MAX_POST_STEPS`.
    """
    is_whole = isinstance(max_post_steps, int) and not isinstance(max_post_steps, bool)
    if not (is_whole and 0 <= max_post_steps <= MAX_POST_STEPS):
        raise ValueError(
            f"max_post_steps={str(max_post_steps)[:20]} must be a whole number in "
            f"0..{MAX_POST_STEPS}; {usual} is the usual choice"
        )


def check_amount(usual: float, **values: float) -> None:
    """Check that parameters are 0, or from `MIN_AMOUNT` to `MAX_AMOUNT`.

    Args:
        usual: A value to suggest, as a rule the default.
        **values: Parameter values by name.

    Raises:
        ValueError: A value is out of range or NaN.
    """
    for name, value in values.items():
        # Written so that NaN, which no comparison holds for, is refused too.
        if not value >= 0:
            raise ValueError(
                f"{name}={value} must be 0 or more; {usual} is the usual choice"
            )
        if not (value == 0 or MIN_AMOUNT <= value <= MAX_AMOUNT):
            raise ValueError(
                f"{name}={value} must be 0 or in {MIN_AMOUNT}..{MAX_AMOUNT}; {usual} "
                "is the usual choice"
            )


def check_choice(choices: Sequence[str], **values: str) -> None:
    """Check that parameters are one of some words.

    Args:
        choices: The words that are allowed.
        **values: Parameter values by name.

    Raises:
        ValueError: A value is none of the choices.
    """
    for name, value in values.items():
        if value not in choices:
            raise ValueError(
                f"{name}={value!r} is unknown; use one of {', '.join(choices)}"
            )


def block_counts(**values: tuple[int, int]) -> tuple[PositionCount, ...]:
    """Parameters that count positions of a block, for `Policy.counts`.

    A default is published for blocks of another length, and stands for any.

    Args:
        **values: (value, default) by name.

    Returns:
        The counts that are above their defaults.
    """
    return tuple(
        PositionCount(name, value, "block")
        for name, (value, default) in values.items()
        if value > default
    )


def check_counts(policy: Policy, **sizes: int) -> None:
    """Check that no parameter of a policy counts more positions than there are.

    Args:
        policy: The policy.
        **sizes: Positions by what holds them, as in `PositionCount.of`.

    Raises:
        ValueError: One does.

    Example:
        >>> from jaxdave import policies
        >>> check_counts(policies.static(4), block=4, answer=64)
    """
    for name, value, of in policy.counts:
        if of in sizes and value > sizes[of]:
            article = "an" if of == "answer" else "a"
            raise ValueError(
                f"{name}={value} is more than {article} {of} of {sizes[of]} holds; use "
                f"at most {sizes[of]}"
            )


_ARGUMENTS = {
    "step": ("view", "memory"),
    "init": ("size", "width"),
    "is_certain": ("view", "memory", "error_bound"),
    "commit_order": ("view", "memory"),
}
"""What the functions of a policy are called with, in order."""


def check_policy(policy: Any) -> None:
    """Check that an object can be decoded with as a `Policy`.

    Otherwise a mistake such as passing `policies.static` for `policies.static()` would
    surface only while the decode loop is traced.

    Args:
        policy: What a caller gave as the policy.

    Raises:
        ValueError: A field of `Policy` is missing, is not of the kind it must be, or is
            a function of other arguments.
    """
    # A repr may have several lines (arrays do); a message has one.
    text = " ".join(repr(policy).split())
    for field in Policy._fields:
        if not hasattr(policy, field):
            raise ValueError(
                f"policy={text} has no {field!r}; give a Policy, e.g. "
                "policies.static(1) or policies.parse('static')"
            )
    for field, arguments in _ARGUMENTS.items():
        function = getattr(policy, field)
        is_optional = field in ("is_certain", "commit_order")
        if is_optional and function is None:
            continue
        if not callable(function):
            _refuse(
                policy, field, "a function, or None" if is_optional else "a function"
            )
        if not accepts(function, arguments):
            _refuse(policy, field, f"a function of ({', '.join(arguments)})")
    _check_edits(policy)
    scoring = policy.scoring
    is_scoring = isinstance(scoring, CandidateScoring) and callable(scoring.score_fn)
    if not (scoring is None or is_scoring):
        _refuse(policy, "scoring", "a CandidateScoring with a score_fn, or None")


def _check_edits(policy: Any) -> None:
    """Raise ValueError for a policy that edits as none can."""
    steps = policy.max_post_steps
    if steps is None:
        return
    is_whole = isinstance(steps, int) and not isinstance(steps, bool)
    if not (is_whole and 0 <= steps <= MAX_POST_STEPS):
        _refuse(
            policy, "max_post_steps", f"a whole number in 0..{MAX_POST_STEPS}, or None"
        )
    if policy.revises:
        _refuse(policy, "revises", "False, as max_post_steps says that it edits")
    for field in ("scoring", "commit_order"):
        if getattr(policy, field) is not None:
            _refuse(policy, field, "None, as max_post_steps says that it edits")


def _refuse(policy: Any, field: str, rule: str) -> None:
    """Raise the ValueError of a field that is not what it must be."""
    value = " ".join(repr(getattr(policy, field)).split())
    raise ValueError(
        f"policy {policy.name!r}: {field}={value} must be {rule}; "
        f"make it with Policy(name, step, ...), or with _replace({field}=...)"
    )
