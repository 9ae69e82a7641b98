"""Wrappers that change what a policy is shown of a block.

They close positions, or change the confidence of tokens. A wrapper works on any policy,
because it changes the `PolicyView` and not the rule. The certificate of a wrapped
policy is that of the policy, on the changed view.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView, PositionCount
from jaxdave.core.prediction import NEG_INF, ErrorBound
from jaxdave.policies.memoize import memoized
from jaxdave.policies.validation import check_count, check_counts


@memoized
def first_alone(policy: Policy) -> Policy:
    """The policy, but a block's first position is committed alone, before the rest.

    For models whose logits are shifted, under a block cache: the predictor of a block's
    first token lies outside the block, so the token comes from the call that begins the
    block (Fast-dLLM's Dream path; Fast-dLLM v2 takes it from the commit of the previous
    block). The policy sees that step as one in which nothing else is open, so that its
    schedule counts it and its memory is right. It cannot take the token back, and is
    shown no later prediction of it: what a later call predicts there depends on where
    the window starts, so it must not decide anything.

    Args:
        policy: The policy to wrap.

    Returns:
        The wrapped policy.
    """

    def change(view: PolicyView) -> PolicyView:
        first_W = jnp.arange(view.open_W.shape[0]) == 0
        # While the first position is open it is the only one; after that it is closed.
        is_alone = jnp.any(view.open_W & first_W)
        open_W = view.open_W & (first_W | ~is_alone)
        is_shown_W = ~first_W | is_alone
        # In place of a later prediction of the first token: its own token, for certain.
        blank = jax.tree.map(jnp.zeros_like, view.pred)
        blank = blank._replace(
            token=view.tokens_W,
            runner_up=blank.runner_up - 1,
            lead=jnp.full_like(blank.lead, jnp.inf),
        )
        pred = jax.tree.map(lambda a, b: jnp.where(is_shown_W, a, b), view.pred, blank)
        return view._replace(
            open_W=open_W, decoded_W=view.decoded_W & ~first_W, pred=pred
        )

    alone = _with_view(policy, f"first_alone({policy.name})", change)
    return _varying(alone)


@memoized
def small_blocks(policy: Policy, length: int = 8) -> Policy:
    """The policy, but only the first small block with masks is open.

    Args:
        policy: The policy to wrap.
        length: Positions of a small block, counted from the block's start, at least 1.

    Returns:
        The wrapped policy.

    Raises:
        ValueError: `length` is below 1, or less than a parameter of the policy counts.

    Source: Fast-dLLM v2 (arXiv 2509.26328; 8 inside blocks of 32). Its option
    use_block_cache, which keeps old keys of a block's other parts, is not offered: it
    is an approximation with texts of its own.

    Example:
        >>> from jaxdave import policies
        >>> policy = policies.small_blocks(policies.threshold(0.9), 8)
        >>> policy.lossless
        True
    """
    check_count(8, small_blocks=length)
    check_counts(policy, block=length)

    def change(view: PolicyView) -> PolicyView:
        size = view.open_W.shape[0]
        # Counted from the block's start, so that the
        # partition does not move as masks are filled.
        small_block_W = jnp.arange(size, dtype=jnp.int32) // length
        first = jnp.min(jnp.where(view.open_W, small_block_W, size))
        return view._replace(open_W=view.open_W & (small_block_W == first))

    small = _with_view(policy, f"small_blocks({policy.name}, {length})", change)
    counts = (*policy.counts, PositionCount("small_blocks", length, "block"))
    return _varying(small)._replace(counts=counts)


@memoized
def demote(policy: Policy, ids: Sequence[int]) -> Policy:
    """The policy, but positions whose token is one of `ids` are the least confident.

    Their probability counts as 0 and their entropy as the largest, so they come last.
    Random orders do not look at either.

    Args:
        policy: The policy to wrap.
        ids: Ids of tokens that come last, as a rule those that end a text.

    Returns:
        The wrapped policy.

    Raises:
        ValueError: `ids` is empty.

    Source: how LLaDA describes its confidence_eos_eot_inf. Its code takes the end
    tokens out of all confidences, too (`models.guidance.with_unscored_ids`).
    """
    if not ids:
        raise ValueError("demote: ids is empty; give the ids that should come last")
    demoted_ids = jnp.asarray(sorted(ids), jnp.int32)

    def change(view: PolicyView) -> PolicyView:
        is_demoted_W = jnp.isin(view.pred.token, demoted_ids)
        # Finite numbers, as intervals treat infinities as unknown.
        worst = dict(score=NEG_INF, gap=NEG_INF, margin=NEG_INF, entropy=-NEG_INF)
        lowered = {
            name: jnp.where(is_demoted_W, value, getattr(view.pred, name))
            for name, value in worst.items()
        }
        return view._replace(pred=view.pred._replace(**lowered))

    name = f"demote({policy.name}, {'+'.join(map(str, sorted(ids)))})"
    return _with_view(policy, name, change, keeps_order=True)


@memoized
def certain(policy: Policy) -> Policy:
    """The policy, shown every token as certain, so that all its orders are ties.

    Probability 1, margin and gap the largest, entropy 0; ties resolve from the left.

    Args:
        policy: The policy to wrap.

    Returns:
        The wrapped policy.

    Source: what confidence becomes where it is read behind a top-k filter of 1, as in
    FreeDave's evaluation of 2025 (there a tie may also resolve otherwise).
    """

    def change(view: PolicyView) -> PolicyView:
        highest_W = jnp.full_like(view.pred.score, -NEG_INF)
        pred = view.pred._replace(
            score=highest_W,
            gap=highest_W,
            margin=highest_W,
            entropy=jnp.zeros_like(highest_W),
        )
        return view._replace(pred=pred)

    return _with_view(policy, f"certain({policy.name})", change, keeps_order=True)


def _varying(policy: Policy) -> Policy:
    """The policy, whose steps may find fewer open positions than they would commit."""
    is_one = policy.tokens_per_step == 1
    return policy if is_one else policy._replace(tokens_per_step=None)


def _with_view(
    policy: Policy,
    name: str,
    change: Callable[[PolicyView], PolicyView],
    keeps_order: bool = False,
) -> Policy:
    """The policy under another name, on changed views.

    With `keeps_order` the change depends on the predictions alone, so that it is the
    same in all steps that see the same ones.
    """

    def step(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        return policy.step(change(view), memory)

    inner = policy.is_certain

    def is_certain(
        view: PolicyView, memory: Memory, error_bound: ErrorBound
    ) -> jax.Array:
        assert inner is not None
        return inner(change(view), memory, error_bound)

    order = policy.commit_order

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        assert order is not None
        return order(change(view), memory)

    # A policy without a certificate stays one without, and one without an order, too.
    return policy._replace(
        name=name,
        step=step,
        is_certain=inner and is_certain,
        commit_order=commit_order if order and keeps_order else None,
    )
