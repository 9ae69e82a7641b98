"""How many drafts the next call should carry, by what calls take and how drafts fare.

A draft is right with a chance that is estimated row by row while decoding, so that a
call of d drafts confirms 1 + p + ... + p^(d-1) steps; on the demo models that describes
acceptance at all depths within a few percent. The size that confirms most steps a
second is taken: more drafts cost more time the more a machine is bound by arithmetic.
Source of the cost model: notes on rooflines; the text does not depend on the choice.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxdave.core.state import RowState

if TYPE_CHECKING:
    from jaxdave.core.state import RuntimeParams


PRIOR_COUNTS = 3.2, 0.8
"""Drafts right and wrong that a row is taken to have seen before its first."""


def choose_draft_length(
    sizes: tuple[int, ...], runtime: "RuntimeParams", rows: RowState
) -> jax.Array:
    """Index of the size that is expected to confirm most steps of all rows a second."""
    right, wrong = PRIOR_COUNTS
    right_B, wrong_B = rows.acceptance_counts.reshape(-1, 2).T
    p_B = (right_B + right) / (right_B + wrong_B + right + wrong)
    live_B = (~rows.done).astype(jnp.float32).reshape(-1)

    def steps(size: int) -> jax.Array:
        power_KB = p_B[None] ** jnp.arange(size, dtype=jnp.float32)[:, None]
        usable_K1 = (jnp.arange(size) < runtime.max_num_drafts).astype(jnp.float32)[
            :, None
        ]
        return jnp.sum(power_KB * usable_K1 * live_B[None])

    rate_Z = jnp.stack([steps(size) for size in sizes]) / runtime.seconds_Z
    best = jnp.argmax(rate_Z).astype(jnp.int32)
    return jnp.where(runtime.forced_index >= 0, runtime.forced_index, best)
