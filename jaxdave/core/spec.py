"""What a decode is compiled from: functions and fixed sizes, as one frozen record."""

import dataclasses
from collections.abc import Callable

from jaxdave.core.config import Numerics, SamplingConfig
from jaxdave.core.draft_api import DraftFn
from jaxdave.core.model_api import ModelFns
from jaxdave.core.policy_api import Policy
from jaxdave.core.state import RuntimeParams, default_runtime_params
from jaxdave.core.window import WindowLayout


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DecodeSpec:
    """The functions and fixed sizes that a decode is compiled from.

    Two specs are equal only if they are one object, as each owns compiled programs.

    Attributes:
        model: The model's functions.
        layout: Geometry of blocks and window.
        policy: The rule that says what a step commits.
        draft: The draft function.
        sampling: Temperature and filters.
        draft_steps: How many drafts a call may carry, ascending. One number, or several
            among which the loop chooses before every call.
        num_drafts: How many drafts the calls traced with this spec carry, one of
            `draft_steps`.
        numerics: Under exact numerics rows are computed one after another by one body
            of fixed shape, so that a row's bits do not depend on its neighbours;
            otherwise side by side. Under guarded numerics decisions that are too close
            to call are evaluated again in that trusted shape.
        records_steps: Record the policy step and the log-probability of every token.
        on_parts: num_parts -> the same decode of a model that is split over so many
            devices; None: it cannot be split.
    """

    model: ModelFns
    layout: WindowLayout
    policy: Policy
    draft: DraftFn
    sampling: SamplingConfig
    draft_steps: tuple[int, ...]
    num_drafts: int
    numerics: Numerics
    records_steps: bool = False
    on_parts: Callable[..., "DecodeSpec"] | None = None

    @property
    def used_length(self) -> int:
        """How much of the window calls with `num_drafts` drafts make use of."""
        return self.layout.used_length(self.num_drafts)

    @property
    def steps_per_position(self) -> int:
        """Bound on the steps of a decode for each of its positions."""
        # A block takes no more steps than it has masks, but for its post steps.
        return 1 + -(-(self.policy.max_post_steps or 0) // self.layout.block_length)

    @property
    def num_states(self) -> int:
        """States that a call evaluates: all candidates of all drafts."""
        scoring = self.policy.scoring
        return self.num_drafts * (1 if scoring is None else scoring.count)

    def with_num_drafts(self, num_drafts: int) -> "DecodeSpec":
        """This spec for calls of another draft length.

        Args:
            num_drafts: Drafts of a call, one of `draft_steps`.

        Returns:
            A spec that differs in `num_drafts` only.
        """
        return dataclasses.replace(self, num_drafts=num_drafts)

    def runtime(self, max_num_drafts: int, max_calls: int = 0) -> RuntimeParams:
        """Runtime parameters before anything is measured (see `RuntimeParams`).

        Args:
            max_num_drafts: How many drafts of a call may be used.
            max_calls: Rounds of the loop at most.

        Returns:
            Parameters as host arrays.
        """
        return default_runtime_params(max_num_drafts, max_calls, len(self.draft_steps))
