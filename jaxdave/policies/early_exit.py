"""Prophet and SchED: a block is filled at once when its masks have become clear.

SchED's bound, with t = i / (steps - 1): tau = tau_low + (tau_high - tau_low) w, w =
(1 + cos(pi t)) / 2 ("cosine"), 1 - t ("linear") or exp(-k t) ("exp"). Source: SchED
(amr-mohamedd/SchED, its defaults). Deviations: logits are the tempered ones, and above
temperature 0 the tokens are the sampled ones; steps and masks are those of the block;
the statistic is the mean.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.block_rules import (
    BlockClock,
    block_interval_policy,
    even_split,
    scheduled_policy,
)
from jaxdave.policies.common import count, policy_name, tree_mean
from jaxdave.policies.dream import (
    EPS,
    negative_entropy,
    time_count,
    time_shares_checked,
)
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    at_least,
    increasing,
    intersection,
    point,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import (
    check_amount,
    check_choice,
    check_count,
    check_share,
)

MODES = ("cosine", "linear", "exp")


@register
def prophet(
    steps: int = 256,
    early: float = 7.5,
    mid: float = 5.0,
    late: float = 2.5,
    answer_start: int = -1,
    answer_length: int = 5,
) -> Policy:
    """LLaDA's rule until the answer is clear enough for how far decoding is; then all.

    If the mean of (best logit - second logit) over the answer's positions >= early,
    mid or late (for k / steps < 1/3, < 2/3, else), fill the block; otherwise step as
    `low_confidence`. The answer: `answer_length` places from the generated position
    `answer_start` on; -1: every masked position, as SchED's copy of the rule takes it.
    steps: per block. Source: Prophet (arXiv 2508.19982). Deviations: logits are the
    tempered ones; the step fills its block only, and an answer that does not lie in the
    block does not end it. Raises ValueError for a parameter out of range.
    """
    check_count(256, steps=steps)
    check_count(5, answer_length=answer_length)
    check_amount(5.0, early=early, mid=mid, late=late)
    if answer_start < -1:
        raise ValueError(f"answer_start={answer_start} must be -1 (all masks) or more")

    def choose(view: PolicyView, clock: BlockClock, told: IntervalView) -> Interval:
        third = jnp.minimum(3 * clock.index // steps, 2)
        needed = jnp.asarray([early, mid, late], jnp.float32)[third]
        # A mean rises with what it is of.
        gap = increasing(
            lambda a: _answer(view, a, answer_start, answer_length), told.gap
        )
        some = even_split(clock.masks, steps, clock)
        return union(select_top(view, some, told.score), at_least(gap, needed))

    name = policy_name(
        "prophet", steps=steps, early=early, mid=mid, late=late,
        answer_start=answer_start, answer_length=answer_length,
    )  # fmt: skip
    return scheduled_policy(name, choose)


@register
def sched(
    steps: int = 128,
    tau_high: float = 7.5,
    tau_low: float = 2.5,
    mode: str = "cosine",
    k: float = 4.0,
    min_progress: float = 0.0,
    patience: int = 0,
    max_change_ratio: float = 0.0,
    eps: float = EPS,
) -> Policy:
    """Dream's `entropy` until the masks are clear for a falling bound; then all.

    Fill the block if the mean of (best logit - second logit) over the masks >= tau (see
    this module), at least min_progress of the block is committed, and for more than
    `patience` steps in a row no more than max_change_ratio of the masks changed their
    token; otherwise step as `entropy`. Memory: the last tokens, and for how many steps
    they kept. Source and deviations: see this module. Raises ValueError for a parameter
    out of range.
    """
    name = policy_name("sched", **locals())  # all parameters, in their order
    shares = time_shares_checked(steps, eps)
    check_amount(0.0, k=k, patience=patience)
    check_share(0.0, min_progress=min_progress, max_change_ratio=max_change_ratio)
    bounds = _bounds(steps, tau_high, tau_low, mode, k)

    def decide(view: PolicyView, clock: BlockClock, memory: Memory, told: IntervalView):
        then_W, steady = memory
        keeps = _keeps(view, then_W, min_progress, max_change_ratio)
        steady = jnp.where(keeps, steady + 1, 0)
        needed = jnp.asarray(bounds)[jnp.minimum(clock.index, steps - 1)]
        gap = increasing(lambda gap_W: tree_mean(gap_W, view.open_W), told.gap)
        clear = intersection(at_least(gap, needed), point(steady > patience))
        some = time_count(view, shares, clock)
        choice = union(select_top(view, some, negative_entropy(told)), clear)
        return choice, (view.pred.token, steady)

    return block_interval_policy(name, decide, _unseen)


def _unseen(size: int, width: int) -> Memory:
    """No tokens yet, kept for no steps."""
    return jnp.full(size, -1, jnp.int32), jnp.int32(0)


def _answer(view: PolicyView, gap_W: jax.Array, start: int, length: int) -> jax.Array:
    """The mean logit gap over an answer; -inf where the block does not hold it."""
    if start < 0:
        return tree_mean(gap_W, view.open_W)
    answer_W = (view.position_W >= start) & (view.position_W < start + length)
    gap = tree_mean(gap_W, answer_W)
    return jnp.where(count(answer_W) == length, gap, -jnp.inf)


def _keeps(
    view: PolicyView, then_W: jax.Array, progress: float, ratio: float
) -> jax.Array:
    """Whether few masks changed their token, and enough of the block is committed."""
    number = lambda flag_W: count(flag_W).astype(jnp.float32)  # noqa: E731
    changed_W = (view.pred.token != then_W) & view.open_W
    few = number(changed_W) / number(view.open_W) <= ratio
    # Not as a share: what is divided by a constant is not rounded correctly.
    return few & (number(~view.open_W) >= jnp.float32(progress * then_W.shape[0]))


def _bounds(steps: int, high: float, low: float, mode: str, k: float) -> np.ndarray:
    """tau of every step; the low end where there is only one."""
    check_amount(7.5, tau_high=high, tau_low=low)
    check_choice(MODES, mode=mode)
    if steps == 1:
        return np.array([low], np.float32)
    fall = {
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        "linear": lambda t: 1 - t,
        "exp": lambda t: math.exp(-k * t),
    }[mode]
    taus = [low + (high - low) * fall(i / (steps - 1)) for i in range(steps)]
    return np.array(taus, np.float32)
