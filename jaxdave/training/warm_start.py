"""Starting a full-attention model from the weights of a block-causal one.

Full attention learns the demo's tasks several times slower than block-causal attention
does, but most of what the latter has learnt carries over: the embeddings, the MLPs and
the values do not care who may see whom.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import leaves_by_path, param_path
from jaxdave.models.param_shapes import param_shapes


def widen(config: ModelConfig, params: Any) -> Any:
    """Parameters of `config` made from those of a model with per-head norms.

    Key and value heads are repeated where `config` has more of them. Where it has no
    norms over queries and keys, each head's kernel is scaled to outputs of the size
    that the norm would give them for inputs of size one. Biases start at zero. Raises
    ValueError, naming the parameter, where the shapes differ in anything else.
    """
    source = leaves_by_path(params)
    size = config.head_dim

    def leaf(path, like):
        name = param_path(path)
        if name.endswith("bias"):
            return jnp.zeros(like.shape, like.dtype)
        value = source[name]
        if not config.qk_norm and name in (
            "blocks/attn/q/kernel",
            "blocks/attn/k/kernel",
        ):
            scale = source[name.removesuffix("/kernel") + "_norm/scale"]
            value = _scaled(value, source["blocks/norm1/scale"], scale)
        if value.shape != like.shape and "/attn/" in name:
            value = _repeated(value, size, like.shape[-1] // value.shape[-1])
        if value.shape != like.shape:
            raise ValueError(
                f"parameter {name} has shape {value.shape}, but {config.name!r} needs "
                f"{like.shape}; start from a model of the same sizes"
            )
        return value.astype(like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, param_shapes(config))


def _scaled(kernel: jax.Array, gain: jax.Array, scale: jax.Array) -> jax.Array:
    """Kernels [N, E, heads * D] whose outputs have about the size of a norm's."""
    layers, fan_in, fan_out = kernel.shape
    size = scale.shape[-1]
    heads = kernel.reshape(layers, fan_in, fan_out // size, size)
    power = jnp.sum((heads * gain[:, :, None, None]) ** 2, axis=1)
    rms = jnp.sqrt(jnp.mean(power, axis=-1))[:, None, :, None]
    return (heads / rms * scale[:, None, None, :]).reshape(kernel.shape)


def _repeated(kernel: jax.Array, size: int, times: int) -> jax.Array:
    """Kernels [N, E, heads * D] with every head repeated next to itself."""
    layers, fan_in, fan_out = kernel.shape
    heads = kernel.reshape(layers, fan_in, fan_out // size, size)
    return jnp.repeat(heads, times, axis=2).reshape(layers, fan_in, fan_out * times)
