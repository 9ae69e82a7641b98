"""Int8 weights: one symmetric scale per output channel; activations are not quantised.

A quantised model is a model of its own: other weights, other text, the same guarantee
that drafts do not change it. Its matrices are `Int8` in place of arrays wherever the
parameters go, and products with them go through `einsum_kernel`, which takes either.

The embedding is quantised too, one channel per row. Where it is also the head, its rows
are the head's output channels, so one table serves both, and a lookup gives exactly the
vectors that the head compares with. Where it is not, it would otherwise be the largest
part of a small model that is left in floating point.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.param_paths import param_path
from jaxdave.runtime.platform import on_cpu

MAX_LEVEL = 127.0
"""Levels on either side of zero. -128 is not used, so that the range is symmetric."""

ParamTransform = Callable[[str, Any], Any]
"""(parameter path such as "blocks/attn/q/kernel", parameter) -> its replacement."""


class Int8(NamedTuple):
    """A quantised matrix.

    Attributes:
        values: int8 [..., in, out]; of the embedding and the head [V, E].
        scale: float32 [..., out], one per output channel; of the embedding and the head
            [V]. A weight is value times scale.
    """

    values: jax.Array
    scale: jax.Array


def check_quantization(quantize: str | None) -> None:
    """Check the name of a quantisation.

    Args:
        quantize: A key of `QUANTIZATIONS`, or None for none.

    Raises:
        ValueError: The name is unknown.
    """
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ValueError(
            f"quantize={quantize!r} is unknown; use {', '.join(QUANTIZATIONS)} or "
            "leave it out"
        )


def param_transform(quantize: str | None) -> ParamTransform:
    """The function that is applied to each parameter as it is read.

    Args:
        quantize: A key of `QUANTIZATIONS`, or None to keep parameters as they are.

    Returns:
        A `ParamTransform`.

    Raises:
        ValueError: The name is unknown.
    """
    check_quantization(quantize)
    return keep_param if quantize is None else QUANTIZATIONS[quantize]


def quantize_param(path: str, leaf: jax.Array | np.ndarray) -> jax.Array | Int8:
    """Round one parameter to int8 if it is a matrix.

    A channel's largest magnitude becomes 127, so every value is off by at most half a
    level.

    Args:
        path: Its path, such as "blocks/attn/q/kernel".
        leaf: The parameter, of any float dtype.

    Returns:
        An `Int8` of a matrix; norms and biases as an unchanged array.
    """
    axis = channel_axis(path)
    array = jnp.asarray(leaf)
    return array if axis is None else Int8(*_round_to_int8(array, axis))


def quantize_params(params: Any) -> Any:
    """Round all matrices of a model to int8.

    Args:
        params: Stacked float parameters (`models.param_shapes`).

    Returns:
        The same tree with `Int8` in place of matrices.

    Raises:
        ValueError: They are quantised, or in a device's layout, already.
    """
    return transform_params(params, quantize_param)


def transform_params(params: Any, transform: ParamTransform) -> Any:
    """Apply a function to every parameter and its path.

    Args:
        params: Stacked float parameters.
        transform: (path, parameter) -> its replacement.

    Returns:
        The tree of replacements.

    Raises:
        ValueError: They are quantised, or in a device's layout, already.
    """

    def transform_leaf(path, leaf):
        name = param_path(path)
        # A kernel is a leaf of float parameters; here it has parts of its own.
        if "/kernel/" in name:
            raise ValueError(
                f"{name} is a part of a matrix that is quantised, or lies as a CPU "
                "reads it; use `weight_layout.to_stacked` of float parameters"
            )
        return transform(name, leaf)

    return jax.tree_util.tree_map_with_path(transform_leaf, params)


def einsum_kernel(spec: str, x: jax.Array, kernel: jax.Array | Int8) -> jax.Array:
    """`jnp.einsum` in float32 at the highest precision, with either kind of kernel.

    Int8 values are exact in bfloat16 too. A channel's scale is a common factor of its
    sum, so it is applied to the sum.

    Args:
        spec: The einsum; the output's last axis must be that of the kernel's channels.
        x: Activations of any float dtype. Weights may be narrower than float32
            activations.
        kernel: An array or an `Int8`, in the shape that `spec` names.

    Returns:
        Float32 array.
    """
    scale = kernel.scale if isinstance(kernel, Int8) else None
    values = kernel.values if isinstance(kernel, Int8) else kernel
    has_narrow_weights = x.dtype == jnp.float32 and values.dtype != jnp.float32
    y = (
        _einsum_narrow_weights(spec, x, values)
        if has_narrow_weights
        else _einsum(spec, x, values.astype(x.dtype))
    )
    if scale is None:
        return y
    return y * scale.reshape((1,) * (y.ndim - scale.ndim) + scale.shape)


def _einsum_narrow_weights(spec: str, x: jax.Array, values: jax.Array) -> jax.Array:
    """Float32 activations against weights that bfloat16 can hold.

    Off a CPU the activations are cut into two parts of 8 bits each, so that the matrix
    units can read the weights as they are stored; what is lost is below 2^-16 of an
    activation. The parts are rows of one product, so that weights are read once.
    """
    if on_cpu():
        return _einsum(spec, x, values.astype(x.dtype))
    # `reduce_precision`, as XLA may optimise a cast to bfloat16 and back away.
    # high + low = x up to 2^-16: two bfloat16 numbers hold 16 bits of the mantissa.
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    parts = jnp.stack([high, x - high]).astype(jnp.bfloat16)
    ins, out = spec.split("->")
    return jnp.sum(
        _einsum(f"z{ins}->z{out}", parts, values.astype(jnp.bfloat16)), axis=0
    )


def _einsum(spec: str, x: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.einsum(
        spec,
        x,
        values,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def keep_param(path: str, leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The `ParamTransform` that changes nothing.

    Args:
        path: Ignored.
        leaf: The parameter.

    Returns:
        The same parameter.
    """
    del path
    return leaf


def channel_axis(path: str) -> int | None:
    """The axis that a channel's weights run along, which a scale has not.

    Args:
        path: A parameter's path, such as "blocks/attn/q/kernel".

    Returns:
        The axis, counted from the end; None for norms and biases.
    """
    if path in ("embedding", "head"):
        return -1
    return -2 if path.endswith("/kernel") else None


def is_int8(leaf: Any) -> bool:
    """True for a quantised matrix.

    Args:
        leaf: A parameter.

    Returns:
        Whether it is an `Int8`.
    """
    return isinstance(leaf, Int8)


@jax.jit(static_argnums=1)
def _round_to_int8(leaf: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Values and scales of a matrix whose channels run along `axis`."""
    weights = leaf.astype(jnp.float32)
    max_magnitude = jnp.max(jnp.abs(weights), axis=axis, keepdims=True)
    # A channel of zeros stays zero with any scale; 1 avoids 0 / 0.
    scale = jnp.where(max_magnitude > 0, max_magnitude / MAX_LEVEL, 1.0)
    values = jnp.round(weights / scale).astype(jnp.int8)
    return values, jnp.squeeze(scale, axis)


QUANTIZATIONS: dict[str, ParamTransform] = {"int8": quantize_param}
