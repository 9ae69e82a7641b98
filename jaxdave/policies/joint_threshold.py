"""LLaDA2.1's rule: confident masks are filled, and tokens that are doubted replaced.

LLaDA2.0 fills masks by a threshold, as `low_confidence_dynamic` does (steps=32,
threshold=0.95). LLaDA2.1 also compares every token that it has decoded in the block
with what the model predicts there now: mask-to-token (M2T) and token-to-token (T2T).
"""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.core.prediction import ErrorBound
from jaxdave.policies.common import fill_positions, log_odds, policy_name
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    above,
    bounded_view,
    exact_view,
    intersection,
    is_decided,
    point,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_count, check_post_steps, check_share

MAX_POST_STEPS = 16
"""What LLaDA2.1 and its servers allow a block after its last mask."""


@register
def joint_threshold(
    threshold: float = 0.95,
    editing_threshold: float = 0.9,
    max_post_steps: int = MAX_POST_STEPS,
    num_to_transfer: int = 1,
) -> Policy:
    """Masks surer than `threshold`, or the best; decoded tokens doubted are replaced.

    By one prediction, at once: commit masked i with c_i > threshold, if those are fewer
    than num_to_transfer the num_to_transfer best (M2T); replace decoded i of the block,
    not of the prompt, whose predicted token is another with c_i > editing_threshold
    (T2T). A block without masks takes post steps of T2T alone, until one replaces
    nothing or max_post_steps were taken.

    Args:
        threshold: Probability above which a mask is filled, in 0..1.
        editing_threshold: Probability above which a token is replaced, in 0..1.
        max_post_steps: Post steps of a block at most; 0: it ends with its last mask.
        num_to_transfer: Masks that a step fills at least.

    Returns:
        The policy, which edits (`Policy.max_post_steps`).

    Raises:
        ValueError: A parameter is out of range.

    Source: LLaDA2.1 (arXiv 2602.08676; `generate` of its modeling_llada2_moe.py, and
    SGLang's JointThreshold, which are alike: both comparisons strict, both rules by the
    same prediction of the block, post steps counted before they are evaluated). The
    defaults are those of `generate`; `llada2_s` and `llada2_q` are what it recommends.
    Deviations: equal confidences go to the lowest position; the mask is never
    predicted.

    Example:
        >>> joint_threshold(0.5, 0.0).max_post_steps
        16
    """
    check_share(0.95, threshold=threshold)
    check_share(0.9, editing_threshold=editing_threshold)
    check_post_steps(max_post_steps, MAX_POST_STEPS)
    check_count(1, num_to_transfer=num_to_transfer)
    bound = jnp.float32(log_odds(threshold))
    editing_bound = jnp.float32(log_odds(editing_threshold))

    def fills(view: PolicyView, values: IntervalView) -> Interval:
        # Both sets are the best masks up to some rank, so the larger is their union.
        top = select_top(view, num_to_transfer, values.score)
        return union(above(values.score, bound), top)

    def replaces(view: PolicyView, values: IntervalView) -> Interval:
        is_doubted_W = view.decoded_W & (view.pred.token != view.tokens_W)
        return intersection(point(is_doubted_W), above(values.score, editing_bound))

    def step(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        values = exact_view(view.pred)
        filled_W = fill_positions(view, fills(view, values).low)
        replaced_W = replaces(view, values).low
        return jnp.where(replaced_W, view.pred.token, filled_W), memory

    def is_certain(
        view: PolicyView, memory: Memory, error_bound: ErrorBound
    ) -> jax.Array:
        # That no decoded position is predicted another token is certified apart, as it
        # is for masks.
        values = bounded_view(view.pred, error_bound)
        edits = replaces(view, values)
        return is_decided(view, fills(view, values)) & jnp.all(edits.low == edits.high)

    name = policy_name(
        "joint_threshold",
        threshold=threshold,
        editing_threshold=editing_threshold,
        max_post_steps=max_post_steps,
        num_to_transfer=num_to_transfer,
    )
    return Policy(name, step, is_certain=is_certain, max_post_steps=max_post_steps)


@register
def llada2_s(max_post_steps: int = MAX_POST_STEPS) -> Policy:
    """LLaDA2.1's Speedy Mode: `joint_threshold` of 0.5, and every doubted token goes.

    Args:
        max_post_steps: As for `joint_threshold`.

    Returns:
        The policy of `joint_threshold(0.5, 0.0, max_post_steps)`.

    Raises:
        ValueError: `max_post_steps` is out of range.

    Source: LLaDA2.1 (arXiv 2602.08676, S Mode; its README).
    """
    name = policy_name("llada2_s", max_post_steps=max_post_steps)
    return joint_threshold(0.5, 0.0, max_post_steps)._replace(name=name)


@register
def llada2_q(max_post_steps: int = MAX_POST_STEPS) -> Policy:
    """LLaDA2.1's Quality Mode: `joint_threshold` of 0.7, edits above 0.5.

    Args:
        max_post_steps: As for `joint_threshold`.

    Returns:
        The policy of `joint_threshold(0.7, 0.5, max_post_steps)`.

    Raises:
        ValueError: `max_post_steps` is out of range.

    Source: LLaDA2.1 (arXiv 2602.08676, Q Mode; its README).
    """
    name = policy_name("llada2_q", max_post_steps=max_post_steps)
    return joint_threshold(0.7, 0.5, max_post_steps)._replace(name=name)
