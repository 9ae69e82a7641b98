"""The accepted path: from draft to draft, as long as the policy's step leads to one.

It is found in one of two ways, with the same result. `longest_accepted_path` is a loop
that takes the policy's step from the draft that the path has reached; it serves every
policy. Its turns follow one another, each some dozen operations on a few numbers, and
on an accelerator each waits for the host. `longest_path_at_once` takes the steps from
all drafts side by side and follows pointers; it serves policies that remember nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftSet
from jaxdave.core.state import PolicyState


class AcceptedPath(NamedTuple):
    """The longest path of drafts that the policy confirms.

    Attributes:
        draft: Index of the last draft on the path, int32.
        policy_state: The policy's state there.
        candidate: Which of the draft's candidates the policy chooses, int32.
        target: The policy's state after its step from there.
        is_certain: No numerical error within the bound can change that step, bool.
        num_hops: Drafts accepted after the first, int32.
        visited_K: The drafts on the path in order, int32 [K]; entries after `num_hops`
            do not count. None where nobody asks for it.
    """

    draft: jax.Array
    policy_state: PolicyState
    candidate: jax.Array
    target: PolicyState
    is_certain: jax.Array
    num_hops: jax.Array
    visited_K: jax.Array | None = None

    @property
    def committed(self) -> PolicyState:
        """The state to commit.

        That is the target; or the last draft itself where the step from it is too close
        to call, so that it must be evaluated once more.
        """

        def choose(a, b):
            return jnp.where(self.is_certain, a, b)

        return jax.tree.map(choose, self.target, self.policy_state)

    @property
    def accepted_length(self) -> jax.Array:
        """Policy steps that the path confirms, int32."""
        return self.num_hops + self.is_certain.astype(jnp.int32)


StepFn = Callable[[jax.Array, PolicyState], tuple[jax.Array, PolicyState, jax.Array]]
"""(draft, the policy's state there) -> (chosen candidate, its next state, certain)."""
NeededFn = Callable[[PolicyState], jax.Array]
"""policy state -> the states [N, L] that must be evaluated to go on from it."""
StepsFn = Callable[[jax.Array], tuple[PolicyState, jax.Array]]
"""step index of each draft, int32 [K] -> (the policy's next states from all drafts,
arrays [K, ...]; certain, bool [K])."""


def longest_accepted_path(
    step_from: StepFn,
    needed_next: NeededFn,
    drafts: DraftSet,
    first: PolicyState,
    in_order: bool,
    keeps_visited: bool = False,
) -> AcceptedPath:
    """From draft 0, take the policy's step while that leads to another draft.

    Acceptance is equality of whole states, which is what makes decoding lossless. The
    policy's memory follows the path. There are at most K - 1 hops, and none from an
    uncertain step.

    Args:
        step_from: The policy's step, by fresh predictions.
        needed_next: What a draft has to hold to be the next on the path.
        drafts: K drafts; the first is the policy's own next state.
        first: The policy's state at draft 0.
        in_order: The next draft must lie one step deeper.
        keeps_visited: Return `visited_K`, too.

    Returns:
        Where the path ends.

    Source: FreeDave, arXiv 2510.00294, Algorithm 2, for any graph of drafts.
    """
    count = drafts.depth_K.shape[0]

    def successors(path: AcceptedPath):
        return _successors(drafts, path.draft, needed_next, path.target, in_order)

    # num_hops is -1 before draft 0. The bound of count - 1 hops stops a policy that
    # would revisit states; without it such a loop would not end.
    def goes_on(path: AcceptedPath):
        is_open = path.is_certain & (path.num_hops < count - 1)
        return (path.num_hops < 0) | (is_open & jnp.any(successors(path)))

    def hop(path: AcceptedPath):
        # The first draft is reached by a hop as well: the step is compiled once.
        draft = jnp.where(path.num_hops < 0, 0, jnp.argmax(successors(path)))
        draft = draft.astype(jnp.int32)
        candidate, target, certain = step_from(draft, path.target)
        hops, visited_K = path.num_hops + 1, path.visited_K
        if visited_K is not None:
            visited_K = visited_K.at[hops].set(draft)
        return AcceptedPath(
            draft, path.target, candidate, target, certain, hops, visited_K
        )

    # Of the start only `target` and `num_hops` matter; the rest has
    # the right types for the carry of the loop.
    zero = jnp.int32(0)
    visited_K = jnp.zeros((count,), jnp.int32) if keeps_visited else None
    start = AcceptedPath(
        zero, first, zero, first, jnp.bool_(True), jnp.int32(-1), visited_K
    )
    return hop(start) if count == 1 else jax.lax.while_loop(goes_on, hop, start)


def longest_path_at_once(
    steps_at: StepsFn,
    needed_next: NeededFn,
    drafts: DraftSet,
    first: PolicyState,
    in_order: bool,
    keeps_visited: bool = False,
) -> AcceptedPath:
    """`longest_accepted_path` of a policy without memory, without a loop.

    From a draft such a policy does the same whichever way the path came there, but for
    the step index, which it may look at.

    Args:
        steps_at: The policy's steps from all drafts, by fresh predictions.
        needed_next: What a draft has to hold to be the next on the path.
        drafts: K drafts of one candidate; the first is the policy's own next state.
        first: The policy's state at draft 0; its memory has no leaves.
        in_order: The next draft must lie one step deeper.
        keeps_visited: Return `visited_K`, too.

    Returns:
        Where the path ends, bit for bit as the loop finds it.
    """
    count = drafts.depth_K.shape[0]
    index_K = jnp.arange(count, dtype=jnp.int32)

    def steps_after(hops):
        # `hops` on the path before each draft: int32 [K], or one number for all.
        n_K = jnp.broadcast_to(first.n + hops, (count,))
        target, certain_K = steps_at(n_K)

        def successor(draft, target: PolicyState, certain):
            hits_K = _successors(drafts, draft, needed_next, target, in_order)
            # A draft without a successor points at itself, and the path stays there.
            goes_on = certain & jnp.any(hits_K)
            return jnp.where(goes_on, jnp.argmax(hits_K), draft).astype(jnp.int32)

        next_K = jax.vmap(successor)(index_K, target, certain_K)
        return next_K, target, certain_K

    if in_order:
        # A draft is reached after as many hops as it is deep.
        next_K, target, certain_K = steps_after(drafts.depth_K - drafts.depth_K[0])
        tables = jax.tree.map(lambda a: a[None], (next_K, target, certain_K))
    else:
        # It may be reached after any number of hops, so that there is a table for each,
        # [K, K]. What does not look at the step index is not batched: it costs nothing.
        tables = jax.vmap(steps_after)(index_K)

    def at(table, draft, hops):
        return table[0 if in_order else hops, draft]

    draft = num_hops = jnp.int32(0)
    visited = [draft]
    for _ in range(count - 1):
        next_draft = at(tables[0], draft, num_hops)
        num_hops += (next_draft != draft).astype(jnp.int32)
        draft = next_draft
        visited.append(draft)
    _, target, certain = jax.tree.map(lambda a: at(a, draft, num_hops), tables)
    # The row's own state is the first; of the others a draft is the state itself.
    tokens_L = jnp.where(draft == 0, first.tokens_L, drafts.tokens_KNL[draft, 0])
    progress = jax.tree.map(
        lambda own, part_K: jnp.where(draft == 0, own, part_K[draft]),
        first.progress,
        drafts.progress_K,
    )
    state = PolicyState(tokens_L, first.memory, first.n + num_hops, progress)
    visited_K = jnp.stack(visited) if keeps_visited else None
    return AcceptedPath(
        draft, state, jnp.int32(0), target, certain, num_hops, visited_K
    )


def _successors(
    drafts: DraftSet,
    draft: jax.Array,
    needed_next: NeededFn,
    target: PolicyState,
    in_order: bool,
) -> jax.Array:
    """Which drafts the path may go on to from a draft, bool [K].

    Those are valid ones whose states are exactly what the policy needs next.
    """
    needed_NL = needed_next(target)
    equal_K = jnp.all(drafts.tokens_KNL == needed_NL[None], axis=(1, 2))
    progress, progress_K = map(jax.tree.leaves, (target.progress, drafts.progress_K))
    for own, part_K in zip(progress, progress_K, strict=True):
        equal_K &= part_K == own
    equal_K &= drafts.valid_K & drafts.valid_K[draft]
    if in_order:
        return equal_K & (drafts.depth_K == drafts.depth_K[draft] + 1)
    # A target never equals its own draft unless a policy stands still.
    index_K = jnp.arange(equal_K.shape[0], dtype=jnp.int32)
    return equal_K & (index_K != draft)
