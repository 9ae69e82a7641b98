"""As many tokens as are sure enough: Fast-dLLM's rules."""

import jax.numpy as jnp

from jaxdave.policies.common import best, check_share, log_odds, looking
from jaxdave.types import Policy


def threshold(threshold: float = 0.9) -> Policy:
    """Every token whose probability is at least `threshold`, and always the best one.

    commit i with c_i >= threshold. Source: Fast-dLLM (arXiv 2505.22618; `>=`). Raises
    ValueError outside 0..1.
    """
    check_share(0.9, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))
    return looking(
        f"threshold({threshold})",
        lambda view: best(view, 1, view.pred.score) | (view.pred.score >= bound),
    )
