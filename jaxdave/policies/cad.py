"""CD4LM's confidence-adaptive decoding: the confident tokens, a few at most."""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.common import count, log_odds, order_by_counts, policy_name
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    at_least,
    increasing,
    interval_policy,
    select_best,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import block_counts, check_count, check_share


@register
def cad(threshold: float = 0.8, min_tokens: int = 1, max_tokens: int = 4) -> Policy:
    """As many best tokens as are confident, but not more than a few.

    Commit the k best by c_i, k = min(max(#{i: c_i >= threshold}, min_tokens),
    max_tokens).

    Args:
        threshold: The probability from which a token is confident, in 0..1.
        min_tokens: Tokens of a step at the least, at least 1.
        max_tokens: Tokens of a step at the most, at least `min_tokens`.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: CD4LM, arXiv 2601.02236 (yihao-liang/CDLM,
    scripts/LLaDA_generate_dynamic.py, `generate_block`; its defaults). Deviations: end
    tokens are not held back for the first half of the length asked for, which is a
    bound here and no length (`demote` commits them last); a block is not filled after a
    number of steps, which by default is that of its tokens and never reached; choices
    by entropy are `entropy_bounded`'s.

    Example:
        >>> cad(max_tokens=2).name
        'cad(threshold=0.8, min_tokens=1, max_tokens=2)'
    """
    check_share(0.8, threshold=threshold)
    check_count(1, min_tokens=min_tokens)
    check_count(4, max_tokens=max_tokens)
    if max_tokens < min_tokens:
        raise ValueError(
            f"max_tokens={max_tokens} must be at least min_tokens={min_tokens}"
        )
    bound = jnp.float32(log_odds(threshold))

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        def how_many(is_sure_W: jax.Array) -> jax.Array:
            sure = count(is_sure_W & view.open_W)
            return jnp.clip(sure, min_tokens, max_tokens)

        number = increasing(how_many, at_least(values.score, bound))
        return select_best(view.open_W, number, values.score)

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        # Steps take the most while as many are sure, then what is left of those, then
        # the least.
        sure = count(view.open_W & (view.pred.score >= bound))
        step_W = jnp.arange(view.open_W.shape[0], dtype=jnp.int32)
        count_W = jnp.clip(sure - step_W * max_tokens, min_tokens, max_tokens)
        return order_by_counts(view.open_W, view.pred.score, count_W)

    name = policy_name(
        "cad", threshold=threshold, min_tokens=min_tokens, max_tokens=max_tokens
    )
    return interval_policy(name, choose)._replace(
        commit_order=commit_order,
        counts=block_counts(min_tokens=(min_tokens, 1), max_tokens=(max_tokens, 4)),
    )
