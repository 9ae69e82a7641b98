"""What decides a decode, and how its model is loaded, as two frozen records.

`DecodeConfig` and `LoadConfig` are the one list of settings: the options of the command
line and their help, the evaluation's settings, the arguments of lm-evaluation-harness
and the keywords of the decoders are all made from their fields. This module imports no
JAX, so that `jaxdave --help` is quick.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from jaxdave.core.config import (
    ModelConfig,
    Numerics,
    SamplingConfig,
    check_guidance_scale,
)
from jaxdave.core.decode_defaults import DecodeDefaults
from jaxdave.drafting import registry as draft_registry
from jaxdave.engine.config_record import ConfigRecord, option_field
from jaxdave.runtime.mesh_shape import parse_mesh

if TYPE_CHECKING:
    from jaxdave.core.policy_api import Policy

METHODS = ("freedave", "static", "threshold")
CONFIDENCES = ("tempered", "plain")
PLAIN_CONFIDENCE_FAMILIES = ("llada", "llada-moe")
"""Families whose official code takes confidences from logits without temperature."""
NUMERICS = tuple(str(numerics) for numerics in Numerics)
CACHE_RULES = ("none", "prefix", "dual")
MAX_DRAFT_STEPS = 32
_LONGEST_ANSWER = 2**20
DEFAULT_THRESHOLD = 0.9
_MAX_SEED = 2**31 - 1

DraftSteps = int | tuple[int, ...] | Literal["auto"]
"""Drafts of every call; or numbers among which the loop chooses; or "auto"."""


def parse_draft_steps(text: str) -> int | Literal["auto"]:
    """The draft steps that a word stands for.

    Args:
        text: A whole number, or "auto".

    Returns:
        The number, or "auto".

    Raises:
        ValueError: The text is anything else.
    """
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"draft_steps={text!r} must be a whole number from 1 on, or 'auto'"
        ) from None


def check_batch_size(batch_size: int) -> None:
    """Check how many prompts a caller decodes together.

    Args:
        batch_size: The number of rows of a batch.

    Raises:
        ValueError: It is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1; try 8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadConfig(ConfigRecord):
    """Which model is loaded, and at which precision.

    Attributes:
        model: A packaged model, a folder, or a Hub id "owner/name"; None: "sdar-1m".
        dtype: Of the parameters, "float32", "bfloat16" or "float16", whatever the files
            hold.
        quantize: "int8" or "fp8" keeps matrices in 8 bits, which is a model of its own;
            or None.
        mesh: Devices, as "data=2,model=4": rows of a batch are split over the first
            number, and each copy of the weights over the second; "expert=4" splits the
            experts of a mixture. None: one device.

    Raises:
        ValueError: The mesh is no such text.
    """

    model: str | None = option_field(
        None, "Folder or Hub id (owner/name); by default the packaged demo."
    )
    dtype: str = option_field("float32", "float32, bfloat16 or float16.")
    quantize: str | None = option_field(
        None, "int8 or fp8: matrices in 8 bits, a model of its own."
    )
    mesh: str | None = option_field(
        None, "data=2,model=4: rows over 2 groups of 4 devices that share the weights."
    )

    def __post_init__(self) -> None:
        if self.mesh is not None:
            parse_mesh(self.mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig(ConfigRecord):
    """Everything that decides a decode beside the model and the prompt.

    Attributes:
        method: "freedave" verifies drafts; "static" and "threshold" decode without.
        draft_steps: Drafts of every call, 1 to 32; several such numbers, ascending,
            among which each call's is chosen by the time that calls take and the share
            of drafts that are accepted; or "auto", which chooses the numbers as well.
        tokens_per_step: Tokens that a step of the static policy commits; None: 1.
        threshold: A step commits every token whose probability is at least this; with
            method "freedave" as well. None: 0.9 for method "threshold", else unused.
        policy: The rule that says what a step commits, in place of the two settings
            above: text such as "entropy:steps=16" (`policies.parse`), or a `Policy`.
            None: as those settings say, or else the model's (`DecodeDefaults`), which
            is the most confident token where its authors ship no other.
        cache: "none", "prefix" or "dual" for full-attention models (None: the model's,
            or "dual"); block-causal models take None.
        guidance: Scale of classifier-free guidance, 0 (off) or more; full attention.
        no_stop: Never predict any of the model's end tokens.
        logits_eos_inf: Never predict the end of a text (`ModelConfig.eos_id`); the end
            of a turn still ends an answer. LLaDA's option of that name.
        stop_last: Positions that hold an end token are the least confident of their
            block, as LLaDA describes its next option; other confidences stay.
        confidence_eos_eot_inf: All confidences are of the distribution without the end
            tokens, and positions that hold one come last, as LLaDA's code computes its
            option of that name at temperature 0. (Above, that code leaves out the end
            of a turn only.)
        no_early_exit: Decode the whole room after an end token too, as FreeDave's code
            does unless told otherwise. The text is cut at the end token all the same,
            and is that of a decode which ends there, unless the policy takes tokens
            back (`Policy.revises`): it may change its mind about what an end token
            would have ended. Calls, steps and drafts are those of the whole room.
        record_steps: Record of every token the policy step that committed it and its
            log-probability then (`Completion.trajectory`), of one that was replaced the
            last step. It needs a policy that does not weigh candidates.
        draft: The draft function: a name (`jaxdave.drafting.registry`), such as "tree",
            "nested" or "copy", or a draft function itself.
        lossy: Allow policies that speculate with the text and do not verify.
        block_length: Positions of a block; None: the model's.
        max_new_tokens: Tokens of an answer at most; None: the model's, or 256. The text
            of a block-causal model is the beginning of the text with more, as blocks
            are decoded whole. Under full attention the whole text depends on it, as
            every token sees all positions.
        temperature: 0 takes the best token; above, tokens are drawn. None: the model's,
            or 0.
        top_k: Draw from the best k tokens only; 0: off. None: the model's, or 0.
        top_p: Draw from the best tokens of this much probability only; 1: off. None:
            the model's, or 1.
        confidence: At a temperature, confidences are those of the distribution that is
            drawn from ("tempered", as in Dream's, SDAR's and FreeDave's code) or of
            temperature 1 ("plain", as in LLaDA's and in Fast-dLLM's for LLaDA); None:
            as the code of the model's family has it.
        seed: Keys the noise at a temperature, 0 to 2**31 - 1.
        numerics: "guarded" (batched, too close calls are decided again), "exact" (a
            row's bits depend on nothing beside it) or "fast" (no promise). None:
            "guarded", and "exact" for a mixture of experts.
        suppressed_ids: Token ids that are never predicted.

    Raises:
        ValueError: A value is out of range, or two exclude each other.

    Example:
        >>> DecodeConfig(max_new_tokens=64, threshold=0.9).method
        'freedave'
    """

    method: str = option_field("freedave", ", ".join(METHODS))
    draft_steps: DraftSteps = option_field(
        "auto",
        "States checked per call, or auto: chosen call by call.",
        type=int | Literal["auto"],
        parse=parse_draft_steps,
    )
    tokens_per_step: int | None = option_field(
        None, "Tokens that one step of the policy commits: 1."
    )
    threshold: float | None = option_field(
        None, "Commit all tokens this sure (0.9); with freedave as well."
    )
    policy: "str | Policy | None" = option_field(
        None,
        "NAME[:key=value,...]; see `jaxdave policies`. As the model's authors have it.",
        type=str | None,
    )
    cache: str | None = option_field(None, "none, prefix or dual, for full attention.")
    guidance: float = option_field(0.0, "Classifier-free guidance; 0 is off.")
    no_stop: bool = option_field(False, "Never predict any end token.")
    logits_eos_inf: bool = option_field(
        False, "Never predict the end of a text; that of a turn still ends (LLaDA)."
    )
    stop_last: bool = option_field(
        False, "Positions of end tokens are a block's least confident."
    )
    confidence_eos_eot_inf: bool = option_field(
        False, "Confidences leave end tokens out (LLaDA)."
    )
    no_early_exit: bool = option_field(
        False, "Decode the whole room after an end token too; the text is cut there."
    )
    record_steps: bool = option_field(
        False, "Record the policy step and log-probability of every token (in JSON)."
    )
    draft: Any = option_field(
        "tree",
        "tree (nested where the model is not calibrated), nested, copy (tree, and "
        "what the text repeats), or another; see `jaxdave drafts`.",
        type=str,
    )
    lossy: bool = option_field(False, "Allow policies that speculate unverified.")
    block_length: int | None = option_field(None, "The model's.")
    max_new_tokens: int | None = option_field(
        None, "Room for the answer; the model's, or 256."
    )
    temperature: float | None = option_field(None, "0 is greedy; the model's, or 0.")
    top_k: int | None = option_field(None, "0 is off; the model's, or 0.")
    top_p: float | None = option_field(None, "1 is off; the model's, or 1.")
    confidence: str | None = option_field(
        None, "tempered or plain (of temperature 1); as the model's family has it."
    )
    seed: int = option_field(0, "Of the noise at a temperature.")
    numerics: str | None = option_field(
        None, "guarded, exact or fast; guarded, and exact for a mixture of experts."
    )
    suppressed_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_names(self)
        _check_draft_steps(self)
        _check_ranges(self)
        _check_combinations(self)

    def sampling(self, family: str | None = None) -> SamplingConfig:
        """Temperature, filters and what confidences are of.

        Args:
            family: The model's, whose code decides where `confidence` is None.

        Returns:
            The settings of sampling.
        """
        default = "plain" if family in PLAIN_CONFIDENCE_FAMILIES else "tempered"
        is_plain = (self.confidence or default) == "plain"
        return SamplingConfig(
            0.0 if self.temperature is None else self.temperature,
            0 if self.top_k is None else self.top_k,
            1.0 if self.top_p is None else self.top_p,
            is_plain,
        )

    @property
    def is_by_threshold(self) -> bool:
        """True where a step commits all tokens above a threshold."""
        return self.threshold is not None or self.method == "threshold"

    def with_defaults(
        self, defaults: DecodeDefaults, model_config: ModelConfig
    ) -> "DecodeConfig":
        """The same decode with a model's defaults in the place of what is left open.

        Args:
            defaults: The model's.
            model_config: The model.

        Returns:
            The configuration.
        """
        changes: dict[str, Any] = {
            name: getattr(defaults, name)
            for name in ("cache", "temperature", "top_k", "top_p")
            if getattr(self, name) is None
        }
        is_open = self.policy is None and self.tokens_per_step is None
        if is_open and not self.is_by_threshold and defaults.policy is not None:
            length = self.block_length or model_config.block_length
            changes["policy"] = defaults.policy.format(block_length=length)
        if defaults.is_one_block and self.block_length is None:
            changes["block_length"] = self.max_new_tokens
        return dataclasses.replace(self, **changes)

    def make_policy(self) -> "Policy":
        """The policy that these settings name.

        Raises:
            ValueError: There is no such policy, or a parameter of it is out of range.
        """
        from jaxdave import policies
        from jaxdave.core.policy_api import Policy

        if isinstance(self.policy, Policy):
            return self.policy
        if isinstance(self.policy, str):
            return policies.parse(self.policy)
        if self.policy is not None:
            from jaxdave.policies.validation import check_policy

            check_policy(self.policy)
            return self.policy
        if self.is_by_threshold:
            rule = DEFAULT_THRESHOLD if self.threshold is None else self.threshold
            return policies.threshold(rule)
        return policies.static(
            1 if self.tokens_per_step is None else self.tokens_per_step
        )

    def with_policy(self, policy: "str | Policy") -> "DecodeConfig":
        """The same decode over another policy.

        Args:
            policy: As the field; it takes the place of every other setting that says
                what a step commits.

        Returns:
            The changed configuration, with drafts only if this one has some.
        """
        return dataclasses.replace(
            self,
            policy=policy,
            method="freedave" if self.method == "freedave" else "static",
            threshold=None,
            tokens_per_step=None,
        )

    def undrafted(self) -> "DecodeConfig":
        """The decode over the same policy without drafts, which has the same text."""
        method = "threshold" if self.is_by_threshold else "static"
        return dataclasses.replace(self, method=method)

    def drafted(self) -> "DecodeConfig":
        """The decode over the same policy with drafts, which has the same text."""
        threshold = self.threshold
        if self.method == "threshold" and threshold is None:
            threshold = DEFAULT_THRESHOLD
        return dataclasses.replace(self, method="freedave", threshold=threshold)


def _check_names(c: DecodeConfig) -> None:
    if c.method not in METHODS:
        raise ValueError(f"method {c.method!r} is unknown; use {', '.join(METHODS)}")
    if isinstance(c.draft, str):
        draft_registry.check_name(c.draft)
    if c.numerics is not None and c.numerics not in NUMERICS:
        raise ValueError(
            f"numerics={c.numerics!r} is unknown; use one of {', '.join(NUMERICS)}"
        )
    if c.confidence is not None and c.confidence not in CONFIDENCES:
        raise ValueError(
            f"confidence={c.confidence!r} is unknown; use one of "
            f"{', '.join(CONFIDENCES)}"
        )
    if c.cache is not None and c.cache not in CACHE_RULES:
        raise ValueError(
            f"cache={c.cache!r} is unknown; use one of {', '.join(CACHE_RULES)}"
        )


def _check_draft_steps(c: DecodeConfig) -> None:
    steps = c.draft_steps
    if steps == "auto":
        return
    if isinstance(steps, int) and steps < 1:
        raise ValueError(f"draft_steps={steps} must be at least 1; try 8")
    numbers = (steps,) if isinstance(steps, int) else tuple(steps)
    if not numbers or numbers != tuple(sorted(set(numbers))):
        raise ValueError(
            f"draft_steps={steps} must ascend; e.g. (1, 4, 8), or say 'auto'"
        )
    if not (1 <= numbers[0] and numbers[-1] <= MAX_DRAFT_STEPS):
        raise ValueError(
            f"draft_steps={steps} must be in 1..{MAX_DRAFT_STEPS}, or 'auto'"
        )
    if len(numbers) > 1 and c.numerics == Numerics.EXACT:
        raise ValueError(
            f"draft_steps={steps} needs programs that exact numerics tell apart; give "
            "one number, or use guarded numerics"
        )


def _check_ranges(c: DecodeConfig) -> None:
    if not 0 <= c.seed <= _MAX_SEED:
        raise ValueError(f"seed={c.seed} must be in 0..{_MAX_SEED}; choose another")
    if c.max_new_tokens is not None and c.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={c.max_new_tokens} must be at least 1")
    check_guidance_scale(c.guidance)
    if c.max_new_tokens is not None and c.max_new_tokens > _LONGEST_ANSWER:
        raise ValueError(
            f"max_new_tokens={c.max_new_tokens} must be at most {_LONGEST_ANSWER}"
        )
    c.sampling()  # checks temperature, top_k and top_p


def _check_combinations(c: DecodeConfig) -> None:
    if c.threshold is not None and c.method == "static":
        raise ValueError(
            f"threshold={c.threshold} has no meaning with method 'static'; "
            "use --method threshold or leave it out"
        )
    _check_end_tokens(c)
    if c.policy is not None and (c.is_by_threshold or c.tokens_per_step is not None):
        name = c.policy if isinstance(c.policy, str) else c.policy.name
        raise ValueError(
            f"policy={name!r} says what a step commits, so leave out "
            "--method threshold, --threshold and --tokens-per-step"
        )
    if c.tokens_per_step is not None and c.is_by_threshold:
        raise ValueError(
            f"tokens_per_step={c.tokens_per_step} has no meaning with a threshold, "
            "which decides how many; leave one of them out"
        )


def _check_end_tokens(c: DecodeConfig) -> None:
    """Two settings that say the same of end tokens, or opposite things."""
    for one, other, reason in (
        ("no_stop", "stop_last", "forbids end tokens, which the other orders"),
        ("no_stop", "confidence_eos_eot_inf", "forbids what the other orders"),
        ("no_stop", "logits_eos_inf", "forbids all that the other forbids"),
        ("stop_last", "confidence_eos_eot_inf", "is another reading of the other"),
    ):
        if getattr(c, one) and getattr(c, other):
            flags = (f"--{name.replace('_', '-')}" for name in (one, other))
            raise ValueError(
                f"{one}=True {reason}, {other}=True; "
                f"leave one of {' and '.join(flags)} out"
            )
