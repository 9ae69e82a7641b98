"""The walk: how far the drafts were right.

Nothing can accept more for a given set of drafts: a state outside the set was never
evaluated, so what follows it is unknown.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.state import Drafts, Stand

StepFrom = Callable[[jax.Array, Stand], tuple[jax.Array, Stand, jax.Array]]
Ahead = Callable[[Stand], jax.Array]


class Walked(NamedTuple):
    """Where a walk ends: the last draft reached and the policy's stand there, which of
    its branches the policy goes to, its step from there, whether that is sure, hops."""

    at: jax.Array
    stand: Stand
    branch: jax.Array
    target: Stand
    sure: jax.Array
    hops: jax.Array

    @property
    def known(self) -> Stand:
        """The policy's next state: the target, or where it is too close to call the
        draft itself, which must be evaluated once more."""
        pick = lambda a, b: jnp.where(self.sure, a, b)  # noqa: E731
        return jax.tree.map(pick, self.target, self.stand)

    @property
    def steps(self) -> jax.Array:
        """Policy steps that the walk has confirmed."""
        return self.hops + self.sure.astype(jnp.int32)


def walk(
    step_from: StepFrom, ahead: Ahead, drafts: Drafts, first: Stand, in_order: bool
) -> Walked:
    """From draft 0 take the policy's step while that leads to another draft.

    step_from(draft, its stand) -> the branch taken, where the policy stands next, and
    whether that is sure, from fresh predictions; ahead(stand) -> the states [N, L] that
    must be evaluated to go on. The policy's memory follows the path. Equality is of
    whole states. in_order: the next draft must lie one step deeper, as it must when
    predictions depend on the step index. At most K - 1 hops, none from an unsure step.
    """
    count = drafts.depth_K.shape[0]
    index_K = jnp.arange(count, dtype=jnp.int32)

    def successors(held: Walked):
        same_KNL = drafts.tokens_KNL == ahead(held.target)[None]
        same_K = jnp.all(same_KNL, axis=(1, 2))
        same_K &= drafts.valid_K & drafts.valid_K[held.at]
        if in_order:
            return same_K & (drafts.depth_K == drafts.depth_K[held.at] + 1)
        # A target never equals its own draft unless a policy stands still.
        return same_K & (index_K != held.at)

    def on(held: Walked):
        further = held.sure & (held.hops < count - 1) & jnp.any(successors(held))
        return (held.hops < 0) | further

    def hop(held: Walked):
        # The step is compiled once: the first draft is reached by a hop as well.
        at = jnp.where(held.hops < 0, 0, jnp.argmax(successors(held)))
        at = at.astype(jnp.int32)
        return Walked(at, held.target, *step_from(at, held.target), held.hops + 1)

    zero = jnp.int32(0)
    begun = Walked(zero, first, zero, first, jnp.bool_(True), jnp.int32(-1))
    return hop(begun) if count == 1 else jax.lax.while_loop(on, hop, begun)
