"""What this machine can do at best, measured, and the least time that work takes on it.

A rate is timed in the rounds of what it is compared with, so that other people's load
falls on both.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.harness import common
from jaxdave.core.config import ModelConfig
from jaxdave.core.spec import DecodeSpec
from jaxdave.decoding.block_states import max_block_states
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.platform import on_cpu

SIDE, STREAM = (1024, 4096) if on_cpu() else (8192, 32768)
"""Sides of the square product, and of the matrix that is read: 64 MB on a CPU, 2 or 4
GB elsewhere."""


class Work(NamedTuple):
    """Multiply-adds counted twice, and bytes that must be read."""

    flops: float
    bytes: float


class Rates(NamedTuple):
    """Operations and bytes a second, one of each per round."""

    flops: np.ndarray
    bytes: np.ndarray

    def floor(self, work: Work) -> np.ndarray:
        """The least seconds of some work, per round."""
        return np.maximum(work.flops / self.flops, work.bytes / self.bytes)


def probes(dtype) -> list[Callable[[], float]]:
    """Timers of a square product and of two readings of memory; see `rates`."""
    high = jax.lax.Precision.HIGHEST
    times = jax.jit(lambda a, b: jnp.matmul(a, b, precision=high))
    moved = jax.jit(lambda a: a + 1)
    drawn = lambda shape: jax.random.normal(jax.random.key(0), shape, dtype)  # noqa: E731
    square, large = drawn((SIDE, SIDE)), drawn((STREAM, STREAM))
    line = drawn((1, STREAM))
    tries = (
        lambda: times(square, square),
        lambda: times(line, large),
        lambda: moved(large),
    )
    return [lambda f=f: common.seconds(f, 3) for f in tries]


def rates(seconds: np.ndarray, size: int) -> Rates:
    """The rates of rounds [R, 3] of the seconds of probes of so many bytes a number."""
    whole = size * STREAM**2
    read, copied = whole / seconds[:, 1], 2 * whole / seconds[:, 2]
    return Rates(2 * SIDE**3 / seconds[:, 0], np.maximum(read, copied))


def query_tokens(spec: DecodeSpec) -> int:
    """Tokens that one call of a block-causal program evaluates."""
    return (
        max_block_states(spec.num_states, spec.layout.num_blocks)
        * spec.layout.block_length
    )


def call_work(config: ModelConfig, spec: DecodeSpec, size: int) -> Work:
    """What a bare call computes: the layers, and the head where it must be read.

    size: bytes of a weight.
    """
    layers, head = matrices(config)
    grid = spec.layout
    ahead = grid.window_length if spec.num_drafts > 1 else 0
    reads = spec.num_states * grid.block_length + ahead
    flops = 2.0 * (layers * query_tokens(spec) + head * reads)
    return Work(flops, float(size * (layers + head)))


def matrices(config: ModelConfig) -> tuple[int, int]:
    """Weights that every token is multiplied with: of the layers, and of the head."""
    like = param_shapes(config)
    layers = sum(a.size for a in jax.tree.leaves(like["blocks"]) if a.ndim == 3)
    return layers, config.hidden * config.vocab_rows
