"""LLaDA's remasking rules: an even share of a block's masks in every step."""

from jaxdave.policies.block import Clock, even_split, scheduled
from jaxdave.policies.checks import check_count
from jaxdave.policies.common import named, uniforms
from jaxdave.policies.spans import Span, Told, same, top
from jaxdave.types import Policy, View


def low_confidence(steps: int = 128) -> Policy:
    """The most confident tokens first, a block's masks shared evenly among its steps.

    commit the n_k best by c_i, n_k = m // steps and one more in the first m % steps
    steps, m the masks that the block began with. steps: per block. Source: LLaDA
    (arXiv 2502.09992, generate.py). Deviations: at least one token a step, so more
    steps than masks are as many as masks; above temperature 0 the confidence is of the
    tempered distribution. Raises ValueError below 1.
    """
    check_count(128, steps=steps)

    def choose(view: View, clock: Clock, told: Told) -> Span:
        return top(view, even_split(clock.masks, steps, clock), told.score)

    return scheduled(named("low_confidence", steps=steps), choose)


def random(steps: int = 128) -> Policy:
    """Random positions first, a block's masks shared evenly among its steps.

    commit the n_k best by c_i ~ U(0, 1); n_k and deviations as in `low_confidence`.
    Source: LLaDA (generate.py, remasking="random"). Raises ValueError below 1.
    """
    check_count(128, steps=steps)

    def choose(view: View, clock: Clock, told: Told) -> Span:
        drawn = same(uniforms(view))
        return top(view, even_split(clock.masks, steps, clock), drawn)

    return scheduled(named("random", steps=steps), choose)
