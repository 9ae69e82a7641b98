"""A check that weights are finite numbers, made while they pass through the cache.

One broken number in the weights makes every score NaN, which no later step can tell
from a bad model: it has to be refused where the tensor still has a name.
"""

from typing import Any

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
    if not _is_finite(array):
        raise ValueError(
            f"tensor {name} holds NaN or infinity; fetch the checkpoint again"
        )


def _is_finite(array: Any) -> bool:
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
