"""Parameters where and how this machine's products read them best.

On a CPU the matrices of the layers, and the chunks of the head, are arrays of their own
(why: `matrices.py`). Large ones have a row an output channel, the order that XLA:CPU's
products read fastest; small ones have a column, as everywhere else. Whoever wants the
parameters as `params.abstract` has them asks for `stacked`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.backend import on_cpu
from jaxdave.config import ModelConfig
from jaxdave.matrices import Across, Apart, Cut, rows_of, uncut
from jaxdave.noise import DRAWN
from jaxdave.quantize import Finish, Int8, finished

CPU_HEAD, HEAD_CHUNK = DRAWN, 4 * DRAWN
"""Ids of the vocabulary that are looked at together, on a CPU and elsewhere, where a
pass costs a dozen launches whatever its size."""
LARGE = 2**19
"""Numbers in a matrix from where on it has a row a channel: 2 MB, what a core of the
machine that it was measured on keeps (bench/NOTES.md, "Matrices apart")."""


def head_chunk(rows: int) -> int:
    """Ids per chunk of the head: all, or a multiple of what noise is drawn for."""
    most = CPU_HEAD if on_cpu() else HEAD_CHUNK
    return rows if rows <= DRAWN else min(most, rows // DRAWN * DRAWN)


def as_read(config: ModelConfig) -> Finish:
    """What becomes of a whole parameter, host array or not: it is put on the device."""
    table = "embedding" if config.tie_embeddings else "head"

    def one(path: str, leaf: Any) -> Any:
        if on_cpu() and path.endswith("/kernel"):
            return Apart(tuple(map(_layer, _each(leaf, config.num_layers))))
        if on_cpu() and path == table and head_chunk(config.vocab_rows) < rows_of(leaf):
            return _cut(leaf, head_chunk(config.vocab_rows))
        return jax.device_put(leaf)

    return one


def laid_out(params: Any, config: ModelConfig) -> Any:
    """All parameters, of `params.abstract` or `Int8`, as this machine reads them."""
    return finished(params, as_read(config))


def stacked(params: Any) -> Any:
    """Parameters as `params.abstract` has them, whatever machine they were read for."""

    def one(leaf):
        if isinstance(leaf, Cut):
            return uncut(leaf)
        if not isinstance(leaf, Apart):
            return leaf
        return jax.tree.map(lambda *own: jnp.stack(own), *map(_down, leaf.layers))

    return jax.tree.map(one, params, is_leaf=lambda a: isinstance(a, Apart | Cut))


def _each(leaf: Any, count: int):
    """The parts of a stack, on the host: a slice on the device would be compiled."""
    host = jax.tree.map(np.asarray, leaf)
    return [jax.tree.map(lambda a, i=i: a[i], host) for i in range(count)]


def _layer(matrix: Any) -> Any:
    if jax.tree.leaves(matrix)[0].size < LARGE:
        return jax.device_put(matrix)
    return Across(jax.device_put(_turned(matrix)))


def _turned(matrix: Any) -> Any:
    """The other order of a matrix, on the host; scales are of channels in either."""
    if isinstance(matrix, Int8):
        return Int8(_turned(matrix.values), matrix.scale)
    return np.ascontiguousarray(matrix.T)


def _down(matrix: Any) -> Any:
    """A matrix [in, out] of either order."""
    if not isinstance(matrix, Across):
        return matrix
    inner = matrix.matrix
    return Int8(inner.values.T, inner.scale) if isinstance(inner, Int8) else inner.T


def _cut(table: Any, size: int) -> Cut:
    host = jax.tree.map(np.asarray, table)
    rows = rows_of(host)
    firsts = [min(at, rows - size) for at in range(0, rows, size)]
    part = lambda at: jax.tree.map(lambda a: a[at : at + size], host)  # noqa: E731
    return Cut(tuple(jax.device_put(part(at)) for at in firsts), rows)
