"""Prophet and SchED: a block is filled at once when its masks have become clear."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.policies.block import Clock, even_split, per_block, scheduled
from jaxdave.policies.checks import check_amount, check_choice, check_count, check_share
from jaxdave.policies.common import best, commit, count, mean, named
from jaxdave.policies.dream import EPS, checked_shares, time_count
from jaxdave.types import Memory, Policy, View

MODES = ("cosine", "linear", "exp")


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

    def choose(view: View, clock: Clock) -> jax.Array:
        where_W = view.open_W
        seen = jnp.bool_(True)
        if answer_start >= 0:
            where_W = view.place_W >= answer_start
            where_W &= view.place_W < answer_start + answer_length
            seen = count(where_W) == answer_length
        third = 3 * clock.index // steps
        needed = jnp.asarray([early, mid, late], jnp.float32)[jnp.minimum(third, 2)]
        clear = seen & (mean(view.pred.gap, where_W) >= needed)
        some = even_split(clock.masks, steps, clock)
        return jnp.where(clear, view.open_W, best(view, some, view.pred.score))

    name = named(
        "prophet", steps=steps, early=early, mid=mid, late=late,
        answer_start=answer_start, answer_length=answer_length,
    )  # fmt: skip
    return scheduled(name, choose)


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

    t = i / (steps - 1); tau = low + (high - low) w, w = (1 + cos(pi t)) / 2, 1 - t or
    exp(-k t). Fill the block if the mean of (best logit - second logit) over the masks
    >= tau, at least min_progress of the block is committed, and for more than
    `patience` steps in a row no more than max_change_ratio of the masks changed their
    token; otherwise step as `entropy`. Source: SchED (amr-mohamedd/SchED, defaults).
    Memory: the last tokens, and for how long they have been steady. Deviations: logits
    are the tempered ones, and the tokens above temperature 0 the sampled ones; steps
    and masks are those of the block; the statistic is the mean. Raises ValueError for
    a parameter out of range.
    """
    name = named(
        "sched", steps=steps, tau_high=tau_high, tau_low=tau_low, mode=mode, k=k,
        min_progress=min_progress, patience=patience,
        max_change_ratio=max_change_ratio, eps=eps,
    )  # fmt: skip
    shares = checked_shares(steps, eps)
    check_amount(7.5, tau_high=tau_high, tau_low=tau_low, k=k, patience=patience)
    check_choice(MODES, mode=mode)
    check_share(0.0, min_progress=min_progress, max_change_ratio=max_change_ratio)
    bounds = _bounds(steps, tau_high, tau_low, mode, k)

    def init(size: int, width: int) -> Memory:
        return jnp.full(size, -1, jnp.int32), jnp.int32(0)

    def step(view: View, clock: Clock, memory: Memory) -> tuple[jax.Array, Memory]:
        then_W, steady = memory
        number = lambda flag_W: count(flag_W).astype(jnp.float32)  # noqa: E731
        changed_W = (view.pred.token != then_W) & view.open_W
        few = number(changed_W) / number(view.open_W) <= max_change_ratio
        # Not as a share: what is divided by a constant is not rounded correctly.
        far = number(~view.open_W) >= jnp.float32(min_progress * then_W.shape[0])
        steady = jnp.where(few & far, steady + 1, 0)
        needed = jnp.asarray(bounds)[jnp.minimum(clock.index, steps - 1)]
        clear = (mean(view.pred.gap, view.open_W) >= needed) & (steady > patience)
        some = time_count(view, shares, clock)
        chosen_W = best(view, some, -view.pred.entropy) | clear
        return commit(view, chosen_W), (view.pred.token, steady)

    return per_block(name, step, init)


def _bounds(steps: int, high: float, low: float, mode: str, k: float) -> np.ndarray:
    """tau of every step; the low end where there is only one."""
    if steps == 1:
        return np.array([low], np.float32)
    fall = {
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        "linear": lambda t: 1 - t,
        "exp": lambda t: math.exp(-k * t),
    }[mode]
    taus = [low + (high - low) * fall(i / (steps - 1)) for i in range(steps)]
    return np.array(taus, np.float32)
