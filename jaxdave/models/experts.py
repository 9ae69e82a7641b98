"""Mixture-of-experts layers: products grouped by expert.

A token goes to a few of many experts. The pairs of a token and an expert are laid out
in tiles of one expert each, so that an expert's weights are read once for many tokens.
A tile has a fixed shape, and a row of a product of a fixed shape does not depend on the
other rows: under exact numerics a token's output has the same bits whatever else is in
the call, as in the dense layers (tests/models/test_experts.py, and
`engine.bitwise_check` for a model at hand).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import RouterTrace
from jaxdave.models.expert_tiles import TILE_ROWS, lay_out_tiles
from jaxdave.models.layers import INIT, MLP
from jaxdave.models.router import Router, Routing
from jaxdave.models.trained_experts import TrainedStack, trained_outputs
from jaxdave.numerics.matmul import SelectedMatrix
from jaxdave.numerics.quantization import EightBit, einsum_kernel
from jaxdave.runtime.machine import Machine
from jaxdave.runtime.mesh_shape import EXPERT_AXIS

PART_BYTES = 2**19
"""Bytes of an expert's matrix that are multiplied by at once: a quarter of the cache of
one core (docs/lab_notes/loop.md)."""


class ExpertMatrices(NamedTuple):
    """The matrices of all experts of a layer, arrays or `EightBit`s.

    Attributes:
        gate: [X, E, F].
        up: [X, E, F].
        down: [X, F, E].
    """

    gate: Any
    up: Any
    down: Any

    @property
    def count(self) -> int:
        """How many experts there are."""
        return jax.tree.leaves(self.gate)[0].shape[0]


def mix_experts(
    x_SE: jax.Array,
    routing: Routing,
    matrices: ExpertMatrices,
    machine: Machine,
    num_experts: int | None = None,
) -> jax.Array:
    """Add up the outputs of each token's experts, times their weights.

    Args:
        x_SE: Normed vectors [S, E].
        routing: Where they go.
        matrices: Arrays or `EightBit`s, or on a CPU `SelectedMatrix` of those of all
            layers; where they are trained, `TrainedStack`s.
        machine: What the products are compiled for.
        num_experts: Experts of the layer; None: as many as there are matrices. Where
            there are fewer, others are on the other devices along the mesh axis of
            experts, all of which have the same tokens.

    Returns:
        float32 [S, E], the same bits on all of these devices.
    """
    here, expert_SC = matrices.count, routing.expert_SC
    is_split = num_experts is not None and here < num_experts
    if is_split:
        expert_SC = expert_SC - jax.lax.axis_index(EXPERT_AXIS).astype(jnp.int32) * here
        is_here_SC = (expert_SC >= 0) & (expert_SC < here)
        expert_SC = jnp.where(is_here_SC, expert_SC, here)
    output_SCE = _outputs(x_SE, expert_SC, matrices, machine)
    if is_split:
        # Every output comes from one device, and the others add zeros. The sum over
        # choices is taken afterwards, in their order: its bits are those of one device.
        output_SCE = jnp.where(is_here_SC[..., None], output_SCE, 0.0)
        output_SCE = jax.lax.psum(output_SCE, EXPERT_AXIS)
    # A sum of products and not a matrix product: its order is that of the weights.
    return jnp.sum(output_SCE * routing.weight_SC[..., None], axis=1)


def _outputs(
    x_SE: jax.Array, expert_SC: jax.Array, matrices: ExpertMatrices, machine: Machine
) -> jax.Array:
    """Outputs of each token's experts, float32 [S, C, E]; any of those elsewhere."""
    is_trained = isinstance(matrices.gate, TrainedStack)
    if is_trained:
        matrices = ExpertMatrices(*(part.array for part in matrices))
    # XLA:CPU makes a product with every expert of `lax.ragged_dot`. Others have kernels
    # for it, and would wait for the host at every tile.
    grouped = _by_tiles if machine.is_cpu else _by_ragged_dot
    if is_trained and machine.is_cpu:
        return trained_outputs(x_SE, expert_SC, *matrices)
    if not isinstance(matrices.gate, SelectedMatrix):
        return grouped(x_SE, expert_SC, matrices, machine)
    # A branch per layer, which reads its own arrays in place (`SelectedMatrix`).
    layers = zip(*(part.matrices for part in matrices), strict=True)
    branches = [
        functools.partial(grouped, matrices=ExpertMatrices(*own), machine=machine)
        for own in layers
    ]
    return jax.lax.switch(matrices.gate.index, branches, x_SE, expert_SC)


def mix_experts_of_rows(
    x_SE: jax.Array,
    routing: Routing,
    matrices: ExpertMatrices,
    machine: Machine,
    num_experts: int | None = None,
) -> jax.Array:
    """`mix_experts` that under `vmap` lays out the tokens of all rows together.

    Each row by itself would read the experts that it shares with others once more, and
    compute the tiles that it does not use. It has no gradient.

    Args:
        x_SE: Normed vectors [S, E].
        routing: Where they go.
        matrices: As of `mix_experts`.
        machine: What the products are compiled for.
        num_experts: As of `mix_experts`.

    Returns:
        float32 [S, E].
    """

    @jax.custom_batching.custom_vmap
    def mix(x_SE, routing, matrices):
        return mix_experts(x_SE, routing, matrices, machine, num_experts)

    @mix.def_vmap
    def mix_rows(axis_size, is_batched, x_BSE, routing, matrices):
        assert not any(jax.tree.leaves(is_batched[2])), "rows share the experts"

        def flatten(part, has_rows: bool):
            rows = (
                part if has_rows else jnp.broadcast_to(part, (axis_size, *part.shape))
            )
            return rows.reshape(-1, *rows.shape[2:])

        tokens = jax.tree.map(flatten, (x_BSE, routing), tuple(is_batched[:2]))
        # A batch of batches comes here again.
        mixed = mix(*tokens, matrices)
        return mixed.reshape(axis_size, -1, mixed.shape[-1]), True

    return mix(x_SE, routing, matrices)


def _by_tiles(
    x_SE: jax.Array, expert_SC: jax.Array, matrices: ExpertMatrices, machine: Machine
) -> jax.Array:
    """Outputs of each token's experts, float32 [S, C, E], tile by tile."""
    tiles = lay_out_tiles(expert_SC, matrices.count)
    padded_SE = jnp.concatenate([x_SE, jnp.zeros_like(x_SE[:1])])
    empty_RE = jnp.zeros((TILE_ROWS, x_SE.shape[1]), jnp.float32)

    def evaluate(tile):
        expert, token_R = tile
        return _swiglu(
            padded_SE[token_R],
            lambda x, stack: _multiply_in_parts(x, stack, expert, machine),
            matrices,
        )

    def body(index, tile):
        output = jax.lax.cond(index < tiles.used, evaluate, lambda _: empty_RE, tile)
        return index + 1, output

    _, output_JRE = jax.lax.scan(body, jnp.int32(0), (tiles.expert_J, tiles.token_JR))
    return output_JRE.reshape(-1, x_SE.shape[1])[tiles.row_SC]


def _multiply_in_parts(
    x_RI: jax.Array, stack_XIO: Any, expert: jax.Array, machine: Machine
) -> jax.Array:
    """Products with one expert's matrix, float32 [R, O], some of its rows at a time.

    XLA copies what it slices out of a stack before it multiplies by it. A part that
    stays in the cache is read from memory once for both; a whole matrix would be
    written there, and read again.
    """
    if isinstance(stack_XIO, EightBit):
        # A channel's scale is a common factor of its sum.
        sums_RO = _multiply_in_parts(x_RI, stack_XIO.values, expert, machine)
        return sums_RO * stack_XIO.scale[expert][None]
    _, size, width = stack_XIO.shape
    # Narrow weights are widened in the cache, too.
    itemsize = max(stack_XIO.dtype.itemsize, x_RI.dtype.itemsize)
    parts = 1
    while size % (2 * parts) == 0 and size // parts * width * itemsize > PART_BYTES:
        parts *= 2
    part = size // parts

    def add(index, total_RO):
        start = (expert, index * part, 0)
        own_IO = jax.lax.dynamic_slice(stack_XIO, start, (1, part, width))[0]
        own_RI = jax.lax.dynamic_slice_in_dim(x_RI, index * part, part, axis=1)
        return total_RO + einsum_kernel("ri,io->ro", own_RI, own_IO, machine)

    if parts == 1:
        return einsum_kernel("ri,io->ro", x_RI, stack_XIO[expert], machine)
    zeros = jnp.zeros((x_RI.shape[0], width), jnp.float32)
    return jax.lax.fori_loop(0, parts, add, zeros)


def _by_ragged_dot(
    x_SE: jax.Array, expert_SC: jax.Array, matrices: ExpertMatrices, machine: Machine
) -> jax.Array:
    """Outputs of each token's experts, float32 [S, C, E], by `lax.ragged_dot`."""
    del machine
    tokens, choices = expert_SC.shape
    expert_P = expert_SC.reshape(-1)
    order_P = jnp.argsort(expert_P, stable=True)
    size_X = jnp.zeros(matrices.count, jnp.int32).at[expert_P].add(1)

    def multiply(x_PI, stack_XIO):
        if isinstance(stack_XIO, EightBit):
            sums_PO = multiply(x_PI, stack_XIO.values)
            here = jnp.minimum(expert_P[order_P], matrices.count - 1)
            return sums_PO * stack_XIO.scale[here]
        return jax.lax.ragged_dot(
            x_PI,
            stack_XIO.astype(x_PI.dtype),
            size_X,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    sorted_PE = _swiglu(x_SE[order_P // choices], multiply, matrices)
    place_P = jnp.zeros_like(order_P).at[order_P].set(jnp.arange(order_P.size))
    return sorted_PE[place_P].reshape(tokens, choices, -1)


def _swiglu(x: jax.Array, multiply, matrices: ExpertMatrices) -> jax.Array:
    """An MLP by a product of one's own, rounded where `layers.MLP` rounds."""
    gate = multiply(x, matrices.gate).astype(x.dtype)
    up = multiply(x, matrices.up).astype(x.dtype)
    return multiply(jax.nn.silu(gate) * up, matrices.down)


class ExpertStack(nnx.Module):
    """One matrix of every expert.

    Attributes:
        kernel: An array [X, in, out], or on a CPU a `SelectedMatrix` of layers' arrays.
    """

    def __init__(self, *shape: int, dtype, rngs: nnx.Rngs):
        """Initialise parameters.

        Args:
            *shape: X, in and out.
            dtype: Of the parameters.
            rngs: Where the kernel is drawn from.
        """
        self.kernel = nnx.Param(INIT(rngs.params(), shape, dtype))


class ExpertStacks(nnx.Module):
    """The matrices of all experts of a layer."""

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        """Initialise parameters.

        Args:
            config: The model's shape.
            dtype: Of the parameters.
            rngs: Where kernels are drawn from.
        """
        experts = config.experts
        assert experts is not None
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        count, hidden, inter = experts.count, config.hidden, experts.inter
        self.gate = ExpertStack(count, hidden, inter, **options)
        self.up = ExpertStack(count, hidden, inter, **options)
        self.down = ExpertStack(count, inter, hidden, **options)

    @property
    def matrices(self) -> ExpertMatrices:
        """The matrices, as arrays or `SelectedMatrix`."""
        stacks = (self.gate, self.up, self.down)
        return ExpertMatrices(*(stack.kernel.get_value() for stack in stacks))


class Experts(nnx.Module):
    """The feed-forward layer of a mixture-of-experts model.

    On a mesh a device may have a part of the experts, and has all else.
    """

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs, machine: Machine):
        """Initialise parameters.

        Args:
            config: The model's shape.
            dtype: Of the parameters.
            rngs: Where kernels are drawn from.
            machine: What products are compiled for.
        """
        experts = config.experts
        assert experts is not None
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.config, self.machine = experts, machine
        self.router = Router(config, **options)
        self.experts = ExpertStacks(config, **options)
        self.shared = (
            MLP(config.hidden, experts.shared_inter, machine=machine, **options)
            if experts.shared_inter
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer.

        Args:
            x: Normed vectors [..., E].

        Returns:
            [..., E] in the dtype of `x`.
        """
        return self._mix(x, mix_experts)[0]

    def traced(self, x: jax.Array) -> tuple[jax.Array, RouterTrace]:
        """Apply the layer and tell how close its choices were; it has no gradient.

        Args:
            x: Normed vectors [..., E].

        Returns:
            [..., E] in the dtype of `x`, and the trace [...].
        """
        return self._mix(x, mix_experts_of_rows)

    def _mix(self, x: jax.Array, mix) -> tuple[jax.Array, RouterTrace]:
        x_SE = x.reshape(-1, x.shape[-1])
        routing, trace = self.router(x_SE)
        mixed_SE = mix(
            x_SE, routing, self.experts.matrices, self.machine, self.config.count
        )
        mixed = mixed_SE.astype(x.dtype).reshape(x.shape)
        trace = jax.tree.map(lambda part_S: part_S.reshape(x.shape[:-1]), trace)
        if self.shared is not None:
            mixed += self.shared(x)
        return mixed, trace
