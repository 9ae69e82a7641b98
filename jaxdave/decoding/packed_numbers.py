"""Single numbers of a row side by side in one array, where it is carried by a loop.

A row has some twenty single numbers and flags. Each that a loop carries is an array of
its own: a GPU starts a kernel for each that is computed, and often another that copies
it. Side by side they are one array, which one kernel writes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MAX_SIZE = 8
"""Arrays of at most so many numbers are packed."""


class PackedTree(NamedTuple):
    """A pytree whose small arrays are one.

    Attributes:
        numbers_P: The bits of all small arrays side by side, int32 [P].
        rest: All other arrays, in order.
    """

    numbers_P: jax.Array
    rest: tuple[jax.Array, ...]


def pack_numbers(tree: Any) -> tuple[PackedTree, Callable[[PackedTree], Any]]:
    """Put the small arrays of a pytree side by side.

    Args:
        tree: Arrays. Small ones of 32 bits and flags are packed.

    Returns:
        (the packed tree; the function that makes such a tree of a packed one, bit for
        bit).

    Example:
        >>> packed, unpack = pack_numbers({"n": jnp.int32(3), "done": jnp.bool_(True)})
        >>> packed.numbers_P.tolist(), bool(unpack(packed)["done"])
        ([1, 3], True)
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    small = [_is_small(leaf) for leaf in leaves]
    shapes = [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for leaf, is_small in zip(leaves, small, strict=True)
        if is_small
    ]

    def unpack(packed: PackedTree) -> Any:
        rest, first, numbers = iter(packed.rest), 0, []
        for shape in shapes:
            size = math.prod(shape.shape)
            part = jax.lax.slice(packed.numbers_P, (first,), (first + size,))
            numbers.append(_from_bits(part, shape.dtype).reshape(shape.shape))
            first += size
        found = iter(numbers)
        leaves = [next(found) if is_small else next(rest) for is_small in small]
        return jax.tree.unflatten(structure, leaves)

    both = list(zip(leaves, small, strict=True))
    bits = [_to_bits(leaf).reshape(-1) for leaf, is_small in both if is_small]
    numbers_P = jnp.concatenate(bits) if bits else jnp.zeros((0,), jnp.int32)
    rest = tuple(leaf for leaf, is_small in both if not is_small)
    return PackedTree(numbers_P, rest), unpack


def while_packed(
    is_running: Callable[[Any], jax.Array],
    body: Callable[[Any], Any],
    carry: Any,
    *,
    packs: bool,
) -> Any:
    """`lax.while_loop`, with the small arrays of the carry side by side.

    Args:
        is_running: carry -> bool scalar.
        body: carry -> carry.
        carry: The first carry.
        packs: Whether to pack; else it is the plain loop.

    Returns:
        The last carry.
    """
    if not packs:
        return jax.lax.while_loop(is_running, body, carry)
    packed, unpack = pack_numbers(carry)
    last = jax.lax.while_loop(
        lambda packed: is_running(unpack(packed)),
        lambda packed: pack_numbers(body(unpack(packed)))[0],
        packed,
    )
    return unpack(last)


def _is_small(leaf: jax.Array) -> bool:
    has_32_bits = leaf.dtype in (jnp.int32, jnp.uint32, jnp.float32)
    return leaf.size <= MAX_SIZE and (has_32_bits or leaf.dtype == jnp.bool_)


def _to_bits(leaf: jax.Array) -> jax.Array:
    if leaf.dtype in (jnp.bool_, jnp.int32):
        return leaf.astype(jnp.int32)
    return jax.lax.bitcast_convert_type(leaf, jnp.int32)


def _from_bits(bits: jax.Array, dtype) -> jax.Array:
    if dtype in (jnp.bool_, jnp.int32):
        return bits.astype(dtype)
    return jax.lax.bitcast_convert_type(bits, dtype)
