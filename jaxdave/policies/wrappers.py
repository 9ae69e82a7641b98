"""Rules about positions and tokens that go around any policy."""

import jax
import jax.numpy as jnp

from jaxdave.types import Memory, Policy, View


def first_alone(policy: Policy) -> Policy:
    """The policy, but a block's first position is committed alone, before the rest.

    For models whose logits are shifted, under a block cache: the predictor of a
    block's first token lies outside the block, so the token comes from the call that
    begins the block (Fast-dLLM's Dream path; Fast-dLLM v2 takes it from the commit of
    the previous block). The policy sees that step as one in which nothing else is open,
    so that its schedule counts it and its memory is right.
    """

    def step(view: View, memory: Memory) -> tuple[jax.Array, Memory]:
        first_W = jnp.arange(view.open_W.shape[0]) == 0
        alone = jnp.any(view.open_W & first_W)
        open_W = view.open_W & (first_W | ~alone)
        return policy.step(view._replace(open_W=open_W), memory)

    return policy._replace(name=f"first_alone({policy.name})", step=step)
