"""The first-hitting sampler: one random position a step."""

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import best_positions, position_uniforms
from jaxdave.policies.intervals import Interval, IntervalView, interval_policy, point
from jaxdave.policies.registry import register


@register
def first_hitting() -> Policy:
    """One random masked position a step, every one as likely as the others.

    With k masks left the next event is at t u^(1/k), u ~ U(0, 1), at a uniformly random
    position: the exact law of a masked diffusion in one call per token. Use it with
    temperature 1. The time itself is not drawn, as the models do not see it.

    Returns:
        The policy.

    Source: first-hitting sampler (arXiv 2409.02908; BD3-LM).
    """

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        # The largest of independent uniform numbers is at a uniformly random position.
        return point(best_positions(view, 1, position_uniforms(view)))

    policy = interval_policy("first_hitting()", choose)
    return policy._replace(tokens_per_step=1, draws=True)
