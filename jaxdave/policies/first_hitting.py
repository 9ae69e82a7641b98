"""The first-hitting sampler."""

from jaxdave.core.policy_api import Policy
from jaxdave.policies.common import best_positions, position_uniforms
from jaxdave.policies.intervals import interval_policy, point
from jaxdave.policies.registry import register


@register
def first_hitting() -> Policy:
    """One random masked position a step, every one as likely as the others.

    With k masks left the next event is at t u^(1/k), u ~ U(0, 1), at a uniformly random
    position: the exact law of a masked diffusion in one call per token. Use it with
    temperature 1. Source: first-hitting sampler (arXiv 2409.02908; BD3-LM). The time
    itself is not drawn, as the models do not see it.
    """
    choose = lambda view, told: point(best_positions(view, 1, position_uniforms(view)))  # noqa: E731
    return interval_policy("first_hitting()", choose)
