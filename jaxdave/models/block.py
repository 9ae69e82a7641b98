"""One layer of the transformer: attention, and an MLP or a mixture of experts."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxdave.core.config import ModelConfig
from jaxdave.core.shards import WHOLE_MODEL, ModelShards
from jaxdave.models.experts import Experts
from jaxdave.models.layers import MLP, Attention, RMSNorm
from jaxdave.models.rope import Rope
from jaxdave.models.router_trace import no_router
from jaxdave.runtime.machine import Machine

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(q [..., L, H, D], k, v [..., L, G, D]) -> weighted values [..., L, H, D]."""


class Block(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype,
        rngs: nnx.Rngs,
        machine: Machine,
        use_kernels: bool = False,
        shards: ModelShards = WHOLE_MODEL,
        traces_router: bool = False,
    ):
        """Initialise parameters.

        Args:
            config: The model's shape.
            dtype: Of the parameters.
            rngs: Where kernels are drawn from.
            machine: What products are compiled for.
            use_kernels: Use kernels of a GPU, which have no gradient.
            shards: The devices that the parameters are split over.
            traces_router: Tell how close the choices of experts were.
        """
        self.traces_router = traces_router
        options = {"dtype": dtype, "rngs": rngs, "machine": machine}
        self.norm1 = RMSNorm(config.hidden, config.rms_eps, dtype=dtype)
        self.attn = Attention(config, use_kernels=use_kernels, shards=shards, **options)
        self.norm2 = RMSNorm(config.hidden, config.rms_eps, dtype=dtype)
        self.mlp = (
            MLP(config.hidden, config.inter, shards=shards, **options)
            if config.experts is None
            else Experts(config, **options)
        )

    def __call__(self, x: jax.Array, rope: Rope, attend: Attend):
        """Apply the layer.

        Args:
            x: The residual stream [..., L, E].
            rope: Cosines and sines of the positions.
            attend: The attention function.

        Returns:
            The residual stream after the layer, and its (rotated) keys and values
            [..., L, G, D], followed by its `RouterTrace` [..., L] if it traces it.
        """
        q, k, v = self.project(x, rope)
        x, *trace = self.finish(x, attend(q, k, v))
        return x, (k, v, *trace)

    def project(self, x: jax.Array, rope: Rope):
        """The layer up to attention.

        Args:
            x: The residual stream [..., L, E].
            rope: Cosines and sines of the positions.

        Returns:
            q [..., L, H, D], k and v [..., L, G, D].
        """
        return self.attn.project(self.norm1(x), rope)

    def finish(self, x: jax.Array, context: jax.Array) -> tuple[Any, ...]:
        """The layer after attention.

        Args:
            x: The residual stream before the layer, [..., L, E].
            context: Weighted values [..., L, H, D].

        Returns:
            The residual stream after the layer, followed by its `RouterTrace` [..., L]
            if it traces it.
        """
        x = x + self.attn.merge(context)
        normed = self.norm2(x)
        if not self.traces_router:
            return (x + self.mlp(normed),)
        if isinstance(self.mlp, Experts):
            mixed, trace = self.mlp.traced(normed)
            return x + mixed, trace
        return x + self.mlp(normed), no_router(x.shape[:-1])
