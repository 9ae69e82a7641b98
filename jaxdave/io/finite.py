"""A check that weights are finite numbers, made while they pass through the cache.

One broken number in the weights makes every score NaN, which no later step can tell
from a bad model: it has to be refused where the tensor still has a name.
"""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 1 << 17
"""Numbers that are looked at together: small enough to stay in a core's cache."""
_EXPONENTS = {
    "float32": (np.uint32, 0x7F800000),
    "bfloat16": (np.uint16, 0x7F80),
    "float16": (np.uint16, 0x7C00),
}
"""Integers of the same width, and the bits of the exponent. It has all of them set in
infinities and NaNs, and in no finite number."""


def check_finite(name: str, array: Any) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Args:
      name: what errors call it.
      array: a NumPy or JAX array of a float dtype; of any other, nothing is checked.

    Raises:
      ValueError: it does.
    """
    if not is_finite(array):
        raise ValueError(
            f"tensor {name} holds NaN or infinity; fetch the checkpoint again"
        )


def check_cast(name: str, source: Any, cast: Any) -> None:
    """Refuse a tensor with numbers that are not finite in the dtype it is cast to.

    Args:
      name: what errors call it.
      source: the tensor as it is stored.
      cast: the same numbers in another dtype, or in the same.

    Raises:
      ValueError: the tensor holds NaN or infinity, or a number beyond the dtype's
        largest, which is 65504 in float16.
    """
    if is_finite(cast):
        return
    check_finite(name, source)
    raise_overflow(name, str(cast.dtype))


def raise_overflow(name: str, dtype: str) -> NoReturn:
    """Refuse a tensor that a dtype cannot hold.

    Args:
      name: what errors call it.
      dtype: name of the dtype, "float16" or "bfloat16".

    Raises:
      ValueError: always.
    """
    wider = "float32" if dtype == "bfloat16" else "bfloat16 or float32"
    raise ValueError(
        f"tensor {name} holds numbers beyond {float(jnp.finfo(dtype).max):.6g}, the "
        f"largest of {dtype}; use {wider}"
    )


def is_finite(array: Any) -> bool:
    """Look for NaN and infinity.

    Args:
      array: a NumPy or JAX array.

    Returns:
      False for an array of a float dtype that holds one of them.
    """
    if isinstance(array, jax.Array):
        is_on_host = all(device.platform == "cpu" for device in array.devices())
        if not is_on_host or not array.is_fully_addressable:
            return bool(jnp.all(jnp.isfinite(array)))
        array = np.asarray(array)
    kind = _EXPONENTS.get(str(array.dtype))
    if kind is None:
        return True
    # In the order of the memory, so that a transposed view is not copied.
    flat = array.ravel(order="K")
    bits, exponent = flat.view(kind[0]), kind[1]
    buffer = np.empty(min(_BLOCK, bits.size), kind[0])
    for first in range(0, bits.size, _BLOCK):
        block = bits[first : first + _BLOCK]
        exponents = np.bitwise_and(block, exponent, out=buffer[: block.size])
        if exponents.max(initial=0) == exponent:
            return False
    return True
