"""Prophet and SchED: a block is filled at once when its masks have become clear.

Both look at the mean gap between the best and the second best logit, and compare it
with a bound that falls as decoding goes on.

SchED's bound, with t = i / (steps - 1): tau = tau_low + (tau_high - tau_low) w, w =
(1 + cos(pi t)) / 2 ("cosine"), 1 - t ("linear") or exp(-k t) ("exp").

Source: SchED (amr-mohamedd/SchED, its defaults). Deviations: logits are the tempered
ones, and above temperature 0 the tokens are the sampled ones; steps and masks are those
of the block; the statistic is the mean.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Memory, Policy, PolicyView, PositionCount
from jaxdave.policies.block_rules import (
    BlockClock,
    block_interval_policy,
    even_split,
    next_commit,
    scheduled_policy,
)
from jaxdave.policies.common import count, policy_name, tree_mean
from jaxdave.policies.dream import (
    EPS,
    checked_time_grid,
    negative_entropy,
    no_steps,
)
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    at_least,
    increasing,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import (
    MAX_COUNT,
    block_counts,
    check_amount,
    check_choice,
    check_count,
    check_share,
    check_size,
)

MODES = ("cosine", "linear", "exp")
"""How SchED's bound falls."""
NO_TOKEN = -1
"""Stands for the token of an earlier step where there was none."""


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
    mid or late (for progress < 0.33, < 0.67, else), fill the block; otherwise step as
    `low_confidence`. Progress is (k + 1) / n for step k = 0, 1, ... of n steps, those
    of all blocks of the answer: the first step of block b is step b * steps.

    Args:
        steps: Steps per block, at least 1.
        early: Bound on the mean gap before a progress of 0.33, 0 or more.
        mid: The same before 0.67.
        late: The same from there on.
        answer_start: First position of the answer, counted from the first generated
            one; -1: every masked position counts, as in SchED's copy of the rule.
        answer_length: Positions of the answer, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: Prophet (arXiv 2508.19982, generate_earlyexit.py). Deviations: logits are
    the tempered ones; the step fills its block only, where the code fills the whole
    answer from one call, and an answer that does not lie in the block does not end it.
    With one single block the texts are the code's.
    """
    check_count(256, steps=steps)
    check_size(5, answer_length=answer_length)
    check_amount(5.0, early=early, mid=mid, late=late)
    if not -1 <= answer_start <= MAX_COUNT:
        raise ValueError(
            f"answer_start={str(answer_start)[:20]} must be -1 (all masks) to "
            f"{MAX_COUNT}"
        )

    def choose(view: PolicyView, clock: BlockClock, values: IntervalView) -> Interval:
        phase = _phase(view, clock, steps)
        bound = jnp.asarray([early, mid, late], jnp.float32)[phase]

        def answer_gap(gap_W: jax.Array) -> jax.Array:
            return _answer_gap(view, gap_W, answer_start, answer_length)

        # A mean never falls as its terms rise.
        gap = increasing(answer_gap, values.gap)
        num_tokens = even_split(clock.masks, steps, clock)
        # Where the bound is reached the scalar `at_least` chooses every position.
        return union(select_top(view, num_tokens, values.score), at_least(gap, bound))

    name = policy_name(
        "prophet",
        steps=steps,
        early=early,
        mid=mid,
        late=late,
        answer_start=answer_start,
        answer_length=answer_length,
    )
    counts = block_counts(answer_length=(answer_length, 5))
    if answer_start >= 0:
        # One that ends past the last position would never be looked at.
        end = answer_start + answer_length
        counts += (PositionCount("answer_start + answer_length", end, "answer"),)
    return scheduled_policy(name, choose)._replace(counts=counts)


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
    they have been steady. Source and deviations: see this module.

    Args:
        steps: Steps per block, at least 1.
        tau_high: The bound in the first step, 0 or more.
        tau_low: The bound in the last step (for "exp": where it tends to), 0 or more.
        mode: How the bound falls: "cosine", "linear" or "exp".
        k: How fast it falls in mode "exp", 0 or more.
        min_progress: Share of the block that must be committed, in 0..1.
        patience: Steady steps that are not enough, 0 or more.
        max_change_ratio: Share of the masks that may change their token in a steady
            step, in 0..1.
        eps: The last time of the `entropy` schedule, above 0 and below 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.
    """
    shares = checked_time_grid(steps, eps).shares()
    check_amount(0.0, k=k, patience=patience)
    check_share(0.0, min_progress=min_progress, max_change_ratio=max_change_ratio)
    bounds = _falling_bounds(steps, tau_high, tau_low, mode, k)

    def decide(
        view: PolicyView, clock: BlockClock, memory: Memory, values: IntervalView
    ) -> tuple[Interval, Memory]:
        last_token_W, steady_steps, index = memory
        # Tokens of open positions, which the memory is made of, are exact in the sense
        # of `block_interval_policy`: they are certified apart, by their leads.
        is_far = _is_far(view, min_progress)
        is_steady = is_far & _few_changed(view, last_token_W, max_change_ratio)
        step, num_tokens = next_commit(view, shares, index)
        # In steps that commit none the model says the same again: nothing changes but
        # the bound, and each of them is one more steady step.
        step_I = jnp.arange(steps, dtype=jnp.int32)
        steady_I = jnp.where(is_steady, steady_steps + 1, 0) + (step_I - index)
        steady_I = jnp.where(is_far, steady_I, 0)
        can_end_I = (step_I >= index) & (step_I <= step) & (steady_I > patience)
        bound = jnp.min(jnp.where(can_end_I, jnp.asarray(bounds), jnp.inf))
        gap = increasing(lambda gap_W: tree_mean(gap_W, view.open_W), values.gap)
        is_clear = at_least(gap, bound)
        choice = union(select_top(view, num_tokens, negative_entropy(values)), is_clear)
        return choice, (view.pred.token, steady_I[step], step + 1)

    name = policy_name(
        "sched",
        steps=steps,
        tau_high=tau_high,
        tau_low=tau_low,
        mode=mode,
        k=k,
        min_progress=min_progress,
        patience=patience,
        max_change_ratio=max_change_ratio,
        eps=eps,
    )
    return block_interval_policy(name, decide, _no_tokens)


def _no_tokens(size: int, width: int) -> Memory:
    """SchED's memory before a block's first step: no tokens, steady for no steps."""
    return jnp.full(size, NO_TOKEN, jnp.int32), jnp.int32(0), no_steps(size, width)


def _answer_gap(
    view: PolicyView, gap_W: jax.Array, start: int, length: int
) -> jax.Array:
    """The mean logit gap over an answer; -inf where the answer is not in the block."""
    if start < 0:
        return tree_mean(gap_W, view.open_W)
    answer_W = (view.position_W >= start) & (view.position_W < start + length)
    gap = tree_mean(gap_W, answer_W)
    return jnp.where(count(answer_W) == length, gap, -jnp.inf)


def _phase(view: PolicyView, clock: BlockClock, steps: int) -> jax.Array:
    """Prophet's phase by the progress of the answer: 0, 1 or 2, an int32 scalar."""
    size = view.open_W.shape[0]
    # Where the first block begins: before the answer if it holds part of the prompt.
    first = -(-view.position_W[0] % size)
    block = (view.position_W[0] - first) // size
    num_blocks = (view.max_new_tokens - first + size - 1) // size
    # In whole numbers, as hundredths of all steps.
    progress = 100 * (block * steps + clock.index + 1)
    total = num_blocks * steps
    late, last = (progress >= share * total for share in (33, 67))
    return late.astype(jnp.int32) + last.astype(jnp.int32)


def _few_changed(
    view: PolicyView, last_token_W: jax.Array, max_change_ratio: float
) -> jax.Array:
    """True if few masks changed their token since the last step."""
    changed_W = (view.pred.token != last_token_W) & view.open_W
    changed, masks = (
        count(flag_W).astype(jnp.float32) for flag_W in (changed_W, view.open_W)
    )
    return changed / masks <= max_change_ratio


def _is_far(view: PolicyView, min_progress: float) -> jax.Array:
    """True if enough of the block is committed."""
    # Compared as counts, not as a share: XLA turns a division by a constant into a
    # product with its reciprocal, which is not rounded correctly.
    min_count = jnp.float32(min_progress * view.open_W.shape[0])
    return count(~view.open_W).astype(jnp.float32) >= min_count


def _falling_bounds(
    steps: int, high: float, low: float, mode: str, k: float
) -> np.ndarray:
    """tau of every step, float32 [steps]; the low end where there is only one step."""
    check_amount(7.5, tau_high=high, tau_low=low)
    check_choice(MODES, mode=mode)
    if steps == 1:
        return np.array([low], np.float32)
    weight = {
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        "linear": lambda t: 1 - t,
        "exp": lambda t: math.exp(-k * t),
    }[mode]
    # Computed on the host: cosines of a compiled program may differ in their last bit.
    taus = [low + (high - low) * weight(i / (steps - 1)) for i in range(steps)]
    return np.array(taus, np.float32)
