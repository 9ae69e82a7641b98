"""Int8 weights: one symmetric scale per output channel, activations as they were.

A quantised model is a model of its own: other weights, other text, the same promise.
Its matrices are `Int8` in place of arrays, wherever the parameters go; what reads them
goes through `contract`, which takes either.

The embedding is quantised too, a row a channel. Where it is also the head, the rows are
the head's output channels, so one table serves both and a lookup gives the very vectors
that the head compares with; where it is not, it is a tenth of a small model and would
otherwise be the largest part that is left.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.param_paths import param_path
from jaxdave.runtime.platform import on_cpu

MAX_LEVEL = 127.0
"""Levels on either side of zero. -128 is not used, so that signs are alike."""

ParamTransform = Callable[[str, Any], Any]
"""(parameter path, parameter) -> what the model keeps of it."""


class Int8(NamedTuple):
    """A matrix: int8 values [..., in, out] and float32 scales [..., out].

    Of the embedding and the head: values [V, E], scales [V].
    """

    values: jax.Array
    scale: jax.Array


def check_quantization(quantize: str | None) -> None:
    """Raise ValueError unless it is a way to quantise, or None."""
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ValueError(
            f"quantize={quantize!r} is unknown; use {', '.join(QUANTIZATIONS)} or "
            "leave it out"
        )


def param_transform(quantize: str | None) -> ParamTransform:
    """What becomes of parameters as they are read. Raises ValueError if unknown."""
    check_quantization(quantize)
    return keep_param if quantize is None else QUANTIZATIONS[quantize]


def quantize_param(path: str, leaf: jax.Array | np.ndarray) -> jax.Array | Int8:
    """A matrix of a model rounded to int8; norms and biases as they are.

    A channel's largest value becomes 127, so every value is at most half a level off.
    """
    axis = channel_axis(path)
    whole = jnp.asarray(leaf)
    return whole if axis is None else Int8(*_round_to_int8(whole, axis))


def quantize_params(params: Any) -> Any:
    """All parameters of a model as `int8` leaves them.

    Raises ValueError for those that are int8, or lie as a CPU reads them, already.
    """
    return transform_params(params, quantize_param)


def transform_params(params: Any, finish: ParamTransform) -> Any:
    """The parameters after `finish`."""

    def one(path, leaf):
        name = param_path(path)
        if "/kernel/" in name:
            raise ValueError(
                f"{name} is a part of a matrix that is quantised, or lies as a CPU "
                "reads it; use `placing.stacked` of float parameters"
            )
        return finish(name, leaf)

    return jax.tree_util.tree_map_with_path(one, params)


def einsum_kernel(spec: str, x: jax.Array, kernel: jax.Array | Int8) -> jax.Array:
    """`jnp.einsum` in float32 at the highest precision, with either kind of kernel.

    The last axis of the output is that of the kernel's channels. Int8 values are exact
    in bfloat16 too; a channel's scale is a common factor of its sum, so it is applied
    to the sum. Weights may be narrower than float32 activations (`_wide`).
    """
    scale = kernel.scale if isinstance(kernel, Int8) else None
    values = kernel.values if isinstance(kernel, Int8) else kernel
    is_wide = x.dtype == jnp.float32 and values.dtype != jnp.float32
    y = (
        _einsum_narrow_weights(spec, x, values)
        if is_wide
        else _einsum(spec, x, values.astype(x.dtype))
    )
    if scale is None:
        return y
    return y * scale.reshape((1,) * (y.ndim - scale.ndim) + scale.shape)


def _einsum_narrow_weights(spec: str, x: jax.Array, values: jax.Array) -> jax.Array:
    """Float32 activations against weights that bfloat16 can hold.

    Off a CPU the activations are cut into two parts of 8 bits each, so that the matrix
    units read weights as they are stored; what is lost is below 2^-16 of an activation.
    The parts are rows of one product, so that weights are read once.
    (`reduce_precision`, as a cast there and back may be optimised away.)
    """
    if on_cpu():
        return _einsum(spec, x, values.astype(x.dtype))
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
    """A parameter, whatever its path."""
    del path
    return leaf


def channel_axis(path: str) -> int | None:
    """The axis that a channel of a parameter runs along; None: it has no channels."""
    if path in ("embedding", "head"):
        return -1
    return -2 if path.endswith("/kernel") else None


def is_int8(leaf: Any) -> bool:
    """Whether it is a matrix of int8."""
    return isinstance(leaf, Int8)


@jax.jit(static_argnums=1)
def _round_to_int8(leaf: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    wide = leaf.astype(jnp.float32)
    most = jnp.max(jnp.abs(wide), axis=axis, keepdims=True)
    # A channel of zeros stays one, whatever its scale.
    scale = jnp.where(most > 0, most / MAX_LEVEL, 1.0)
    values = jnp.round(wide / scale).astype(jnp.int8)
    return values, jnp.squeeze(scale, axis)


QUANTIZATIONS: dict[str, ParamTransform] = {"int8": quantize_param}
