"""Rules about positions and tokens that go around any policy."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.core.prediction import NEG_INF, ErrorBound
from jaxdave.policies.registry import memoized
from jaxdave.policies.validation import check_count


@memoized
def first_alone(policy: Policy) -> Policy:
    """The policy, but a block's first position is committed alone, before the rest.

    For models whose logits are shifted, under a block cache: the predictor of a
    block's first token lies outside the block, so the token comes from the call that
    begins the block (Fast-dLLM's Dream path; Fast-dLLM v2 takes it from the commit of
    the previous block). The policy sees that step as one in which nothing else is open,
    so that its schedule counts it and its memory is right. It cannot take the token
    back, and is told nothing more about it: what a later call says there depends on
    where the window starts, so it must not decide anything.
    """

    def change(view: PolicyView) -> PolicyView:
        first_W = jnp.arange(view.open_W.shape[0]) == 0
        is_alone = jnp.any(view.open_W & first_W)
        open_W = view.open_W & (first_W | ~is_alone)
        is_told_W = ~first_W | is_alone
        nothing = jax.tree.map(jnp.zeros_like, view.pred)
        nothing = nothing._replace(
            token=view.tokens_W, runner_up=nothing.runner_up - 1,
            lead=jnp.full_like(nothing.lead, jnp.inf),
        )  # fmt: skip
        pred = jax.tree.map(lambda a, b: jnp.where(is_told_W, a, b), view.pred, nothing)
        return view._replace(
            open_W=open_W, decoded_W=view.decoded_W & ~first_W, pred=pred
        )

    return _with_view(policy, f"first_alone({policy.name})", change)


@memoized
def small_blocks(policy: Policy, length: int = 8) -> Policy:
    """The policy, but only the first small block with masks is open.

    length: positions of a small block, counted from the block's start. Source:
    Fast-dLLM v2 (arXiv 2509.26328; 8 inside blocks of 32). Raises ValueError below 1.
    """
    check_count(8, small_blocks=length)

    def change(view: PolicyView) -> PolicyView:
        size = view.open_W.shape[0]
        small_W = jnp.arange(size, dtype=jnp.int32) // length
        first = jnp.min(jnp.where(view.open_W, small_W, size))
        return view._replace(open_W=view.open_W & (small_W == first))

    return _with_view(policy, f"small_blocks({policy.name}, {length})", change)


@memoized
def demote(policy: Policy, ids: Sequence[int]) -> Policy:
    """The policy, but positions whose token is one of `ids` are the least confident.

    Their probability counts as 0 and their entropy as the largest, so they come last.
    Random orders do not look at either. Source: LLaDA's confidence_eos_eot_inf.
    Raises ValueError for no ids.
    """
    if not ids:
        raise ValueError("demote: ids is empty; give the ids that should come last")
    listed = jnp.asarray(sorted(ids), jnp.int32)

    def change(view: PolicyView) -> PolicyView:
        last_W = jnp.isin(view.pred.token, listed)
        worst = dict(score=NEG_INF, gap=NEG_INF, margin=NEG_INF, entropy=-NEG_INF)
        lowered = {
            name: jnp.where(last_W, low, getattr(view.pred, name))
            for name, low in worst.items()
        }
        return view._replace(pred=view.pred._replace(**lowered))

    name = f"demote({policy.name}, {'+'.join(map(str, sorted(ids)))})"
    return _with_view(policy, name, change)


@memoized
def certain(policy: Policy) -> Policy:
    """The policy, shown every token as certain, so that its orders are ties.

    Probability 1, margin and gap the largest, entropy 0; ties resolve from the left.
    Source: what confidence becomes where it is read behind a top-k filter of 1, as in
    FreeDave's evaluation of 2025 (there a tie may also resolve otherwise).
    """

    def change(view: PolicyView) -> PolicyView:
        most = jnp.full_like(view.pred.score, -NEG_INF)
        shown = dict(score=most, gap=most, margin=most, entropy=jnp.zeros_like(most))
        return view._replace(pred=view.pred._replace(**shown))

    return _with_view(policy, f"certain({policy.name})", change)


def _with_view(
    policy: Policy, name: str, change: Callable[[PolicyView], PolicyView]
) -> Policy:
    """The policy, shown something else."""

    def step(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        return policy.step(change(view), memory)

    is_sure = policy.is_certain

    def is_certain(view: PolicyView, memory: Memory, doubt: ErrorBound) -> jax.Array:
        assert is_sure is not None
        return is_sure(change(view), memory, doubt)

    return policy._replace(name=name, step=step, is_certain=is_sure and is_certain)
