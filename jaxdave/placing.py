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
from jaxdave.matrices import Across, Apart, Cut, Joined, rows_of, uncut
from jaxdave.model.params import Params
from jaxdave.noise import DRAWN
from jaxdave.quantize import Finish, Int8, is_int8

CPU_HEAD, HEAD_CHUNK = DRAWN, 4 * DRAWN
"""Ids of the vocabulary that are looked at together, on a CPU and elsewhere, where a
pass costs a dozen launches whatever its size."""
LARGE = 2**19
"""Numbers in a matrix from where on it has a row a channel: 2 MB, what a core of the
machine that it was measured on keeps (bench/NOTES.md, "Matrices apart")."""
JOINED = (("attn", ("q", "k", "v")), ("mlp", ("gate", "up")))
"""Matrices of a layer that share their input; on a CPU they are one."""


def head_chunk(rows: int) -> int:
    """Ids per chunk of the head: all, or a multiple of what noise is drawn for."""
    most = CPU_HEAD if on_cpu() else HEAD_CHUNK
    return rows if rows <= DRAWN else min(most, rows // DRAWN * DRAWN)


def laid_out(params: Params, config: ModelConfig) -> Params:
    """Parameters of `params.abstract` or `Int8`, on the device, as it reads them best.

    They may lie on the host, and lie so already. What the caller does not keep is let
    go of on the way, so that no more than what is joined is held twice.
    """
    params = stacked(params)
    leaves, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_int8)
    del params
    held = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
    del leaves
    order, made = list(held), {}
    for home, names in JOINED if on_cpu() else ():
        paths = [f"blocks/{home}/{name}/kernel" for name in names]
        made |= dict.fromkeys(paths, ())
        made[paths[0]] = _joined([held.pop(path) for path in paths])
    for path in list(held):
        made[path] = _placed(path, held.pop(path), config)
    return tree.unflatten([made[path] for path in order])


def stacked(params: Params) -> Params:
    """Parameters as `params.abstract` has them, whatever machine they were read for."""
    is_placed = lambda leaf: isinstance(leaf, Apart | Cut)  # noqa: E731
    return _unjoined(jax.tree.map(_stack, params, is_leaf=is_placed))


def arriving(kept: Finish) -> Finish:
    """What becomes of a parameter once it is read: off a CPU it leaves the host."""
    if on_cpu():
        return kept
    return lambda path, leaf: jax.device_put(kept(path, leaf))


def _stack(leaf: Any) -> Any:
    """What a matrix of all layers, or a table, was made of."""
    if isinstance(leaf, Apart):
        return jax.tree.map(lambda *own: jnp.stack(own), *map(_down, leaf.layers))
    return uncut(leaf) if isinstance(leaf, Cut) else leaf


def _unjoined(tree: Any) -> Any:
    """Dicts of dicts with matrices that were joined in places of their own again."""
    if not isinstance(tree, dict):
        return tree
    made = {name: _unjoined(part) for name, part in tree.items()}
    for _, names in JOINED:
        joined = _kernel(tree.get(names[0]))
        if isinstance(joined, Joined):
            for name, part in zip(names, joined.split(joined.matrix), strict=True):
                made[name] = made[name] | {"kernel": part}
    return made


def _kernel(part: Any) -> Any:
    return part.get("kernel") if isinstance(part, dict) else None


def _placed(path: str, leaf: Any, config: ModelConfig) -> Any:
    """One parameter on the device."""
    table = "embedding" if config.tie_embeddings else "head"
    if on_cpu() and path.endswith("/kernel"):
        return Apart(tuple(map(_layer, _each(leaf))))
    if on_cpu() and path == table and head_chunk(config.vocab_rows) < rows_of(leaf):
        return _cut(leaf, head_chunk(config.vocab_rows))
    return jax.device_put(leaf)


def _joined(stacks: list[Any]) -> Joined:
    sizes = tuple(jax.tree.leaves(stack)[0].shape[-1] for stack in stacks)
    together = lambda *own: np.concatenate(own, axis=-1)  # noqa: E731
    layers = (
        _layer(jax.tree.map(together, *own))
        for own in zip(*map(_each, stacks), strict=True)
    )
    return Joined(Apart(tuple(layers)), sizes)


def _each(stack: Any) -> list[Any]:
    """The matrices of a stack, on the host: a slice on a device would be compiled."""
    host = jax.tree.map(np.asarray, stack)
    return [jax.tree.map(lambda a, i=i: a[i], host) for i in range(rows_of(host))]


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
