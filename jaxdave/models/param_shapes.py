"""Parameters: what shapes they have, and how they become a module inside jit.

Nothing here imports Flax, so that a process which finds its compiled programs on disk
need not either: `denoiser` is what the shapes are of, and is imported when traced.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params

if TYPE_CHECKING:
    from jaxdave.models.transformer import Transformer


def param_shapes(config: ModelConfig, dtype=jnp.float32) -> Params:
    """The shapes and dtypes of the parameters, without making them."""
    c = config
    q_size, kv_size = c.heads * c.head_dim, c.kv_heads * c.head_dim
    norm = {"scale": (c.hidden,)}

    def linear(fan_in: int, fan_out: int, bias: bool = False):
        return {"kernel": (fan_in, fan_out)} | ({"bias": (fan_out,)} if bias else {})

    attn: dict[str, Any] = {
        "q": linear(c.hidden, q_size, c.qkv_bias),
        "k": linear(c.hidden, kv_size, c.qkv_bias),
        "v": linear(c.hidden, kv_size, c.qkv_bias),
        "o": linear(q_size, c.hidden),
    }
    if c.qk_norm:
        attn |= {name: {"scale": (c.head_dim,)} for name in ("q_norm", "k_norm")}
    mlp = {
        "gate": linear(c.hidden, c.inter),
        "up": linear(c.hidden, c.inter),
        "down": linear(c.inter, c.hidden),
    }
    block = {"norm1": norm, "attn": attn, "norm2": norm, "mlp": mlp}
    whole = {"embedding": (c.vocab_rows, c.hidden), "norm": norm}
    if not c.tie_embeddings:
        whole |= {"head": (c.vocab_rows, c.hidden)}
    layers = {"blocks": _to_structs(block, (c.num_layers,), dtype)}
    return _to_structs(whole, (), dtype) | layers


def _to_structs(tree: dict[str, Any], lead: tuple[int, ...], dtype) -> dict[str, Any]:
    return {
        name: _to_structs(part, lead, dtype)
        if isinstance(part, dict)
        else jax.ShapeDtypeStruct((*lead, *part), dtype)
        for name, part in tree.items()
    }


@dataclasses.dataclass(frozen=True)
class Binder:
    """Puts parameters back into a module of this config, for use inside jit."""

    config: ModelConfig

    def __call__(self, params: Params) -> "Transformer":
        from jaxdave.models.transformer import bind

        return bind(self.config, params)
