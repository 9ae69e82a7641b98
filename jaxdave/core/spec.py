"""The functions and fixed sizes of a decode, as one frozen record."""

import dataclasses

from jaxdave.core.config import SamplingConfig
from jaxdave.core.draft_api import DraftFn
from jaxdave.core.model_api import ModelFns
from jaxdave.core.policy_api import Policy
from jaxdave.core.state import RuntimeParams, default_runtime_params
from jaxdave.core.window import WindowLayout


@dataclasses.dataclass(frozen=True, eq=False)
class DecodeSpec:
    """The functions and fixed sizes that a decode is compiled from.

    sizes: how many drafts a call may carry, ascending; draft_steps: how many this one
    does. exact: rows are computed one after another by one body of fixed shape, so a
    row's bits do not depend on its neighbours; otherwise side by side. guarded: side by
    side, and what is too close to call is computed again, as under exact.
    """

    model: ModelFns
    layout: WindowLayout
    policy: Policy
    draft: DraftFn
    sampling: SamplingConfig
    draft_steps: int
    exact: bool
    guarded: bool = False
    draft_lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.draft_lengths:
            object.__setattr__(self, "draft_lengths", (self.draft_steps,))

    @property
    def max_drafts(self) -> int:
        """Drafts of the largest call."""
        return self.draft_lengths[-1]

    @property
    def window_used(self) -> int:
        """How much of the window calls of this size make use of."""
        return self.layout.used_length(self.draft_steps)

    @property
    def num_states(self) -> int:
        """States that a call evaluates."""
        branching = self.policy.scoring
        return self.draft_steps * (1 if branching is None else branching.count)

    def runtime(self, cap: int, calls: int = 0) -> RuntimeParams:
        """Terms by which nothing is doubted and all sizes cost the same."""
        return default_runtime_params(cap, calls, len(self.draft_lengths))
