"""A frozen matrix with a trained one of low rank beside it.

Source: LoRA, arXiv 2106.09685: W x + (alpha / r) B A x, with W fixed.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.numerics.matmul import Matrix, matmul
from jaxdave.numerics.quantization import EightBit
from jaxdave.runtime.machine import Machine


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptedMatrix(Matrix):
    """A matrix and the product of two thin ones, added to it.

    All arrays may have a leading axis of layers [N, ...], which a scan slices.

    Attributes:
        base: The matrix [in, out], of any kind that `matmul` takes.
        lora_a: Array [in, r].
        lora_b: Array [r, out].
        scale: What their product is multiplied by.

    Example:
        >>> from jaxdave.runtime.machine import this_machine
        >>> one = jnp.ones((2, 2))
        >>> adapted = AdaptedMatrix(one, lora_a=one[:, :1], lora_b=one[:1], scale=0.5)
        >>> adapted.matmul(jnp.array([1.0, 2.0]), this_machine()).tolist()
        [4.5, 4.5]
    """

    base: Any
    lora_a: jax.Array
    lora_b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})

    def matmul(self, x: jax.Array, machine: Machine) -> jax.Array:
        """Multiply vectors by the matrix, apart: x W + scale (x A) B.

        Args:
            x: Vectors [..., in].
            machine: What the product with the base is compiled for.

        Returns:
            Vectors [..., out], float32. Where `lora_b` is zero they are those of the
            base.
        """
        # The thin products cost next to nothing, so that they are float32 even
        # between bfloat16 weights: no training signal is lost in them.
        thin = _product("...i,ir->...r", x, self.lora_a)
        added = _product("...r,ro->...o", thin * self.scale, self.lora_b)
        return matmul(x, self.base, machine).astype(jnp.float32) + added

    def merge(self) -> jax.Array:
        """One matrix for both: the sum in float32, rounded once.

        Returns:
            An array [..., in, out] in the dtype of the base; float32 of one in 8 bits.

        Raises:
            ValueError: The base is in a device's layout.
        """
        base = self.base
        if isinstance(base, EightBit):
            base = base.values.astype(jnp.float32) * base.scale[..., None, :]
        if isinstance(base, tuple) or not hasattr(base, "dtype"):
            raise ValueError(
                f"an adapter cannot be merged into {type(base).__name__}, a matrix in "
                "a device's layout; use `weight_layout.to_stacked` of the base first"
            )
        added = _product("...ir,...ro->...io", self.lora_a, self.lora_b)
        return (base.astype(jnp.float32) + added * self.scale).astype(base.dtype)


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)
