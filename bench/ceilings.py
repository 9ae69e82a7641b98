"""What perfect drafts would give: tokens a call of a policy of one token a step.

The first call of a block (full attention under a cache rule: its refresh) or of a
request makes one token known, and every later one d more. Section 5b of the project's
notes on decoding counts the same; `NOTES` has its figures: those of full attention with
blocks of 32, and of the fused loop against the fused static one with blocks of 4.
Tokens after an answer's end are decoded but do not count, so short answers stay below.
"""

from typing import Any

from jaxdave.core.config import ModelConfig

NOTES = {
    ("full", 32): {4: 3.56, 8: 6.40, 16: 10.67, 32: 16.0},
    ("block_causal", 4): {4: 3.98, 8: 7.94, 16: 15.8, 32: 31.0},
}


def tokens_per_call(tokens: int, d: int) -> float:
    """The most that d drafts a call can give a stretch of tokens without a refresh."""
    return tokens / (1 + -(-(tokens - 1) // d))


def row(config: ModelConfig, cache: str | None, room: int, d: int) -> dict[str, Any]:
    """The ceiling of a model under a cache rule, and where it is from."""
    is_cached = config.attention == "full" and cache != "none"
    stretch = config.block_length if is_cached else room
    calls = f"1 + ceil({stretch - 1} / {d})"
    what = f"a block of {stretch}" if is_cached else f"all {stretch} tokens"
    known = NOTES.get((config.attention, config.block_length), {})
    noted = known.get(d) if is_cached or config.attention != "full" else None
    return {
        "d": d,
        "ceiling, tokens a call": tokens_per_call(stretch, d),
        "calls": f"{calls} for {what}",
        "decoding.md 5b": "-" if noted is None else noted,
    }
