"""Tables of draft trees: which states a model's one-token steps visit, and how often.

A slot is a set of places in the last prediction's order, each with the best token there
or the runner-up. A leaf holds the slots of one context, what adds most first. How many
positions are left and where the order is first in doubt are a context: finer ones
(scores, several gaps) were counted and did not pay.
"""

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.numerics.quantization import QUANTIZATIONS
from jaxdave.runtime.files import read_json, replace_file

TABLE_FILE = "drafts.json"
TABLE_VERSION = 2
MAX_PLACES = 32
"""Places of the order that slots speak of."""
OPEN_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Contexts by positions left in the active block: up to each of these, and more."""
NUM_GAPS = 8
"""Contexts by the first place whose score the next one nearly has; none is the last."""
CONTEXT_SHAPE = (len(OPEN_COUNTS) + 1, NUM_GAPS + 1)
MAX_LEAF_NODES = 31
UNSEEN_FACTOR = 0.5
"""What a slot that calibration has not seen is worth beside the one before it."""

TreeNode = tuple[int, ...]
"""Sorted, 2 place + rank: rank 0 is the best token there, rank 1 the runner-up."""
Leaf = tuple[tuple[TreeNode, float], ...]
"""Slots and how likely each is visited; none is worth more than the one before it."""


class TreeTable(NamedTuple):
    """edge: a smaller difference of two scores is a close call. leaves: [left][close]
    as `CONTEXTS` counts them."""

    edge: float
    leaves: tuple[tuple[Leaf, ...], ...]


class PackedTable(NamedTuple):
    """Slots as arrays [left, close, K, ...]; the first is the policy's own next state.

    code: int8 by place, 0: open, 1: the best token, 2: the runner-up.
    """

    code: np.ndarray
    worth: np.ndarray


@functools.cache
def pack(table: TreeTable, budget: int) -> PackedTable:
    """The first slots of every leaf, `budget` in all."""
    code = np.zeros((*CONTEXT_SHAPE, budget, MAX_PLACES), np.int8)
    worth = np.ones((*CONTEXT_SHAPE, budget), np.float32)
    for context in np.ndindex(*CONTEXT_SHAPE):
        leaf = fill_with_nested(table.leaves[context[0]][context[1]], budget - 1)
        for k, (slot, likely) in enumerate(leaf):
            worth[*context, k + 1] = likely
            for one in slot:
                code[*context, k + 1, one // 2] = 1 + one % 2
    return PackedTable(code, worth)


def nested_node(size: int) -> TreeNode:
    """The nested slot of so many places."""
    return tuple(range(0, 2 * size, 2))


def fill_with_nested(leaf: Leaf, count: int) -> Leaf:
    """The first slots; where calibration saw too few, nested ones as well."""
    chosen = list(leaf[:count])
    known = {slot for slot, _ in chosen}
    worth = chosen[-1][1] if chosen else 1.0
    for size in range(1, MAX_PLACES + 1):
        if len(chosen) < count and nested_node(size) not in known:
            worth *= UNSEEN_FACTOR
            chosen.append((nested_node(size), worth))
    return tuple(chosen)


def grow(paths: Sequence[Sequence[TreeNode]], most: int = MAX_LEAF_NODES) -> Leaf:
    """Slots in the order in which each adds most to how far the paths are followed.

    paths: what was visited, slot by slot; a path is followed until a slot is missing.
    """
    chosen: dict[TreeNode, float] = {}
    waiting, likely = [path for path in paths if path], 1.0
    while waiting and len(chosen) < most:
        gains = Counter(path[0] for path in waiting)
        best = min(gains, key=lambda slot: (-gains[slot], len(slot), slot))
        likely = min(likely, gains[best] / len(paths))
        chosen[best] = round(likely, 4)
        waiting = [_rest(path, chosen) for path in waiting]
        waiting = [path for path in waiting if path]
    return tuple(chosen.items())


def _rest(path: Sequence[TreeNode], chosen) -> Sequence[TreeNode]:
    """The path from the first slot on that is not chosen."""
    at = next((i for i, slot in enumerate(path) if slot not in chosen), len(path))
    return path[at:]


def table_key(config: ModelConfig, block_length: int | None, cache: str | None) -> str:
    """What a table is kept under; None: the model's own."""
    usual = "exact" if config.attention == "block_causal" else "dual"
    return f"static(1), block {block_length or config.block_length}, {cache or usual}"


def quantized_key(key: str, quantize: str | None) -> str:
    """The key of a table in a file: quantised weights have tables of their own."""
    return key if quantize is None else f"{key}, {quantize}"


def select_tables(
    found: Mapping[str, TreeTable], quantize: str | None
) -> dict[str, TreeTable]:
    """The tables of a folder that serve a model, under the keys of `key_of`.

    Quantised weights have their own where they were calibrated, else those of the
    weights that they were made of: nearly right, and no draft changes a word.
    """
    ends = tuple(quantized_key("", way) for way in QUANTIZATIONS)
    plain = {key: table for key, table in found.items() if not key.endswith(ends)}
    if quantize is None:
        return plain
    end = quantized_key("", quantize)
    own = {key.removesuffix(end): found[key] for key in found if key.endswith(end)}
    return plain | own


def read_tables(folder: Path) -> dict[str, TreeTable]:
    """The tables beside a checkpoint; none where it was not calibrated.

    Raises ValueError for a file that is none, or of another version.
    """
    raw = _read_versioned(folder)
    try:
        return {key: _from_json(found) for key, found in raw["tables"].items()}
    except (TypeError, ValueError, AttributeError, KeyError, IndexError):
        raise ValueError(
            f"{folder / TABLE_FILE} is no table of drafts; delete it, or make it anew "
            "with jaxdave calibrate"
        ) from None


def write_table(folder: Path, key: str, table: TreeTable) -> None:
    """Put a table beside a checkpoint; others stay.

    Raises ValueError where there is a file of another version.
    """
    tables = {**_read_versioned(folder)["tables"], key: _to_json(table)}
    rows = (f"{json.dumps(k)}: {json.dumps(tables[k])}" for k in sorted(tables))
    inner = ",\n".join(rows)
    text = f'{{"version": {TABLE_VERSION}, "tables": {{\n{inner}\n}}}}\n'
    replace_file(folder / TABLE_FILE, text.encode())


def _read_versioned(folder: Path) -> dict[str, Any]:
    raw = read_json(folder / TABLE_FILE, optional=True) or {
        "version": TABLE_VERSION,
        "tables": {},
    }
    found = raw.get("version") if isinstance(raw, dict) else None
    if found != TABLE_VERSION:
        raise ValueError(
            f"{folder / TABLE_FILE} has version={found!r} and must have "
            f"{TABLE_VERSION}; delete it and make it anew with jaxdave calibrate"
        )
    return raw


def _to_json(table: TreeTable) -> dict[str, Any]:
    """As JSON holds it: every leaf once, and which one each context has."""
    distinct = sorted({leaf for some in table.leaves for leaf in some})
    at = {leaf: index for index, leaf in enumerate(distinct)}
    leaf_of = [[at[leaf] for leaf in some] for some in table.leaves]
    slots = [[[likely, *slot] for slot, likely in leaf] for leaf in distinct]
    return {"edge": table.edge, "leaf_of": leaf_of, "leaves": slots}


def _from_json(raw: dict[str, Any]) -> TreeTable:
    leaves = [
        tuple((tuple(map(int, slot)), float(likely)) for likely, *slot in leaf)
        for leaf in raw["leaves"]
    ]
    for slot, likely in (pair for leaf in leaves for pair in leaf):
        if not all(0 <= one < 2 * MAX_PLACES for one in slot) or not 0 <= likely <= 1:
            raise ValueError("not a slot")
    of = [[leaves[index] for index in some] for some in raw["leaf_of"]]
    if [len(some) for some in of] != [CONTEXT_SHAPE[1]] * CONTEXT_SHAPE[0]:
        raise ValueError("not a table")
    return TreeTable(float(raw["edge"]), tuple(tuple(some) for some in of))
