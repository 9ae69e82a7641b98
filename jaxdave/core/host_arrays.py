"""Arrays between the host and the devices of all processes.

Where a mesh has devices of several processes, every process runs the same programs and
reads the same results: what others hold is exchanged when it is read.
"""

from typing import Any

import jax
import numpy as np


def host_array(value: np.ndarray | np.generic) -> jax.Array:
    """An array that a compiled program fetches itself.

    All of a call's go together then: putting each on the device first costs a third of
    a millisecond, and `jnp.asarray` would compile a program for its shape.

    Args:
        value: A numpy array or scalar.

    Returns:
        The same object, typed as what the program takes.
    """
    return value  # pyright: ignore[reportReturnType]


def fetch_arrays(arrays: Any) -> Any:
    """Copy whole arrays to the host.

    Args:
        arrays: A pytree of arrays. If other processes have parts of one, all processes
            must make the same call.

    Returns:
        The same pytree of numpy arrays, equal in all processes.
    """
    if all(map(_is_here, jax.tree.leaves(arrays))):
        return jax.device_get(arrays)
    # Imported where it is needed: it takes a while, and most programs have one process.
    from jax.experimental import multihost_utils

    def fetch(array: Any) -> Any:
        if _is_here(array):
            return jax.device_get(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(fetch, arrays)


def largest_of_processes(values: Any) -> np.ndarray:
    """The largest of what every process has, so that all of them go by the same.

    Args:
        values: Numbers, equally many in every process.

    Returns:
        float64, of the shape of the values.
    """
    from jax.experimental import multihost_utils

    # Their bits: arrays of JAX have 32.
    mine = np.asarray(values, np.float64).view(np.uint32)
    gathered = np.asarray(multihost_utils.process_allgather(mine))
    return gathered.view(np.float64).max(axis=0)


def _is_here(array: Any) -> bool:
    """True if this process has all of an array."""
    if not isinstance(array, jax.Array):
        return True
    return array.is_fully_addressable or array.is_fully_replicated
