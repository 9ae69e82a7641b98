"""The matrices of all layers, each an array of its own, and functions of all layers.

A scan over stacked matrices would have XLA copy each of them, on a CPU and on a GPU
(`matmul`). On a CPU a layer's product is a `lax.switch` over the matrices of all: each
is read where it lies, and the layer is still compiled once. A GPU would wait for the
host at every such branch: its layers are spelled out, one after another.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.numerics.matmul import Matrix, RowMajor, SelectedMatrix
from jaxdave.runtime.machine import Machine


class LayerStack(abc.ABC):
    """The matrices of all layers in another form than one stacked array."""

    @abc.abstractmethod
    def layer(self, index: int) -> Any:
        """The matrix of one layer.

        Args:
            index: The layer, known when the program is traced.

        Returns:
            Its matrix, of any kind that `matmul` takes.
        """

    @abc.abstractmethod
    def select(self, index: jax.Array) -> Matrix:
        """The matrix of one layer.

        Args:
            index: The layer, int32 scalar, known only when the program runs.

        Returns:
            Its matrix, not copied.
        """

    @abc.abstractmethod
    def to_stacked(self) -> Any:
        """One array [N, in, out], or an `EightBit` of one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerLayer(LayerStack):
    """The matrices of all layers, each an array of its own, in place of their stack.

    Attributes:
        layers: A matrix per layer: an array [in, out], an `EightBit`, a `RowMajor` or
            an `EightBitRows`.
    """

    layers: tuple[Any, ...]

    def layer(self, index: int) -> Any:
        """The matrix of one layer.

        Args:
            index: The layer, known when the program is traced.

        Returns:
            Its matrix.
        """
        return self.layers[index]

    def select(self, index: jax.Array) -> SelectedMatrix:
        """The matrix of one layer.

        Args:
            index: The layer, int32 scalar, known only when the program runs.

        Returns:
            Its matrix, not copied.
        """
        return SelectedMatrix(self.layers, index)

    def to_stacked(self) -> Any:
        """One array [N, in, out], or an `EightBit` of one."""
        # Large matrices are stored transposed; in the stacked form none is.
        layers = (
            matrix.to_input_major() if isinstance(matrix, RowMajor) else matrix
            for matrix in self.layers
        )
        return jax.tree.map(lambda *own: jnp.stack(own), *layers)


LayerFn = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(carry, parameters of the layer, slice of `inputs`) -> (carry, output)."""


def fold_layers(
    function: LayerFn,
    carry: Any,
    layers: Any,
    inputs: Any,
    machine: Machine,
    *,
    spell_out: bool = False,
) -> tuple[Any, Any]:
    """Apply a function to the layers one after another.

    Args:
        function: What is done in a layer.
        carry: The carry of the first layer.
        layers: The layers' parameters: leaves are arrays [N, ...] or `LayerStack`s. At
            least one must be an array, which gives N.
        inputs: Arrays [N, ...], of which each layer gets its slice.
        machine: What the program is compiled for: layers are spelled out for a GPU.
        spell_out: They are elsewhere too: compiling takes longer, and what the backward
            pass needs of a layer is not copied into a stack and out of it.

    Returns:
        The carry of the last layer, and the outputs of all, stacked [N, ...].
    """
    if spell_out or machine.is_gpu:
        count = _num_layers(layers)
        if spell_out:
            layers = jax.tree.map(_split, layers, is_leaf=_is_layer_stack)
        return _fold_spelled_out(function, carry, layers, inputs, count)
    xs, layer_of = _scan_over_layers(layers)

    def body(carry, element):
        layer, layer_input = element
        return function(carry, layer_of(layer), layer_input)

    return jax.lax.scan(body, carry, (xs, inputs))


def _num_layers(layers: Any) -> int:
    leaves = jax.tree.leaves(layers, is_leaf=_is_layer_stack)
    return next(a.shape[0] for a in leaves if not _is_layer_stack(a))


def _split(leaf: Any) -> Any:
    """A stacked array as arrays of layers, whose gradients are joined in one go.

    That of indexing is an array of all layers, zero but for one; XLA adds all of them.
    """
    if _is_layer_stack(leaf):
        return leaf
    parts = jax.lax.split(leaf, [1] * len(leaf))
    return PerLayer(tuple(part.reshape(part.shape[1:]) for part in parts))


def _fold_spelled_out(
    function: LayerFn, carry, layers: Any, inputs: Any, num_layers: int
):
    """`fold_layers` without a loop, so that a layer's arrays are known to XLA."""
    leaves, tree = jax.tree.flatten(layers, is_leaf=_is_layer_stack)
    outputs = []
    for index in range(num_layers):
        own = tree.unflatten(
            leaf.layer(index) if _is_layer_stack(leaf) else leaf[index]
            for leaf in leaves
        )
        layer_input = jax.tree.map(lambda a, index=index: a[index], inputs)
        carry, output = function(carry, own, layer_input)
        outputs.append(output)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)


def _scan_over_layers(layers: Any):
    """Prepare the parameters of all layers for a `lax.scan`.

    A scan slices stacked arrays by itself. A `LayerStack` must not be sliced, as that
    would copy it: it stays outside as a closure, and the layer's index picks from it.

    Args:
        layers: As for `fold_layers`.

    Returns:
        xs: What to scan over: the stacked arrays, and the layers' indices.
        layer_of: A function from one element of xs to the parameters of one layer.
    """
    # `is_leaf` keeps a stack whole. Flattened, its layers would be leaves of their own,
    # and the scan would try to slice each of them along its rows.
    leaves, tree = jax.tree.flatten(layers, is_leaf=_is_layer_stack)
    # None is a pytree without leaves: the scan passes over it, and `layer_of` puts the
    # layer's own matrix in its place.
    stacks = [None if _is_layer_stack(leaf) else leaf for leaf in leaves]
    num_layers = jax.tree.leaves(stacks)[0].shape[0]

    def layer_of(element):
        slices, index = element
        return tree.unflatten(
            leaf.select(index) if _is_layer_stack(leaf) else part
            for leaf, part in zip(leaves, slices, strict=True)
        )

    return (stacks, jnp.arange(num_layers, dtype=jnp.int32)), layer_of


def _is_layer_stack(leaf: Any) -> bool:
    return isinstance(leaf, LayerStack)
