"""Upper bounds on tokens a call, for a policy of one token a step and perfect drafts.

The first call of a request commits one token, and every later one as many as there are
drafts. Full attention under a cache rule refreshes the cache at each block, so there
the count starts again with every block. Tokens after an answer's end are decoded but do
not count, so short answers stay below the bound.
"""

from typing import Any

from jaxdave.core.config import ModelConfig

LONG_ANSWER = 1024
"""Tokens of an answer for which the first call hardly matters."""


def max_tokens_per_call(num_tokens: int, num_drafts: int) -> float:
    """Compute the bound for a stretch of tokens without a refresh.

    Args:
        num_tokens: tokens of the stretch.
        num_drafts: drafts of a call.

    Returns:
        Tokens a call.

    Example:
        >>> max_tokens_per_call(64, 8)
        7.111111111111111
    """
    return num_tokens / (1 + -(-(num_tokens - 1) // num_drafts))


def ceiling_row(
    config: ModelConfig, cache: str | None, max_new_tokens: int, num_drafts: int
) -> dict[str, Any]:
    """Build a row of the table of bounds.

    Args:
        config: the model.
        cache: the cache rule, None for the model's own.
        max_new_tokens: tokens of an answer.
        num_drafts: drafts of a call.

    Returns:
        The bound, its derivation in words, and the bound for a long answer.
    """
    is_cached = config.attention == "full" and cache != "none"
    stretch = config.block_length if is_cached else max_new_tokens
    calls = f"1 + ceil({stretch - 1} / {num_drafts})"
    what = f"a block of {stretch}" if is_cached else f"all {stretch} tokens"
    long_stretch = config.block_length if is_cached else LONG_ANSWER
    return {
        "d": num_drafts,
        "ceiling, tokens a call": max_tokens_per_call(stretch, num_drafts),
        "calls": f"{calls} for {what}",
        f"of {LONG_ANSWER} tokens": max_tokens_per_call(long_stretch, num_drafts),
    }
