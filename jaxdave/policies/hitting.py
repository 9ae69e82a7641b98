"""The first-hitting sampler."""

from jaxdave.policies.common import best, uniforms
from jaxdave.policies.spans import looking, same
from jaxdave.types import Policy


def first_hitting() -> Policy:
    """One random masked position a step, every one as likely as the others.

    With k masks left the next event is at t u^(1/k), u ~ U(0, 1), at a uniformly random
    position: the exact law of a masked diffusion in one call per token. Use it with
    temperature 1. Source: first-hitting sampler (arXiv 2409.02908; BD3-LM). The time
    itself is not drawn, as the models do not see it.
    """
    choose = lambda view, told: same(best(view, 1, uniforms(view)))  # noqa: E731
    return looking("first_hitting()", choose)
