"""Weights in 8 bits: one symmetric scale per output channel; activations stay as is.

A quantised model is a model of its own: other weights, other text, the same guarantee
that drafts do not change it. Its matrices are `EightBit` in place of arrays wherever
the parameters go, and products with them go through `einsum_kernel`, which takes
either, or on a GPU through `numerics.eight_bit_kernel`.

"int8" has evenly spaced levels. "fp8" (float8_e4m3fn: 4 bits of exponent, 3 of
mantissa) has finer ones near zero and coarser ones far from it.

The embedding is quantised too, one channel per row. Where it is also the head, its rows
are the head's output channels, so one table serves both, and a lookup gives exactly the
vectors that the head compares with. Where it is not, it would otherwise be the largest
part of a small model that is left in floating point.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.param_paths import param_path
from jaxdave.runtime.machine import Machine

INT8, FLOAT8 = jnp.dtype(jnp.int8), jnp.dtype(jnp.float8_e4m3fn)
"""The dtypes of quantised values."""
MAX_VALUE = {INT8: 127.0, FLOAT8: 448.0}
"""The largest quantised value. Of int8, -128 is not used: the range is symmetric."""

ParamTransform = Callable[[str, Any], Any]
"""(parameter path such as "blocks/attn/q/kernel", parameter) -> its replacement."""


class EightBit(NamedTuple):
    """A quantised matrix.

    Attributes:
        values: int8 or float8_e4m3fn [..., in, out]; of the embedding and the head
            [V, E].
        scale: float32 [..., out], one per output channel; of the embedding and the head
            [V]. A weight is value times scale.
    """

    values: jax.Array
    scale: jax.Array


Int8 = EightBit
"""What the class was called when int8 was the only kind."""


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


def quantize_param(
    path: str, leaf: jax.Array | np.ndarray, dtype: jnp.dtype = INT8
) -> jax.Array | EightBit:
    """Round one parameter to 8 bits if it is a matrix.

    A channel's largest magnitude becomes the largest value of the dtype. So a weight is
    off by at most half a level: in int8 by 1 / 254 of the channel's largest, in float8
    by 1 / 16 of itself, unless it is below 2^-15 of the largest.

    Args:
        path: Its path, such as "blocks/attn/q/kernel".
        leaf: The parameter, of any float dtype.
        dtype: `INT8` or `FLOAT8`.

    Returns:
        An `EightBit` of a matrix; norms and biases as an unchanged array.
    """
    axis = channel_axis(path)
    array = jnp.asarray(leaf)
    return array if axis is None else EightBit(*_round(array, axis, dtype))


def quantize_params(params: Any, quantize: str = "int8") -> Any:
    """Round all matrices of a model to 8 bits.

    Args:
        params: Stacked float parameters (`models.param_shapes`).
        quantize: A key of `QUANTIZATIONS`.

    Returns:
        The same tree with `EightBit` in place of matrices.

    Raises:
        ValueError: They are quantised, or in a device's layout, already.
    """
    return transform_params(params, param_transform(quantize))


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


def einsum_kernel(
    spec: str, x: jax.Array, kernel: jax.Array | EightBit, machine: Machine
) -> jax.Array:
    """`jnp.einsum` in float32 at the highest precision, with either kind of kernel.

    8-bit values are exact in bfloat16 and float16 too. A channel's scale is a common
    factor of its sum, so it is applied to the sum.

    Args:
        spec: The einsum; the output's last axis must be that of the kernel's channels.
        x: Activations of any float dtype. Weights may be narrower than float32
            activations.
        kernel: An array or an `EightBit`, in the shape that `spec` names.
        machine: What the product is compiled for.

    Returns:
        Float32 array.
    """
    scale = kernel.scale if isinstance(kernel, EightBit) else None
    values = kernel.values if isinstance(kernel, EightBit) else kernel
    has_narrow_weights = x.dtype == jnp.float32 and values.dtype != jnp.float32
    y = (
        _einsum_narrow_weights(spec, x, values, machine)
        if has_narrow_weights
        else _einsum(spec, x, values.astype(x.dtype))
    )
    if scale is None:
        return y
    return y * scale.reshape((1,) * (y.ndim - scale.ndim) + scale.shape)


def narrow_parts(x: jax.Array) -> jax.Array:
    """Activations as sums of parts that matrix units multiply by narrow weights.

    Args:
        x: Activations [...], of any float dtype.

    Returns:
        Parts [P, ...] in at most 16 bits. Of float32 there are two in bfloat16, whose
        sum is off by at most 2^-16 of an activation; else one, the array itself.
    """
    if x.dtype != jnp.float32:
        return x[None]
    # `reduce_precision`, as XLA may optimise a cast to bfloat16 and back away.
    # high + low = x up to 2^-16: two bfloat16 numbers hold 16 bits of the mantissa.
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    # Selected and not concatenated: XLA:GPU then fuses it with the norm before it.
    is_high = jax.lax.broadcasted_iota(jnp.int32, (2, *x.shape), 0) == 0
    return jnp.where(is_high, high[None], (x - high)[None]).astype(jnp.bfloat16)


def _einsum_narrow_weights(
    spec: str, x: jax.Array, values: jax.Array, machine: Machine
) -> jax.Array:
    """Float32 activations against narrower weights.

    Off a CPU the activations are cut into two parts of 8 bits each, so that the matrix
    units can read the weights as they are stored; what is lost is below 2^-16 of an
    activation. The parts are rows of one product, so that weights are read once.
    """
    if machine.is_cpu:
        return _einsum(spec, x, values.astype(x.dtype))
    if values.dtype == jnp.float16:
        return _einsum_float16_weights(spec, x, values)
    ins, out = spec.split("->")
    return jnp.sum(
        _einsum(f"z{ins}->z{out}", narrow_parts(x), values.astype(jnp.bfloat16)), axis=0
    )


def _einsum_float16_weights(spec: str, x: jax.Array, values: jax.Array) -> jax.Array:
    """The same for weights that bfloat16 cannot hold.

    Both parts of a vector have 11 bits. They are relative to the vector's largest
    number, as float16 ends at 65504 and has few bits below 2^-14; what is lost is below
    2^-22 of that number.
    """
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    unit = jnp.ldexp(x, -exponent)
    high = jax.lax.reduce_precision(unit, exponent_bits=5, mantissa_bits=10)
    low = (unit - high) * 2.0**11
    ins, out = spec.split("->")
    parts = jnp.stack([high, low]).astype(jnp.float16)
    high_y, low_y = _einsum(f"z{ins}->z{out}", parts, values)
    return jnp.ldexp(high_y + low_y * 2.0**-11, exponent)


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
        The axis, counted from the end; None for norms, biases and routers, which are
        small, and where a rounding would choose other experts.
    """
    if path in ("embedding", "head"):
        return -1
    if path.endswith("/router/kernel"):
        return None
    return -2 if path.endswith("/kernel") else None


def is_eight_bit(leaf: Any) -> bool:
    """True for a quantised matrix.

    Args:
        leaf: A parameter.

    Returns:
        Whether it is an `EightBit`.
    """
    return isinstance(leaf, EightBit)


@jax.jit(static_argnums=(1, 2))
def _round(leaf: jax.Array, axis: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Values and scales of a matrix whose channels run along `axis`."""
    weights, max_value = leaf.astype(jnp.float32), MAX_VALUE[dtype]
    max_magnitude = jnp.max(jnp.abs(weights), axis=axis, keepdims=True)
    # A channel of zeros stays zero with any scale; 1 avoids 0 / 0.
    scale = jnp.where(max_magnitude > 0, max_magnitude / max_value, 1.0)
    values = weights / scale
    # A cast to an integer dtype would round towards zero.
    values = jnp.round(values) if dtype == INT8 else values
    return values.astype(dtype), jnp.squeeze(scale, axis)


QUANTIZATIONS: dict[str, ParamTransform] = {
    "int8": functools.partial(quantize_param, dtype=INT8),
    "fp8": functools.partial(quantize_param, dtype=FLOAT8),
}
"""Name of a quantisation -> what it makes of a parameter."""
