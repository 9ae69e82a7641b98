"""Norms and rotation of queries and keys as one kernel for GPUs.

After the fused projection every head of a token is normed by itself, queries and keys
are rotated, and values are only set apart. XLA makes five launches of it, as its fusion
of a norm ends at the concatenation that the rotation is.

Axes: F tokens, A = H + 2 G heads of queries, keys and values, D head size.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxdave.runtime.machine import Machine

MAX_TILE = 16
"""Tokens per program, at most."""


def fits_kernel(x: jax.Array, head_dim: int, rotary_dim: int) -> bool:
    """Tell if the kernel can compute a model's norms and rotation.

    Args:
        x: The projected vectors.
        head_dim: The head size.
        rotary_dim: Features that are rotated.

    Returns:
        True for float32 vectors whose heads are rotated whole and are a block of
        Triton, i.e. a power of two. In narrower types every step rounds, which XLA's
        way does as published modules do.
    """
    is_power_of_two = head_dim >= 16 and head_dim & (head_dim - 1) == 0
    return x.dtype == jnp.float32 and is_power_of_two and rotary_dim == head_dim


def norm_and_rotate(
    x_FAD,
    rope,
    scales: Sequence[jax.Array] | None,
    eps: float,
    sizes: tuple[int, int, int],
    machine: Machine,
):
    """Norm and rotate the heads of queries and keys, and set values apart.

    Args:
        x_FAD: All heads of the tokens, float32 [F, A, D]: queries, keys, values.
        rope: Cosines and sines of the tokens, [F, D / 2] each.
        scales: Scales of the norms of queries and of keys, [D] each; None: no norms.
        eps: Added to the mean square.
        sizes: Heads of queries, keys and values.
        machine: What the kernel is compiled for.

    Returns:
        q [F, H, D], k and v [F, G, D].
    """
    num_tokens, num_heads, head_dim = x_FAD.shape
    tile = MAX_TILE
    while num_tokens % tile:
        tile //= 2
    half = head_dim // 2

    def of_tokens(index, _):
        return index, 0

    one = jnp.ones((head_dim,), jnp.float32)
    q_scale, k_scale = (one, one) if scales is None else scales
    kernel = functools.partial(
        _kernel, sizes=sizes, eps=eps if scales is not None else None
    )
    whole = [
        pl.BlockSpec((tile, size, head_dim), lambda index, _: (index, 0, 0))
        for size in sizes
    ]
    call: Any = pl.pallas_call(
        kernel,
        name="norm_and_rotate",
        grid=(num_tokens // tile, num_heads),
        in_specs=[
            pl.BlockSpec((tile, None, head_dim), lambda index, head: (index, head, 0)),
            pl.BlockSpec((tile, half), of_tokens),
            pl.BlockSpec((tile, half), of_tokens),
            pl.BlockSpec((head_dim,), lambda *_: (0,)),
            pl.BlockSpec((head_dim,), lambda *_: (0,)),
        ],
        out_specs=whole,
        out_shape=[
            jax.ShapeDtypeStruct((num_tokens, size, head_dim), x_FAD.dtype)
            for size in sizes
        ],
        **_backend(machine),
    )
    as_float32 = [jnp.asarray(a, jnp.float32) for a in (*rope, q_scale, k_scale)]
    return call(x_FAD, *as_float32)


def _kernel(
    x_ref,
    cos_ref,
    sin_ref,
    q_scale_ref,
    k_scale_ref,
    q_ref,
    k_ref,
    v_ref,
    *,
    sizes: tuple[int, int, int],
    eps: float | None,
):
    """One program: one head of some tokens, which goes to one of the outputs."""
    head = pl.program_id(1)
    num_queries, num_keys, _ = sizes
    half = cos_ref.shape[1]
    low, high = x_ref[:, :half], x_ref[:, half:]

    def rotated(scale_ref):
        a, b = low, high
        if eps is not None:
            # As `layers.RMSNorm`, over both halves of a head.
            squares = jnp.sum(a * a, axis=1) + jnp.sum(b * b, axis=1)
            factor = jax.lax.rsqrt(squares / (2 * half) + eps)[:, None]
            a = a * factor * scale_ref[:half][None]
            b = b * factor * scale_ref[half:][None]
        cos, sin = cos_ref[...], sin_ref[...]
        return a * cos - b * sin, b * cos + a * sin

    def store(ref, index, halves):
        ref[:, index, :half], ref[:, index, half:] = halves

    @pl.when(head < num_queries)
    def store_query():
        store(q_ref, head, rotated(q_scale_ref))

    @pl.when((head >= num_queries) & (head < num_queries + num_keys))
    def store_key():
        store(k_ref, head - num_queries, rotated(k_scale_ref))

    @pl.when(head >= num_queries + num_keys)
    def store_value():
        store(v_ref, head - num_queries - num_keys, (low, high))


def _backend(machine: Machine) -> dict[str, Any]:
    """Settings of `pl.pallas_call`: for Triton, or interpreted."""
    if machine.interpret_kernels:
        return {"interpret": True}
    return {"compiler_params": plgpu.CompilerParams(num_warps=4, num_stages=1)}
