"""A fixed number of tokens a step, by confidence or from the left."""

import jax.numpy as jnp

from jaxdave.policies.checks import check_count
from jaxdave.policies.common import best
from jaxdave.policies.spans import Span, Told, looking, same, top
from jaxdave.types import Policy, View


def static(tokens_per_step: int = 1) -> Policy:
    """The most confident tokens first, a fixed number a step.

    With 1, the paper's oracle path (FreeDave section 3; LLaDA's low-confidence
    remasking). A step stays inside its block. Raises ValueError below 1.
    """
    check_count(1, tokens_per_step=tokens_per_step)

    def choose(view: View, told: Told) -> Span:
        return top(view, tokens_per_step, told.score)

    return looking(f"static({tokens_per_step})", choose)


def left_to_right(tokens_per_step: int = 1) -> Policy:
    """The leftmost tokens first, a fixed number a step.

    FreeDave's alg_temp=-1 without a threshold. Raises ValueError below 1.
    """
    check_count(1, tokens_per_step=tokens_per_step)

    def choose(view: View, told: Told) -> Span:
        return same(best(view, tokens_per_step, jnp.zeros_like(view.pred.score)))

    return looking(f"left_to_right({tokens_per_step})", choose)
