"""Named compositions: static, left_to_right, threshold, and freedave over any policy.

Each returns a `Decoder`. They differ in the policy and in how many drafts a call
carries; the loop is one (`decode.py`).
"""

import dataclasses
import functools
from typing import Literal

from jaxdave import policies
from jaxdave.core.config import ModelConfig, SamplingConfig
from jaxdave.core.draft_api import DraftFn, as_draft_fn
from jaxdave.core.model_api import ModelFns
from jaxdave.core.policy_api import Policy
from jaxdave.core.spec import DecodeSpec
from jaxdave.drafting.nested import nested
from jaxdave.engine.decode_layout import decode_layout
from jaxdave.models.block_causal import FAST_CHUNK
from jaxdave.models.drafted import with_drafted_params
from jaxdave.models.guidance import with_guidance, with_suppressed_ids
from jaxdave.models.shadow_masks import with_shadow_masks
from jaxdave.runtime.platform import on_cpu

MAX_DRAFT_STEPS = 32
NUMERICS = ("guarded", "exact", "fast")
AUTO_DRAFT_STEPS = (1, 2, 4, 8, 16, 32)
"""Drafts that a call may carry when their number is chosen call by call."""
CPU_AUTO_DRAFT_STEPS = (1, 4)
"""The same on a CPU, which is busy with four: more never took less time in any
measurement, and every size is seconds of compiling."""
DraftSteps = int | tuple[int, ...] | Literal["auto"]
DEFAULT_DRAFT_STEPS = 8
"""Drafts of a call where one program must serve all."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A program, and how many of its drafts may be used (`cap`; 1 is the plain policy).

    max_new_tokens: positions that may be decoded after the prompt. numerics: in force;
    "exact" where "guarded" was asked for and the policy cannot tell how sure it is.
    """

    spec: DecodeSpec
    max_num_drafts: int
    max_new_tokens: int
    max_positions: int
    numerics: str


def static(
    config: ModelConfig, *, tokens_per_step: int = 1, slots: int = 1, **common
) -> Decoder:
    """The most confident tokens first, `tokens_per_step` a step, without drafts.

    slots: compile the program of `freedave(..., draft_steps=slots)` and use one draft
    of it. Under `exact` numerics the two then agree bit for bit; 1 is fastest.
    Common settings and errors: see `freedave`.

    Example:
        decoder = static(model.config, max_new_tokens=64)
    """
    return build_decoder(config, policies.static(tokens_per_step), slots, 1, **common)


def left_to_right(
    config: ModelConfig, *, tokens_per_step: int = 1, slots: int = 1, **common
) -> Decoder:
    """The leftmost tokens first, without drafts; settings as `static`."""
    policy = policies.left_to_right(tokens_per_step)
    return build_decoder(config, policy, slots, 1, **common)


def threshold(
    config: ModelConfig, *, threshold: float = 0.9, slots: int = 1, **common
) -> Decoder:
    """Every token at least as sure as `threshold` at once, without drafts.

    Settings as `static`. Not the same text as `static`: fewer steps, less care.
    """
    return build_decoder(config, policies.threshold(threshold), slots, 1, **common)


def freedave(
    config: ModelConfig,
    policy: Policy | None = None,
    *,
    draft_steps: DraftSteps = "auto",
    **common,
) -> Decoder:
    """The text of `policy` (by default `policies.static(1)`), in fewer network calls.

    draft_steps: states evaluated per call, 1 to 32; or several such numbers, among
    which each call's is chosen by what calls take and how drafts fare; "auto": `SIZES`,
    on a CPU `CPU_SIZES` (under exact numerics, where all calls are alike, 8). Others:
    max_new_tokens (256), block_length (the model's), cache (full-attention models:
    "dual", "prefix" or "none"), guidance (0: off; full attention), never (ids that are
    never predicted), temperature (0), top_k (0: off), top_p (1: off), numerics
    ("guarded", "exact" or "fast"), draft (`draft.nested`), lossy (take a policy that
    speculates with the text itself, such as `policies.lopa`), network (for tests: a
    stand-in for the model's).
    Raises ValueError, naming the value, for a setting out of range.
    Source: FreeDave, arXiv 2510.00294, Algorithm 2; with a threshold policy, its
    FreeDave++ under exact match.

    Example:
        decoder = freedave(model.config, policies.threshold(0.9), draft_steps=8)
    """
    chosen = policies.static(1) if policy is None else policy
    return build_decoder(config, chosen, draft_steps, MAX_DRAFT_STEPS, **common)


def build_decoder(
    config: ModelConfig,
    policy: Policy,
    slots: DraftSteps,
    cap: int,
    *,
    max_new_tokens: int = 256,
    block_length: int | None = None,
    cache: str | None = None,
    guidance: float = 0.0,
    never: tuple[int, ...] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    numerics: str = "guarded",
    draft: DraftFn = nested,
    lossy: bool = False,
    network: ModelFns | None = None,
) -> Decoder:
    """A decoder from its parts; see `freedave` for the settings."""
    _check_settings(
        config, policy, slots, max_new_tokens, numerics, guidance, lossy, draft
    )
    length = config.block_length if block_length is None else block_length
    sampling = SamplingConfig(temperature, top_k, top_p)
    can_tell = policy.is_certain is not None and not (sampling.filtered or guidance)
    can_tell &= network is None or network.recheck is not None
    if numerics == "guarded" and not can_tell:
        numerics = "exact"
    sizes = draft_step_choices(slots, numerics)
    shape = decode_layout(config, length, cache, sizes[-1], max_new_tokens)
    if shape.first_alone:
        policy = policies.first_alone(policy)
    draft = as_draft_fn(draft)
    changes = guidance, tuple(sorted(never))
    spec = _decode_spec(
        config, policy, sizes, shape, sampling, numerics, changes, draft, network
    )
    cap = min(cap, sizes[-1])
    return Decoder(spec, cap, max_new_tokens, config.max_positions, numerics)


def _check_settings(
    config, policy: Policy, slots, room: int, numerics, guidance: float, lossy, draft
) -> None:
    """Raise ValueError for settings out of range that nothing else looks at."""
    sizes = draft_step_choices(slots, numerics)
    if not sizes or sizes != tuple(sorted(set(sizes))):
        raise ValueError(
            f"draft_steps={slots} must ascend; e.g. (1, 4, 8), or say 'auto'"
        )
    if not (1 <= sizes[0] and sizes[-1] <= MAX_DRAFT_STEPS):
        raise ValueError(
            f"draft_steps={slots} must be in 1..{MAX_DRAFT_STEPS}, or 'auto'"
        )
    if len(sizes) > 1 and numerics == "exact":
        raise ValueError(
            f"draft_steps={slots} needs programs that exact numerics tell apart; give "
            "one number, or use guarded numerics"
        )
    if room < 1:
        raise ValueError(f"max_new_tokens={room} must be at least 1")
    if numerics not in NUMERICS:
        raise ValueError(
            f"numerics={numerics!r} is unknown; use one of {', '.join(NUMERICS)}"
        )
    for what, value in (("policy", policy), ("draft", draft)):
        try:
            hash(value)
        except TypeError as error:
            raise ValueError(
                f"{what}={value!r} cannot be hashed ({error}), and compiled programs "
                "are found by it; make it of functions and frozen dataclasses"
            ) from None
    if not (policy.lossless or lossy):
        raise ValueError(
            f"policy {policy.name} speculates with the text and does not verify; "
            "choose another, or say lossy=True (--lossy)"
        )
    if guidance and config.attention != "full":
        raise ValueError(
            f"guidance={guidance} needs full attention, and {config.name!r} is "
            "block-causal; leave it out"
        )
    if not guidance >= 0:
        raise ValueError(f"guidance={guidance} must be 0 (off) or more")


def draft_step_choices(draft_steps: DraftSteps, numerics: str) -> tuple[int, ...]:
    """How many drafts a call may carry."""
    if draft_steps == "auto":
        many = CPU_AUTO_DRAFT_STEPS if on_cpu() else AUTO_DRAFT_STEPS
        return (DEFAULT_DRAFT_STEPS,) if numerics == "exact" else many
    return (draft_steps,) if isinstance(draft_steps, int) else tuple(draft_steps)


# A spec owns its compiled programs: decoders of equal parts must share one. A policy or
# a draft function is its functions, never its name (two may be named alike).
@functools.lru_cache(maxsize=64)
def _decode_spec(
    config, policy, sizes, shape, sampling, numerics, changes, draft, network
) -> DecodeSpec:
    guidance, never = changes
    layout = shape.layout
    positions = config.max_positions + 2 * layout.window_length + FAST_CHUNK
    make = shape.make_model
    if policy.shadow:
        make = with_shadow_masks(make, layout.block_length)
    model = network or make(config, numerics=numerics, positions=positions)
    model = with_guidance(model, guidance, config.mask_id) if guidance else model
    model = with_suppressed_ids(model, never) if never else model
    model = with_drafted_params(model) if draft.takes_params else model
    return DecodeSpec(
        model=model,
        layout=layout,
        policy=policy,
        draft=draft,
        sampling=sampling,
        draft_steps=sizes,
        num_drafts=sizes[-1],
        exact=numerics == "exact",
        guarded=numerics == "guarded",
    )
