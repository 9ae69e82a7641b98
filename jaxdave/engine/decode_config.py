"""The options of the commands that decode, checked, and the decoder they ask for."""

import dataclasses
from typing import Literal

DRAFTS = ("tree", "nested", "copy")
METHODS = ("freedave", "static", "threshold")
_MOST_SEED = 2**31 - 1
_COMMON = (
    "max_new_tokens", "block_length", "temperature", "top_k", "top_p", "numerics",
    "cache", "guidance", "lossy",
)  # fmt: skip
"""Settings that go to `decoders.build` as they are."""


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """The options of `generate`; None: the method's or the model's own."""

    model: str | None = None
    method: str = "freedave"
    draft_steps: int | Literal["auto"] = "auto"
    tokens_per_step: int | None = None
    threshold: float | None = None
    block_length: int | None = None
    policy: str | None = None
    cache: str | None = None
    guidance: float = 0.0
    no_stop: bool = False
    lossy: bool = False
    stop_last: bool = False
    draft: str = "tree"
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    dtype: str = "float32"
    quantize: str | None = None
    numerics: str = "guarded"
    batch_size: int = 1


def check_config(settings: DecodeConfig) -> None:
    """Raise ValueError for settings that the decoders and the loader do not see."""
    s = settings
    if s.method not in METHODS:
        raise ValueError(f"method {s.method!r} is unknown; use {', '.join(METHODS)}")
    if s.draft not in DRAFTS:
        raise ValueError(f"draft={s.draft!r} is unknown; use {', '.join(DRAFTS)}")
    if s.draft_steps != "auto" and s.draft_steps < 1:
        raise ValueError(f"draft_steps={s.draft_steps} must be at least 1; try 8")
    if s.batch_size < 1:
        raise ValueError(f"batch_size={s.batch_size} must be at least 1; try 8")
    if not 0 <= s.seed <= _MOST_SEED:
        raise ValueError(f"seed={s.seed} must be in 0..{_MOST_SEED}; choose another")
    if s.threshold is not None and s.method == "static":
        raise ValueError(
            f"threshold={s.threshold} has no meaning with method 'static'; "
            "use --method threshold or leave it out"
        )
    if s.stop_last and s.no_stop:
        raise ValueError(
            "stop_last=True orders end tokens and no_stop=True forbids them; "
            "leave one of --stop-last and --no-stop out"
        )
    by_threshold = s.threshold is not None or s.method == "threshold"
    if s.policy is not None and (by_threshold or s.tokens_per_step is not None):
        raise ValueError(
            f"policy={s.policy!r} says what a step commits, so leave out "
            "--method threshold, --threshold and --tokens-per-step"
        )
    if s.tokens_per_step is not None and by_threshold:
        raise ValueError(
            f"tokens_per_step={s.tokens_per_step} has no meaning with a threshold, "
            "which decides how many; leave one of them out"
        )


def parse_draft_steps(text: str) -> int | Literal["auto"]:
    """The draft steps that a word stands for. Raises ValueError for any other word."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"draft_steps={text!r} must be a whole number from 1 on, or 'auto'"
        ) from None


def make_decoder(
    config, settings: DecodeConfig, tables=None, has_draft_text: bool = False, wrap=None
):
    """The decoder of the settings. Raises ValueError for one out of range.

    tables: the draft trees of the model; has_draft_text: whether it must read one.
    wrap(settings, policy) -> the policy that is decoded with; None: as it is.
    """
    from jaxdave import policies
    from jaxdave.engine import decoders

    s, policy = settings, policy_from_config(settings)
    policy = policy if wrap is None else wrap(s, policy)
    policy = policies.demote(policy, config.stop_ids) if s.stop_last else policy
    common = {name: getattr(s, name) for name in _COMMON}
    common["draft"] = _draft(config, s, policy, tables or {}, has_draft_text)
    common["never"] = config.stop_ids if s.no_stop else ()
    drafted = decoders.freedave(config, policy, draft_steps=s.draft_steps, **common)
    if s.method == "freedave":
        return drafted
    if drafted.numerics == "exact":
        # The program that freedave would run, so that both read the same bits.
        return dataclasses.replace(drafted, max_num_drafts=1)
    return decoders.build_decoder(config, policy, 1, 1, **common)


def _draft(config, s: DecodeConfig, policy, tables, has_draft_text: bool):
    """The draft function: of a table where one fits, beside what else is known."""
    from jaxdave.drafting import text_drafts, tree
    from jaxdave.drafting.guesses import with_guesses
    from jaxdave.drafting.nested import nested

    fit = {name: getattr(s, name) for name in ("block_length", "cache", "temperature")}
    best = tree.tree_or_nested(tables, config, policy, **fit)
    base = nested if s.draft == "nested" else best
    if s.draft != "copy" and not has_draft_text:
        return base
    if not has_draft_text:
        return with_guesses(base, text_drafts.prompt_lookup)
    guess = text_drafts.user_text
    if s.draft == "copy":
        guess = text_drafts.user_text_or_prompt_lookup
    return with_guesses(base, guess, reads_text=True)


def policy_from_config(settings: DecodeConfig):
    """The policy of the settings. Raises ValueError for one that does not exist."""
    from jaxdave import policies

    s = settings
    if s.policy is not None:
        return policies.parse(s.policy)
    if s.threshold is not None or s.method == "threshold":
        return policies.threshold(0.9 if s.threshold is None else s.threshold)
    return policies.static(1 if s.tokens_per_step is None else s.tokens_per_step)
