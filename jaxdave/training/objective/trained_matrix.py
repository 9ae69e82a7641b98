"""A matrix whose gradient is written out, in the layout that the matrix has.

The transposition of a product x W gives JAX the gradient of W as (dy^T x)^T. XLA:CPU
then writes dy transposed, and fuses with that copy whatever dy was computed by: the
gradient of SwiGLU was computed element by element in strides of a row, and took twice
as long as the MLP's forward products (docs/lab_notes/training_and_conversion.md).
x^T dy has the layout of W at once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.model_api import Params
from jaxdave.models.trained_experts import TrainedRouter, TrainedStack
from jaxdave.numerics.matmul import Matrix, matmul
from jaxdave.runtime.machine import Machine

LAYERS = {"blocks", "dense_blocks"}
"""The stacks of layers, of which a model has the first or both."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedMatrix(Matrix):
    """An array [in, out] that a gradient is asked for.

    Attributes:
        array: The array; it may have a leading axis of layers, which a fold over layers
            slices.

    Example:
        >>> from jaxdave.runtime.machine import this_machine
        >>> matrix = TrainedMatrix(jnp.array([[1.0, 2.0]]))
        >>> loss = lambda matrix, x: matrix.matmul(x, this_machine()).sum()
        >>> jax.grad(loss)(matrix, jnp.array([[3.0]])).array.tolist()
        [[3.0, 3.0]]
    """

    array: jax.Array

    def matmul(self, x: jax.Array, machine: Machine) -> jax.Array:
        """Multiply vectors by the matrix.

        Args:
            x: Vectors [..., in].
            machine: What the product is compiled for.

        Returns:
            Vectors [..., out], as `matmul` of the array has them.
        """
        if x.dtype != self.array.dtype:
            return matmul(x, self.array, machine)
        return _product(machine, x, self.array)


def with_written_gradients(params: Params, balance: float = 0.0) -> Params:
    """Put `TrainedMatrix` in the place of the matrices of layers.

    Args:
        params: Parameters. Matrices of another kind than arrays, such as adapted ones,
            stay.
        balance: What the balance of experts counts (`trained_experts.balanced`).

    Returns:
        Parameters that a model takes in their stead.
    """

    def wrap(part: Any, make: Callable[[jax.Array], Any]) -> Any:
        if not isinstance(part, dict):
            return part
        wrapped = {
            name: wrap(inner, makers.get(name, make)) for name, inner in part.items()
        }
        if isinstance(kernel := part.get("kernel"), jax.Array):
            wrapped["kernel"] = make(kernel)
        return wrapped

    # The parts of a mixture that are no matrices of all tokens.
    makers = {
        "experts": TrainedStack,
        "router": lambda kernel: TrainedRouter(kernel, balance),
    }
    stacks = {name: wrap(params[name], TrainedMatrix) for name in LAYERS & set(params)}
    return {**params, **stacks}


def _multiply(machine: Machine, x: jax.Array, matrix: jax.Array) -> jax.Array:
    return matmul(x, matrix, machine)


_product = jax.custom_vjp(_multiply, nondiff_argnums=(0,))


def _forward(machine: Machine, x: jax.Array, matrix: jax.Array):
    return _multiply(machine, x, matrix), (x, matrix)


def _backward(machine: Machine, saved: tuple[jax.Array, jax.Array], dy: jax.Array):
    x, matrix = saved
    x_RI, dy_RO = (a.reshape(-1, a.shape[-1]) for a in (x, dy))
    highest = jax.lax.Precision.HIGHEST
    dx = jnp.einsum("...o,io->...i", dy, matrix, precision=highest)
    return dx, jnp.einsum("ri,ro->io", x_RI, dy_RO, precision=highest)


_product.defvjp(_forward, _backward)
