"""The matrix products of a training step, and a program that does nothing else.

A product is counted once for each time that a step has it: forward, and for the
gradients of both factors. Each is asked for in the layout of its factors that this
machine multiplies fastest, whatever a step itself would have to transpose for it.

Axes: M rows of a product, K what is summed over, N its columns.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench.harness.timing import time_cores
from jaxdave.core.config import ModelConfig

REPEATS = 5
"""Times that each layout of a product is timed for the choice of the fastest."""


class Product(NamedTuple):
    """Products of one shape, [M, K] by [K, N].

    Attributes:
        batch: So many at once, along a leading axis (heads); 0: there is no such axis.
        rows: M.
        inner: K.
        columns: N.
    """

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Operations: a multiplication and an addition count as two."""
        return 2 * max(1, self.batch) * self.rows * self.inner * self.columns


class Orientation(NamedTuple):
    """How the factors of a product lie in memory.

    Attributes:
        left: The left factor is stored transposed, [K, M].
        right: The right one is, [N, K].
    """

    left: bool
    right: bool


ORIENTATIONS = tuple(
    Orientation(left, right)
    for left, right in itertools.product((False, True), (False, True))
)


def step_products(
    config: ModelConfig, rows: int, positions: int, columns: int
) -> list[Product]:
    """List the products of a training step.

    Args:
        config: the model.
        rows: sequences of a batch.
        positions: positions of each that the network sees, twice the text's where a
            masked copy stands beside it.
        columns: positions of each whose tokens are predicted.

    Returns:
        Every product of forward and backward pass, in the order of the forward pass;
        equal ones repeat.
    """
    tokens = rows * positions
    q_size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = [
        *_linear(tokens, config.hidden, q_size),
        *_linear(tokens, config.hidden, kv_size),
        *_linear(tokens, config.hidden, kv_size),
        *_attention(rows * config.heads, positions, config.head_dim),
        *_linear(tokens, q_size, config.hidden),
        *_linear(tokens, config.hidden, config.inter),
        *_linear(tokens, config.hidden, config.inter),
        *_linear(tokens, config.inter, config.hidden),
    ]
    head = _linear(rows * columns, config.hidden, config.vocab_rows)
    return layer * config.num_layers + head


def _linear(rows: int, fan_in: int, fan_out: int) -> list[Product]:
    """y = x W, and the gradients of x and of W."""
    return [
        Product(0, rows, fan_in, fan_out),
        Product(0, rows, fan_out, fan_in),
        Product(0, fan_in, rows, fan_out),
    ]


def _attention(batch: int, positions: int, head_dim: int) -> list[Product]:
    """Scores and weighted values, and the gradients of both factors of each."""
    to_scores = Product(batch, positions, head_dim, positions)
    from_scores = Product(batch, positions, positions, head_dim)
    # Scores, gradient of the weights; values, gradients of queries, keys and values.
    return [to_scores] * 2 + [from_scores] * 4


def fastest_orientations(
    products: Sequence[Product],
    dtype: Any,
    orientations: Sequence[Orientation] = ORIENTATIONS,
) -> dict[Product, Orientation]:
    """Time each product in each layout, and choose.

    Args:
        products: the products.
        dtype: of their factors.
        orientations: what is tried.

    Returns:
        The layout of each that took the least processor time, the least of some calls.
    """
    fastest = {}
    for product in dict.fromkeys(products):
        seconds = {}
        for orientation in orientations:
            factors = _factors(product, orientation, dtype)
            call = jax.jit(lambda a, b, o=orientation, p=product: _multiply(a, b, p, o))
            jax.block_until_ready(call(*factors))
            seconds[orientation] = min(
                time_cores(lambda c=call, f=factors: c(*f)) for _ in range(REPEATS)
            )
        fastest[product] = min(seconds, key=lambda one: seconds[one])
    return fastest


def products_alone(
    products: Sequence[Product], orientations: Mapping[Product, Orientation], dtype: Any
) -> Callable[[], Any]:
    """Compile the products, for nothing else than to run them.

    Each is a program of its own, which writes into the memory of the one before it of
    the same shape, so that no time goes into fresh memory. Right factors differ from
    product to product, as weights do.

    Args:
        products: the products.
        orientations: the layout of each.
        dtype: of their factors.

    Returns:
        A function without arguments that runs them.
    """
    lefts, programs, results = {}, {}, {}
    for product in dict.fromkeys(products):
        orientation = orientations[product]
        left, right = _factors(product, orientation, dtype)

        def multiply(left, right, _, p=product, o=orientation):
            return _multiply(left, right, p, o)

        lefts[product] = left
        results[product] = _multiply(left, right, product, orientation)
        call = jax.jit(multiply, donate_argnums=2, keep_unused=True)
        programs[product] = call.lower(left, right, results[product]).compile()
    rights = [
        _factors(product, orientations[product], dtype)[1] + index
        for index, product in enumerate(products)
    ]

    def run():
        for product, right in zip(products, rights, strict=True):
            results[product] = programs[product](
                lefts[product], right, results[product]
            )
        return results

    return run


def _factors(product: Product, orientation: Orientation, dtype) -> tuple[Any, Any]:
    """Arrays for a product, in the layout."""
    p = product
    left = (p.inner, p.rows) if orientation.left else (p.rows, p.inner)
    right = (p.columns, p.inner) if orientation.right else (p.inner, p.columns)
    lead = (p.batch,) if p.batch else ()
    return jnp.full((*lead, *left), 0.5, dtype), jnp.full((*lead, *right), 0.5, dtype)


def _multiply(left, right, product: Product, orientation: Orientation) -> jax.Array:
    first = 1 if product.batch else 0
    lead = (0,) if product.batch else ()
    contract = (
        (first if orientation.left else first + 1,),
        (first + 1 if orientation.right else first,),
    )
    return jax.lax.dot_general(
        left, right, (contract, (lead, lead)), precision=jax.lax.Precision.HIGHEST
    )
