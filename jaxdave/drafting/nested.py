"""Nested drafts: the policy itself, run ahead on the last prediction."""

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftFn, DraftSet, DraftState
from jaxdave.drafting.registry import DraftRequest, register

ACCEPTANCE_PRIOR = 0.8
"""Assumed probability that a draft is accepted if the one before it was."""


def propose_nested(
    context: DraftContext, first: DraftState, num_drafts: int
) -> DraftSet:
    """Draft the policy's next steps, each from the one before.

    For one token a step these are the paper's nested top-k sets; any other policy is
    simulated as it is. The draft at depth k uses the noise of the step that it stands
    for. The chain ends where the request would end or where there is no prediction.

    Args:
        context: What is known of the row.
        first: The policy's own next state.
        num_drafts: Drafts in all, K.

    Returns:
        K drafts, the k-th after k further steps.

    Source: FreeDave, arXiv 2510.00294, Algorithm 2.
    """

    # The first draft is given, so that K - 1 steps are run ahead.
    later = context.run_ahead(first, num_drafts - 1)
    progress = first.policy_state.progress
    depth_K = jnp.arange(num_drafts, dtype=jnp.int32)
    return DraftSet(
        tokens_KNL=jnp.concatenate([first.tokens_NL[None], later.tokens_KNL]),
        depth_K=depth_K,
        valid_K=jnp.concatenate([first.valid[None], later.valid_K]),
        worth_K=ACCEPTANCE_PRIOR ** depth_K.astype(jnp.float32),
        progress_K=jax.tree.map(
            lambda one, more_K: jnp.concatenate([one[None], more_K]),
            progress,
            later.progress_K,
        ),
    )


nested = DraftFn(propose_nested)
"""The draft function of `propose_nested`; it remembers nothing."""


@register("nested")
def make_nested(request: DraftRequest) -> DraftFn:
    """The policy itself, run ahead on the last prediction.

    Args:
        request: The decode; nested drafts fit any.

    Returns:
        `nested`.
    """
    del request
    return nested
