"""Named compositions: static, left_to_right, threshold, and freedave over any policy.

Each returns a `Decoder`. They differ in the policy and in how many drafts a call
carries; the loop is one (`decode.py`).
"""

import dataclasses
import functools
from typing import Literal

from jaxdave import policies
from jaxdave.backend import on_cpu
from jaxdave.config import ModelConfig
from jaxdave.draft import DraftFn, nested
from jaxdave.layout import layout
from jaxdave.model.causal import FAST_CHUNK
from jaxdave.model.guidance import guided, without
from jaxdave.model.shadow import shadowed
from jaxdave.sampling import Sampling
from jaxdave.spec import Program
from jaxdave.types import Network, Policy

MOST_DRAFTS = 32
NUMERICS = ("guarded", "exact", "fast")
SIZES = (1, 2, 4, 8, 16, 32)
"""Drafts that a call may carry when their number is chosen call by call."""
CPU_SIZES = (1, 4)
"""The same on a CPU, which is busy with four: more never took less time in any
measurement, and every size is seconds of compiling."""
DraftSteps = int | tuple[int, ...] | Literal["auto"]
USUAL = 8
"""Drafts of a call where one program must serve all."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A program, and how many of its drafts may be used (`cap`; 1 is the plain policy).

    max_new_tokens: positions that may be decoded after the prompt. numerics: in force;
    "exact" where "guarded" was asked for and the policy cannot tell how sure it is.
    """

    program: Program
    cap: int
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
    return build(config, policies.static(tokens_per_step), slots, 1, **common)


def left_to_right(
    config: ModelConfig, *, tokens_per_step: int = 1, slots: int = 1, **common
) -> Decoder:
    """The leftmost tokens first, without drafts; settings as `static`."""
    policy = policies.left_to_right(tokens_per_step)
    return build(config, policy, slots, 1, **common)


def threshold(
    config: ModelConfig, *, threshold: float = 0.9, slots: int = 1, **common
) -> Decoder:
    """Every token at least as sure as `threshold` at once, without drafts.

    Settings as `static`. Not the same text as `static`: fewer steps, less care.
    """
    return build(config, policies.threshold(threshold), slots, 1, **common)


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
    return build(config, chosen, draft_steps, MOST_DRAFTS, **common)


def build(
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
    network: Network | None = None,
) -> Decoder:
    """A decoder from its parts; see `freedave` for the settings."""
    _check(config, policy, slots, max_new_tokens, numerics, guidance, lossy)
    length = config.block_length if block_length is None else block_length
    sampling = Sampling(temperature, top_k, top_p)
    can_tell = policy.sure is not None and not (sampling.filtered or guidance)
    can_tell &= network is None or network.recheck is not None
    if numerics == "guarded" and not can_tell:
        numerics = "exact"
    sizes = sizes_of(slots, numerics)
    shape = layout(config, length, cache, sizes[-1], max_new_tokens)
    if shape.forced_first:
        policy = policies.first_alone(policy)
    changes = guidance, tuple(sorted(never))
    program = _program(
        config, policy, sizes, shape, sampling, numerics, changes, draft, network
    )
    cap = min(cap, sizes[-1])
    return Decoder(program, cap, max_new_tokens, config.max_positions, numerics)


def _check(
    config, policy: Policy, slots, room: int, numerics, guidance: float, lossy
) -> None:
    """Raise ValueError for settings out of range that nothing else looks at."""
    sizes = sizes_of(slots, numerics)
    if not sizes or sizes != tuple(sorted(set(sizes))):
        raise ValueError(
            f"draft_steps={slots} must ascend; e.g. (1, 4, 8), or say 'auto'"
        )
    if not (1 <= sizes[0] and sizes[-1] <= MOST_DRAFTS):
        raise ValueError(f"draft_steps={slots} must be in 1..{MOST_DRAFTS}, or 'auto'")
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


def sizes_of(draft_steps: DraftSteps, numerics: str) -> tuple[int, ...]:
    """How many drafts a call may carry."""
    if draft_steps == "auto":
        many = CPU_SIZES if on_cpu() else SIZES
        return (USUAL,) if numerics == "exact" else many
    return (draft_steps,) if isinstance(draft_steps, int) else tuple(draft_steps)


@functools.lru_cache(maxsize=64)
def _cached_program(key, policy, draft, network) -> Program:
    config, _, sizes, shape, sampling, numerics, (guidance, never) = key
    grid = shape.grid
    positions = config.max_positions + 2 * grid.window_length + FAST_CHUNK
    make = shadowed(shape.network, grid.length) if policy.shadow else shape.network
    made = network or make(config, numerics=numerics, positions=positions)
    made = guided(made, guidance, config.mask_id) if guidance else made
    made = without(made, never) if never else made
    exact, guarded = numerics == "exact", numerics == "guarded"
    most = sizes[-1]
    return Program(made, grid, policy, draft, sampling, most, exact, guarded, sizes)


# Programs carry their compiled code: two decoders of the same parts must share one.
_POLICIES: dict[str, Policy] = {}


def _program(config, policy, *settings) -> Program:
    *settings, draft, network = settings
    known = _POLICIES.setdefault(policy.name, policy)
    key = (config, known.name, *settings)
    return _cached_program(key, known, draft, network)
