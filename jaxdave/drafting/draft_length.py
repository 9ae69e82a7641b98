"""How many drafts the next call should carry, by what calls cost and how drafts fare.

A draft is accepted with a probability p that is estimated row by row while decoding, so
that a call of d drafts confirms 1 + p + ... + p^(d-1) policy steps; on the demo models
this describes acceptance at all depths within a few percent. A draft function can tell
more: which drafts it has at all, and how likely it takes each to be. The draft length
that is expected to confirm the most steps per second is taken: more drafts cost more
time, the more so where a machine is bound by arithmetic. The text does not depend on
the choice.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftSet
from jaxdave.core.state import RowState, RuntimeParams
from jaxdave.drafting.nested import ACCEPTANCE_PRIOR

PRIOR_COUNTS = 3.2, 0.8
"""Accepted and rejected drafts that a row is assumed to have seen before its first."""
MAX_PROPOSED = 8
"""Drafts are proposed before their number is chosen where calls have at most so many.
Policies that are simulated step by step take a turn of a loop for each, so that a long
proposal for a short call costs more than the better choice saves."""


def choose_num_drafts(
    draft_steps: tuple[int, ...],
    runtime: RuntimeParams,
    rows: RowState,
    drafts: DraftSet | None = None,
) -> jax.Array:
    """Choose the draft length of a call by expected policy steps per second.

    Args:
        draft_steps: The draft lengths that a call may have, Z of them.
        runtime: `seconds_Z` is what a call of each length takes; a `forced_index` of 0
            or more is returned as it is.
        rows: All rows, [B, ...] or a single one; ended rows do not count.
        drafts: What was proposed for each row, [B, K, ...] or [K, ...]; None: nothing
            yet.

    Returns:
        Index into `draft_steps`, int32.
    """
    # Mean of a beta distribution: the prior's 4 counts say 0.8 and fade behind what the
    # row itself has seen. Counts decay (`verify.ACCEPTANCE_DECAY`), as texts change.
    prior_accepted, prior_rejected = PRIOR_COUNTS
    accepted_B, rejected_B = rows.acceptance_counts.reshape(-1, 2).T
    p_B = (accepted_B + prior_accepted) / (
        accepted_B + rejected_B + prior_accepted + prior_rejected
    )
    live_B = (~rows.done).astype(jnp.float32).reshape(-1)
    most = draft_steps[-1]
    if drafts is None:
        index_K = jnp.arange(most, dtype=jnp.int32)
        depth_BK = index_K[None]
        worth_BK = ACCEPTANCE_PRIOR ** depth_BK.astype(jnp.float32)
        # Drafts beyond the runtime limit are carried by the call, and confirm nothing.
        is_usable_BK = (index_K < runtime.max_num_drafts)[None]
    else:
        depth_BK, worth_BK, is_usable_BK = (
            part_K.reshape(-1, most)
            for part_K in (drafts.depth_K, drafts.worth_K, drafts.valid_K)
        )
    # Worths assume that each step on the way is confirmed with the prior probability;
    # here the row's own takes its place. Of nested drafts, 0.8^k becomes p^k.
    ratio_BK = (p_B[:, None] / ACCEPTANCE_PRIOR) ** depth_BK.astype(jnp.float32)
    chance_BK = jnp.where(is_usable_BK, jnp.minimum(worth_BK * ratio_BK, 1.0), 0.0)
    # The call carries the likeliest drafts (`likeliest_drafts`).
    chance_K = live_B @ -jnp.sort(-chance_BK, axis=1)
    steps_Z = jnp.cumsum(chance_K)[jnp.asarray(draft_steps) - 1]
    best = jnp.argmax(steps_Z / runtime.seconds_Z).astype(jnp.int32)
    return jnp.where(runtime.forced_index >= 0, runtime.forced_index, best)


def likeliest_drafts(drafts: DraftSet, num_drafts: int) -> DraftSet:
    """The drafts of a row that are likeliest to be reached, the first one among them.

    Args:
        drafts: At least so many drafts; the first is the policy's own next state.
        num_drafts: Drafts to keep.

    Returns:
        `num_drafts` drafts, the likeliest first.
    """
    # Worths are at most 1, so that 2 keeps the policy's own next state in front.
    rank_K = jnp.where(drafts.valid_K, drafts.worth_K, -1.0).at[0].set(2.0)
    # Among equals a draft follows those that lie on the way to it.
    order_K = jnp.lexsort((drafts.depth_K, -rank_K))[:num_drafts]
    return jax.tree.map(lambda part_K: part_K[order_K], drafts)
