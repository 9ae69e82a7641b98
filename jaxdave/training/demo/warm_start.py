"""Starting a full-attention model from the weights of a block-causal one.

Full attention learns the demo's tasks several times slower than block-causal attention
does, but most of what the latter has learnt carries over: embeddings, MLPs and values
do not depend on which positions see each other.

Axes: N layers, E features, D positions of a head's vector.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import leaves_by_path, param_path
from jaxdave.models.param_shapes import param_shapes


def warm_start_params(config: ModelConfig, params: Any) -> Any:
    """Make parameters for a model from those of one with norms over queries and keys.

    Of more layers than `config` has, the first ones are taken, and the last one last.
    Key and value heads are repeated where `config` has more of them. Where it has no
    norms over queries and keys, each head's kernel is scaled to outputs of the size
    that the norm would give them for inputs of size one. Biases start at zero.

    Args:
        config: The model to make parameters for.
        params: The other model's parameters, in the layout of `param_shapes`.

    Returns:
        Parameters in the layout of `param_shapes(config)`.

    Raises:
        ValueError: If the shapes differ in anything else; the message names the
            parameter.
    """
    source = {
        name: _chosen_layers(value, config.num_layers)
        if name.startswith("blocks/")
        else value
        for name, value in leaves_by_path(params).items()
    }
    if config.experts is not None:
        source |= mixture_from_dense(config, source)

    def convert(path, target):
        name = param_path(path)
        if name.endswith("bias"):
            return jnp.zeros(target.shape, target.dtype)
        value = source[name]
        if not config.qk_norm and name in (
            "blocks/attn/q/kernel",
            "blocks/attn/k/kernel",
        ):
            norm_scale = source[name.removesuffix("/kernel") + "_norm/scale"]
            value = _scale_heads(value, source["blocks/norm1/scale"], norm_scale)
        if value.shape != target.shape and "/attn/" in name:
            times = target.shape[-1] // value.shape[-1]
            value = _repeat_heads(value, config.head_dim, times)
        if value.shape != target.shape:
            raise ValueError(
                f"parameter {name} has shape {value.shape}, but {config.name!r} needs "
                f"{target.shape}; start from a model of the same sizes"
            )
        return value.astype(target.dtype)

    return jax.tree_util.tree_map_with_path(convert, param_shapes(config))


def _chosen_layers(value: jax.Array, num_layers: int) -> jax.Array:
    """The first layers of a stack [N, ...] and its last one, where it has too many."""
    if len(value) <= num_layers:
        return value
    return jnp.concatenate([value[: num_layers - 1], value[-1:]])


def _scale_heads(
    kernel: jax.Array, input_scale: jax.Array, norm_scale: jax.Array
) -> jax.Array:
    """Scale each head of kernels [N, E, heads * D] to what a norm would put out.

    The inputs are those of a norm with the gain `input_scale` [N, E], so an output has
    the variance of its column, weighted by that gain; its mean over a head is what the
    norm with the gain `norm_scale` [N, D] would divide by.
    """
    layers, fan_in, fan_out = kernel.shape
    head_dim = norm_scale.shape[-1]
    heads = kernel.reshape(layers, fan_in, fan_out // head_dim, head_dim)
    variance = jnp.sum((heads * input_scale[:, :, None, None]) ** 2, axis=1)
    rms = jnp.sqrt(jnp.mean(variance, axis=-1))[:, None, :, None]
    return (heads / rms * norm_scale[:, None, None, :]).reshape(kernel.shape)


def _repeat_heads(kernel: jax.Array, head_dim: int, times: int) -> jax.Array:
    """Repeat each head of kernels [N, E, heads * D] next to itself.

    Next to itself, since query heads share the key head of their own group.
    """
    layers, fan_in, fan_out = kernel.shape
    heads = kernel.reshape(layers, fan_in, fan_out // head_dim, head_dim)
    repeated = jnp.repeat(heads, times, axis=2)
    return repeated.reshape(layers, fan_in, fan_out * times)


def mixture_from_dense(config: ModelConfig, source: dict[str, Any]) -> dict[str, Any]:
    """Cut the MLPs of a dense model into experts.

    The neurons of a layer are dealt out to the shared expert and to the others, one
    after another; what is left over is dropped. With weights of about 1 all experts
    together would put out what the dense layer does. Routers are drawn at random.

    Args:
        config: A mixture of experts.
        source: The dense model's parameters by path, stacked over layers.

    Returns:
        The parameters of the mixture's layers by path.

    Raises:
        ValueError: The dense layers have too few neurons.

    Source: the split of neurons is that of MoEfication, arXiv 2110.01786.
    """
    experts, first = config.experts, config.dense_layers
    assert experts is not None
    neurons = source["blocks/mlp/up/kernel"].shape[-1]
    split = experts.shared_inter, experts.shared_inter + experts.count * experts.inter
    if split[1] > neurons:
        raise ValueError(
            f"{config.name!r} has experts of {split[1]} neurons in all, more than the "
            f"{neurons} of the dense model; start from a wider one"
        )
    result = {}
    for name, value in source.items():
        if not name.startswith("blocks/"):
            continue
        if first:
            result["dense_" + name] = value[:first]
        result[name] = value[first:]
    for name in ("gate", "up", "down"):
        path = f"mlp/{name}/kernel"
        # Neurons first: [N, F, E].
        kernel = result.pop(f"blocks/{path}")
        kernel = kernel if name == "down" else jnp.swapaxes(kernel, 1, 2)
        layers, _, hidden = kernel.shape
        shared, routed = kernel[:, : split[0]], kernel[:, slice(*split)]
        shape = (layers, experts.count, experts.inter, hidden)
        for part, own in (("shared", shared), ("experts", routed.reshape(shape))):
            own = own if name == "down" else jnp.swapaxes(own, -1, -2)
            result[f"blocks/mlp/{part}/{name}/kernel"] = own
    shape = (config.num_layers - first, config.hidden, experts.count)
    draw = jax.random.normal(jax.random.key(0), shape)
    result["blocks/mlp/router/kernel"] = draw / config.hidden**0.5
    return result
