"""A roofline of this machine: its measured rates, and the least time of some work.

The rates are timed in the same rounds as what is compared with them, so that other
people's load falls on both.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.harness.timing import time_call
from jaxdave.core.config import ModelConfig
from jaxdave.core.spec import DecodeSpec
from jaxdave.decoding.block_states import max_block_states
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.machine import this_machine

SQUARE_SIDE, READ_SIDE = (1024, 4096) if this_machine().is_cpu else (8192, 32768)
"""Sides of the square product, and of the square matrix that is read from memory: 64 MB
on a CPU, 2 or 4 GB elsewhere, so that no cache holds it."""


class Work(NamedTuple):
    """The cost of a computation.

    Attributes:
        flops: floating-point operations; a multiply-add counts as two.
        bytes: bytes that must be read from memory.
    """

    flops: float
    bytes: float


class Rates(NamedTuple):
    """What the machine reached in each round.

    Attributes:
        flops: operations a second of a square product, `[rounds]`.
        bytes: bytes a second, `[rounds]`.
    """

    flops: np.ndarray
    bytes: np.ndarray

    def min_seconds(self, work: Work) -> np.ndarray:
        """Compute the least time of some work: the roofline.

        Args:
            work: operations and bytes.

        Returns:
            Seconds by whichever rate binds, `[rounds]`.
        """
        return np.maximum(work.flops / self.flops, work.bytes / self.bytes)


def rate_timers(dtype) -> list[Callable[[], float]]:
    """Build the timers that the rates are computed from.

    Args:
        dtype: dtype of the model's weights.

    Returns:
        Timers, in seconds, of a square product, a matrix-vector product and an
        elementwise pass; see `rates_from_times`.
    """

    def random_array(*shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(0), shape, dtype)

    highest = jax.lax.Precision.HIGHEST
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=highest))
    add_one = jax.jit(lambda a: a + 1)
    square = random_array(SQUARE_SIDE, SQUARE_SIDE)
    large = random_array(READ_SIDE, READ_SIDE)
    vector = random_array(1, READ_SIDE)
    functions = (
        lambda: product(square, square),
        lambda: product(vector, large),
        lambda: add_one(large),
    )
    return [lambda f=f: time_call(f, 3) for f in functions]


def rates_from_times(seconds: np.ndarray, itemsize: int) -> Rates:
    """Compute the rates of some rounds.

    Args:
        seconds: times of `rate_timers`, `[rounds, 3]`.
        itemsize: bytes of a number.

    Returns:
        The rates. Bandwidth is the better of a read (matrix-vector product) and of a
        read and write (elementwise pass).
    """
    matrix_bytes = itemsize * READ_SIDE**2
    read = matrix_bytes / seconds[:, 1]
    read_and_written = 2 * matrix_bytes / seconds[:, 2]
    return Rates(
        flops=2 * SQUARE_SIDE**3 / seconds[:, 0],
        bytes=np.maximum(read, read_and_written),
    )


def query_tokens(spec: DecodeSpec) -> int:
    """Count the tokens that one call evaluates.

    Args:
        spec: the decode of a block-causal model.

    Returns:
        Tokens of all distinct block states that its drafts can have.
    """
    return (
        max_block_states(spec.num_states, spec.layout.num_blocks)
        * spec.layout.block_length
    )


def call_work(config: ModelConfig, spec: DecodeSpec, itemsize: int) -> Work:
    """Count the work of one network call: the layers, and the head where it is read.

    Args:
        config: the model.
        spec: the decode.
        itemsize: bytes of a weight.

    Returns:
        Its operations and bytes. Attention is left out: at the lengths measured it is
        small beside the matrices.
    """
    layers, head = matrix_sizes(config)
    grid = spec.layout
    ahead = grid.window_length if spec.num_drafts > 1 else 0
    reads = spec.num_states * grid.block_length + ahead
    flops = 2.0 * (layers * query_tokens(spec) + head * reads)
    return Work(flops, float(itemsize * (layers + head)))


def matrix_sizes(config: ModelConfig) -> tuple[int, int]:
    """Count the weights that every token is multiplied with.

    Args:
        config: the model.

    Returns:
        Weights of the layers' matrices, and of the output head.
    """
    shapes = param_shapes(config)
    layers = sum(a.size for a in jax.tree.leaves(shapes["blocks"]) if a.ndim == 3)
    return layers, config.hidden * config.vocab_rows
