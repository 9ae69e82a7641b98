"""How many drafts the next call should carry, by what calls cost and how drafts fare.

A draft is accepted with a probability p that is estimated row by row while decoding, so
that a call of d drafts confirms 1 + p + ... + p^(d-1) policy steps; on the demo models
this describes acceptance at all depths within a few percent. The draft length that is
expected to confirm the most steps per second is taken: more drafts cost more time, the
more so where a machine is bound by arithmetic. The text does not depend on the choice.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.state import RowState, RuntimeParams

PRIOR_COUNTS = 3.2, 0.8
"""Accepted and rejected drafts that a row is assumed to have seen before its first."""


def choose_num_drafts(
    draft_steps: tuple[int, ...], runtime: RuntimeParams, rows: RowState
) -> jax.Array:
    """Choose the draft length of a call by expected policy steps per second.

    Args:
        draft_steps: The draft lengths that a call may have, Z of them.
        runtime: `seconds_Z` is what a call of each length takes; a `forced_index` of 0
            or more is returned as it is.
        rows: All rows, [B, ...] or a single one; ended rows do not count.

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

    # Sum over rows of 1 + p + ... + p^(d-1). Drafts beyond the runtime limit are
    # carried by the call, and confirm nothing.
    def expected_steps(num_drafts: int) -> jax.Array:
        index_K = jnp.arange(num_drafts)
        power_KB = p_B[None] ** jnp.arange(num_drafts, dtype=jnp.float32)[:, None]
        is_usable_K = (index_K < runtime.max_num_drafts).astype(jnp.float32)
        return jnp.sum(power_KB * is_usable_K[:, None] * live_B[None])

    steps_Z = jnp.stack([expected_steps(num_drafts) for num_drafts in draft_steps])
    best = jnp.argmax(steps_Z / runtime.seconds_Z).astype(jnp.int32)
    return jnp.where(runtime.forced_index >= 0, runtime.forced_index, best)
