"""Decoders: everything that a decode is compiled from, made of a `DecodeConfig`.

`make_decoder` builds one from a configuration; `static`, `left_to_right`, `threshold`
and `freedave` are named ways to call it. They differ in the policy and in how many
drafts a call carries; the decode loop is one (`jaxdave.decoding.loop`).
"""

import dataclasses
import functools
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdave import policies
from jaxdave.core.config import ModelConfig, Numerics, check_guidance
from jaxdave.core.draft_api import DraftFn
from jaxdave.core.model_api import ModelFns
from jaxdave.core.policy_api import Policy
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.window import VARYING_STEP_TOKENS
from jaxdave.decoding.draft_check import check_draft_fn
from jaxdave.drafting.registry import DraftRequest, is_built_in, make_draft
from jaxdave.drafting.text_drafts import reading_text
from jaxdave.drafting.tree_table import TreeTable
from jaxdave.engine.decode_config import CACHE_RULES as CACHE_RULES
from jaxdave.engine.decode_config import MAX_DRAFT_STEPS as MAX_DRAFT_STEPS
from jaxdave.engine.decode_config import NUMERICS as NUMERICS
from jaxdave.engine.decode_config import DecodeConfig, DraftSteps
from jaxdave.engine.decode_layout import decode_layout
from jaxdave.engine.decode_spec import decode_spec
from jaxdave.models.router_trace import num_columns
from jaxdave.policies.validation import check_counts, check_policy
from jaxdave.runtime.machine import Machine, this_machine
from jaxdave.runtime.platform import in_32_bits

MAX_NEW_TOKENS = 256
"""Positions that may be decoded after the prompt where nobody says otherwise."""
AUTO_DRAFT_STEPS = (1, 2, 4, 8, 16, 32)
"""Drafts that a call may carry when their number is chosen call by call."""
CPU_AUTO_DRAFT_STEPS = (1, 4)
"""The same on a CPU, whose cores are fully used by four: more never took less time in
any measurement, and each further number costs seconds of compiling."""
DEFAULT_DRAFT_STEPS = 8
"""Drafts of a call where one program must serve all."""


class _Recipe(NamedTuple):
    """What a decoder was made of.

    Attributes:
        spec: The spec that came out of it.
        arguments: The arguments of `make_decoder` by name.
    """

    spec: DecodeSpec
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What `generate` and `stream` decode with, beside the parameters and the prompts.

    It is pickled as what it was made of, and made again on the other side: programs are
    looked up there, in memory and on disk.

    Attributes:
        spec: The functions and sizes that programs are compiled from.
        max_num_drafts: How many of a call's drafts may be used; 1 is the plain policy.
        max_new_tokens: Positions that may be decoded after the prompt.
        max_positions: Positions that the model allows in all.
        recipe: What it was made of; None: it cannot be pickled.
    """

    spec: DecodeSpec
    max_num_drafts: int
    max_new_tokens: int
    max_positions: int
    recipe: _Recipe | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def numerics(self) -> Numerics:
        """In force: exact where a policy cannot tell how certain its choice is."""
        return self.spec.numerics

    @classmethod
    def from_config(
        cls,
        model_config: ModelConfig,
        config: DecodeConfig,
        *,
        tables: Mapping[str, TreeTable] | None = None,
    ) -> "Decoder":
        """A decoder of a configuration; see `make_decoder`.

        Args:
            model_config: The model, such as `model.config`.
            config: What decides the decode.
            tables: The model's draft trees, such as `model.tables`.

        Returns:
            The decoder.

        Raises:
            ValueError: The configuration does not fit the model.
        """
        return make_decoder(model_config, config, tables=tables)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        recipe = self.recipe
        # A decoder whose spec was replaced is not what its recipe makes.
        if recipe is None or recipe.spec is not self.spec:
            raise pickle.PicklingError(
                "this decoder was not made by make_decoder, so it cannot be made again "
                "elsewhere; pickle its DecodeConfig, and call make_decoder there"
            )
        sizes = ("max_num_drafts", "max_new_tokens", "max_positions")
        changes = {name: getattr(self, name) for name in sizes}
        return _make_again, (dict(recipe.arguments), changes)

    @property
    def max_rounds(self) -> int:
        """Rounds of the loop at most: each fills a position or decides one again."""
        # Blocks are decoded whole, so there may be most of a block beyond the limit.
        positions = self.max_new_tokens + self.spec.layout.block_length
        return 2 * positions * self.spec.steps_per_position

    def undrafted(self) -> "Decoder":
        """The same compiled program with one draft a call, the policy's own state."""
        return dataclasses.replace(self, max_num_drafts=1)


def static(
    config: ModelConfig,
    *,
    tokens_per_step: int = 1,
    draft_steps: int = 1,
    **common: Any,
) -> Decoder:
    """The most confident tokens first, `tokens_per_step` a step, without drafts.

    Args:
        config: The model.
        tokens_per_step: Tokens that a step commits.
        draft_steps: Compile the program of `freedave(..., draft_steps=...)` and use one
            draft of it. Under exact numerics the two then agree bit for bit; 1 is
            fastest.
        **common: Further fields of `DecodeConfig`, as for `freedave`.

    Returns:
        The decoder.

    Raises:
        ValueError: A setting is unknown or out of range.

    Example:
        >>> from jaxdave.models.presets import preset
        >>> static(preset("sdar-1m"), max_new_tokens=64).max_num_drafts
        1
    """
    policy = policies.static(tokens_per_step)
    return freedave(config, policy, draft_steps=draft_steps, **common).undrafted()


def left_to_right(
    config: ModelConfig,
    *,
    tokens_per_step: int = 1,
    draft_steps: int = 1,
    **common: Any,
) -> Decoder:
    """The leftmost tokens first, without drafts.

    Args:
        config: The model.
        tokens_per_step: Tokens that a step commits.
        draft_steps: As for `static`.
        **common: Further fields of `DecodeConfig`, as for `freedave`.

    Returns:
        The decoder.

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    policy = policies.left_to_right(tokens_per_step)
    return freedave(config, policy, draft_steps=draft_steps, **common).undrafted()


def threshold(
    config: ModelConfig, *, threshold: float = 0.9, draft_steps: int = 1, **common: Any
) -> Decoder:
    """Every token at least as likely as `threshold` at once, without drafts.

    Not the same text as `static`: fewer steps, less care.

    Args:
        config: The model.
        threshold: The probability, 0 to 1.
        draft_steps: As for `static`.
        **common: Further fields of `DecodeConfig`, as for `freedave`.

    Returns:
        The decoder.

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    policy = policies.threshold(threshold)
    return freedave(config, policy, draft_steps=draft_steps, **common).undrafted()


def freedave(
    config: ModelConfig,
    policy: Policy | str | None = None,
    *,
    draft_steps: DraftSteps = "auto",
    network: ModelFns | None = None,
    machine: Machine | None = None,
    **common: Any,
) -> Decoder:
    """The text of a policy in fewer calls of the model, by drafts that it verifies.

    Args:
        config: The model.
        policy: What a step commits, or its name; None: `policies.static(1)`.
        draft_steps: As in `DecodeConfig`. "auto" chooses among `AUTO_DRAFT_STEPS`, on a
            CPU `CPU_AUTO_DRAFT_STEPS`; under exact numerics, where all calls are alike,
            it is 8.
        network: A stand-in for the model's functions, for tests.
        machine: What programs are compiled for; None: JAX's default backend.
        **common: Further fields of `DecodeConfig`: max_new_tokens, block_length, cache,
            guidance, temperature, top_k, top_p, numerics, draft, lossy, suppressed_ids
            and so on.

    Returns:
        The decoder.

    Raises:
        ValueError: A setting is unknown or out of range, in one line.

    Source: FreeDave, arXiv 2510.00294, Algorithm 2; with a threshold policy, its
    FreeDave++ under exact match.

    Example:
        >>> from jaxdave.models.presets import preset
        >>> rule = policies.threshold(0.9)
        >>> decoder = freedave(preset("sdar-1m"), rule, draft_steps=8)
        >>> decoder.spec.draft_steps
        (8,)
    """
    fields = {"policy": policy, "draft_steps": draft_steps, **common}
    return make_decoder(
        config, DecodeConfig.from_dict(fields), network=network, machine=machine
    )


@in_32_bits()
def make_decoder(
    model_config: ModelConfig,
    config: DecodeConfig,
    *,
    tables: Mapping[str, TreeTable] | None = None,
    has_draft_text: bool = False,
    draft_params: Any = None,
    network: ModelFns | None = None,
    machine: Machine | None = None,
) -> Decoder:
    """A decoder of a configuration.

    Args:
        model_config: The model, such as `model.config`.
        config: What decides the decode.
        tables: The model's draft trees, such as `model.tables`; None: it has none.
        has_draft_text: Prompts come with texts that their answers may look like
            (`draft_text` of `generate`), which the draft function must then read.
        draft_params: Parameters of a draft function that takes some, to check it with;
            None: it is checked when a program is compiled.
        network: A stand-in for the model's functions, for tests.
        machine: What programs are compiled for; None: JAX's default backend.

    Returns:
        The decoder. Equal parts share one spec, which owns their compiled programs.

    Raises:
        ValueError: The configuration does not fit the model, or its policy or draft
            function is unknown or none, or the draft function returns what it must not.

    Example:
        >>> from jaxdave.models.presets import preset
        >>> config = DecodeConfig(max_new_tokens=64, draft_steps=8)
        >>> make_decoder(preset("sdar-1m"), config).numerics
        <Numerics.GUARDED: 'guarded'>
    """
    made = _make_decoder(
        model_config,
        config,
        tables,
        has_draft_text,
        draft_params,
        network,
        machine or this_machine(),
    )
    arguments = {
        "model_config": model_config,
        "config": config,
        "tables": tables,
        "has_draft_text": has_draft_text,
        "network": network,
        "machine": machine,
    }
    return dataclasses.replace(made, recipe=_Recipe(made.spec, arguments))


def _make_again(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> Decoder:
    """A decoder that was pickled."""
    return dataclasses.replace(make_decoder(**arguments), **changes)


def _make_decoder(
    model_config: ModelConfig,
    config: DecodeConfig,
    tables: Mapping[str, TreeTable] | None,
    has_draft_text: bool,
    draft_params: Any,
    network: ModelFns | None,
    machine: Machine,
) -> Decoder:
    """A decoder that knows no recipe yet."""
    policy = config.make_policy()
    if config.stop_last or config.confidence_eos_eot_inf:
        policy = policies.demote(policy, model_config.stop_ids)
    check_policy(policy)
    _check_hashable("policy", policy)
    request = DraftRequest(
        config=model_config,
        policy=policy,
        tables=tables or {},
        block_length=config.block_length,
        cache=config.cache,
        temperature=config.sampling().temperature,
        has_draft_text=has_draft_text,
    )
    draft = make_draft(config.draft, request)
    draft = reading_text(draft) if has_draft_text else draft
    _check_hashable("draft", draft)
    drafted = _assemble(model_config, config, policy, draft, network, machine)
    _check_draft(drafted.spec, model_config, config, draft_params)
    if config.method == "freedave":
        return drafted
    if drafted.numerics is Numerics.EXACT:
        # The program that freedave would run, so that both read the same bits.
        return drafted.undrafted()
    single = dataclasses.replace(config, draft_steps=1)
    return _assemble(model_config, single, policy, draft, network, machine)


def _assemble(
    model_config: ModelConfig,
    config: DecodeConfig,
    policy: Policy,
    draft: DraftFn,
    network: ModelFns | None,
    machine: Machine,
) -> Decoder:
    """The decoder of a policy and a draft function, all drafts in use."""
    _check_fit(model_config, config, policy)
    length = config.block_length
    length = model_config.block_length if length is None else length
    room = config.max_new_tokens
    room = MAX_NEW_TOKENS if room is None else room
    numerics = _numerics(model_config, config)
    # Guarded numerics need a policy that certifies its choice, predictions whose error
    # has a bound (a filter can drop a token at its cut-off), and a model that can
    # recheck (a guided one, with two caches, cannot).
    can_tell = policy.is_certain is not None
    sampling = config.sampling(model_config.family)
    can_tell &= not (sampling.filtered or config.guidance)
    can_tell &= network is None or network.recheck is not None
    if numerics is Numerics.GUARDED and not can_tell:
        numerics = Numerics.EXACT
    draft_steps = draft_step_choices(config.draft_steps, numerics, machine)
    layout = decode_layout(
        model_config,
        length,
        config.cache,
        draft_steps[-1],
        room,
        step_tokens=policy.tokens_per_step or VARYING_STEP_TOKENS,
        early_exit=not config.no_early_exit,
    )
    if layout.first_alone:
        policy = policies.first_alone(policy)
    suppressed_ids = {*config.suppressed_ids}
    suppressed_ids |= {*model_config.stop_ids} if config.no_stop else set()
    suppressed_ids |= {model_config.eos_id} if config.logits_eos_inf else set()
    spec = decode_spec(
        config=model_config,
        policy=policy,
        draft_steps=draft_steps,
        layout=layout,
        sampling=sampling,
        numerics=numerics,
        guidance=config.guidance,
        suppressed_ids=tuple(sorted(suppressed_ids)),
        unscored_ids=model_config.stop_ids if config.confidence_eos_eot_inf else (),
        draft=draft,
        network=network,
        machine=machine,
        records_steps=config.record_steps,
        num_parts=1,
    )
    return Decoder(
        spec=spec,
        max_num_drafts=draft_steps[-1],
        max_new_tokens=room,
        max_positions=model_config.max_positions,
    )


def _check_hashable(what: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(
            f"{what}={value!r} cannot be hashed ({error}), and compiled programs "
            "are found by it; make it of functions and frozen dataclasses"
        ) from None


def _check_fit(model_config: ModelConfig, config: DecodeConfig, policy: Policy) -> None:
    """Raise ValueError for settings that this model or policy does not allow."""
    if not (policy.lossless or config.lossy):
        raise ValueError(
            f"policy {policy.name} speculates with the text and does not verify; "
            "choose another, or say lossy=True (--lossy)"
        )
    length = config.block_length or model_config.block_length
    room = config.max_new_tokens
    room = MAX_NEW_TOKENS if room is None else room
    check_counts(policy, block=length, answer=room)
    is_causal_context = model_config.attention == "causal_context"
    if policy.shadow and is_causal_context:
        raise ValueError(
            f"policy {policy.name} looks at shadow masks, which {model_config.name!r} "
            "cannot be asked for, as its context is causal; choose another policy"
        )
    if policy.edits and is_causal_context:
        raise ValueError(
            f"policy {policy.name} edits blocks without masks, which "
            f"{model_config.name!r} evaluates causally as context; choose another one"
        )
    if config.record_steps and policy.scoring is not None:
        raise ValueError(
            f"record_steps=True: policy {policy.name} weighs candidates, which no "
            "single step commits; choose another policy, or leave record_steps out"
        )
    check_guidance(config.guidance, model_config)


def _numerics(model_config: ModelConfig, config: DecodeConfig) -> Numerics:
    """The numerics that are asked for, or those of the kind of model."""
    is_dense = model_config.experts is None
    return Numerics(
        config.numerics or (Numerics.GUARDED if is_dense else Numerics.EXACT)
    )


def draft_step_choices(
    draft_steps: DraftSteps, numerics: Numerics, machine: Machine
) -> tuple[int, ...]:
    """How many drafts a call may carry.

    Args:
        draft_steps: As in `DecodeConfig`.
        numerics: The numerics in force.
        machine: What programs are compiled for.

    Returns:
        The numbers, ascending.
    """
    if draft_steps == "auto":
        many = CPU_AUTO_DRAFT_STEPS if machine.is_cpu else AUTO_DRAFT_STEPS
        return (DEFAULT_DRAFT_STEPS,) if numerics is Numerics.EXACT else many
    return (draft_steps,) if isinstance(draft_steps, int) else tuple(draft_steps)


def _check_draft(
    spec: DecodeSpec,
    model_config: ModelConfig,
    config: DecodeConfig,
    draft_params: Any,
) -> None:
    """Refuse a draft function that returns what it must not."""
    if is_built_in(config.draft):
        return  # those are tested, and a check of a tree takes a twentieth of a second
    # Shadow masks and guidance double the width of hidden vectors.
    width = model_config.hidden * (2 if spec.policy.shadow else 1)
    width *= 2 if config.guidance else 1
    if spec.model.router_trace is not None:
        width += num_columns(model_config.num_layers)
    if not spec.draft.takes_params:
        _check_draft_once(spec, width)
    elif draft_params is not None:
        check_draft_fn(spec, draft_params, width)


@functools.lru_cache(maxsize=64)
def _check_draft_once(spec: DecodeSpec, hidden_width: int) -> None:
    check_draft_fn(spec, None, hidden_width)
