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

from jaxdave.config import ModelConfig
from jaxdave.files import replace_file
from jaxdave.quantize import WAYS
from jaxdave.tokenizer import read_json

FILE = "drafts.json"
VERSION = 2
PLACES = 32
"""Places of the order that slots speak of."""
LEFTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Contexts by positions left in the active block: up to each of these, and more."""
CLOSE = 8
"""Contexts by the first place whose score the next one nearly has; none is the last."""
CONTEXTS = (len(LEFTS) + 1, CLOSE + 1)
MOST = 31
FADE = 0.5
"""What a slot that calibration has not seen is worth beside the one before it."""

Slot = tuple[int, ...]
"""Sorted, 2 place + rank: rank 0 is the best token there, rank 1 the runner-up."""
Leaf = tuple[tuple[Slot, float], ...]
"""Slots and how likely each is visited; none is worth more than the one before it."""


class Table(NamedTuple):
    """edge: a smaller difference of two scores is a close call. leaves: [left][close]
    as `CONTEXTS` counts them."""

    edge: float
    leaves: tuple[tuple[Leaf, ...], ...]


class Packed(NamedTuple):
    """Slots as arrays [left, close, K, ...]; the first is the policy's own next state.

    code: int8 by place, 0: open, 1: the best token, 2: the runner-up.
    """

    code: np.ndarray
    worth: np.ndarray


@functools.cache
def packed(table: Table, budget: int) -> Packed:
    """The first slots of every leaf, `budget` in all."""
    code = np.zeros((*CONTEXTS, budget, PLACES), np.int8)
    worth = np.ones((*CONTEXTS, budget), np.float32)
    for context in np.ndindex(*CONTEXTS):
        leaf = filled_up(table.leaves[context[0]][context[1]], budget - 1)
        for k, (slot, likely) in enumerate(leaf):
            worth[*context, k + 1] = likely
            for one in slot:
                code[*context, k + 1, one // 2] = 1 + one % 2
    return Packed(code, worth)


def chain(size: int) -> Slot:
    """The nested slot of so many places."""
    return tuple(range(0, 2 * size, 2))


def filled_up(leaf: Leaf, count: int) -> Leaf:
    """The first slots; where calibration saw too few, nested ones as well."""
    chosen = list(leaf[:count])
    known = {slot for slot, _ in chosen}
    worth = chosen[-1][1] if chosen else 1.0
    for size in range(1, PLACES + 1):
        if len(chosen) < count and chain(size) not in known:
            worth *= FADE
            chosen.append((chain(size), worth))
    return tuple(chosen)


def grown(paths: Sequence[Sequence[Slot]], most: int = MOST) -> Leaf:
    """Slots in the order in which each adds most to how far the paths are followed.

    paths: what was visited, slot by slot; a path is followed until a slot is missing.
    """
    chosen: dict[Slot, float] = {}
    waiting, likely = [path for path in paths if path], 1.0
    while waiting and len(chosen) < most:
        gains = Counter(path[0] for path in waiting)
        best = min(gains, key=lambda slot: (-gains[slot], len(slot), slot))
        likely = min(likely, gains[best] / len(paths))
        chosen[best] = round(likely, 4)
        waiting = [_rest(path, chosen) for path in waiting]
        waiting = [path for path in waiting if path]
    return tuple(chosen.items())


def _rest(path: Sequence[Slot], chosen) -> Sequence[Slot]:
    """The path from the first slot on that is not chosen."""
    at = next((i for i, slot in enumerate(path) if slot not in chosen), len(path))
    return path[at:]


def key_of(config: ModelConfig, block_length: int | None, cache: str | None) -> str:
    """What a table is kept under; None: the model's own."""
    usual = "exact" if config.attention == "block_causal" else "dual"
    return f"static(1), block {block_length or config.block_length}, {cache or usual}"


def of_weights(key: str, quantize: str | None) -> str:
    """The key of a table in a file: quantised weights have tables of their own."""
    return key if quantize is None else f"{key}, {quantize}"


def fitting(found: Mapping[str, Table], quantize: str | None) -> dict[str, Table]:
    """The tables of a folder that serve a model, under the keys of `key_of`.

    Quantised weights have their own where they were calibrated, else those of the
    weights that they were made of: nearly right, and no draft changes a word.
    """
    ends = tuple(of_weights("", way) for way in WAYS)
    plain = {key: table for key, table in found.items() if not key.endswith(ends)}
    if quantize is None:
        return plain
    end = of_weights("", quantize)
    own = {key.removesuffix(end): found[key] for key in found if key.endswith(end)}
    return plain | own


def read(folder: Path) -> dict[str, Table]:
    """The tables beside a checkpoint; none where it was not calibrated.

    Raises ValueError for a file that is none, or of another version.
    """
    raw = _versioned(folder)
    try:
        return {key: _table(found) for key, found in raw["tables"].items()}
    except (TypeError, ValueError, AttributeError, KeyError, IndexError):
        raise ValueError(
            f"{folder / FILE} is no table of drafts; delete it, or make it anew with "
            "jaxdave calibrate"
        ) from None


def write(folder: Path, key: str, table: Table) -> None:
    """Put a table beside a checkpoint; others stay.

    Raises ValueError where there is a file of another version.
    """
    tables = {**_versioned(folder)["tables"], key: _raw(table)}
    rows = (f"{json.dumps(k)}: {json.dumps(tables[k])}" for k in sorted(tables))
    inner = ",\n".join(rows)
    text = f'{{"version": {VERSION}, "tables": {{\n{inner}\n}}}}\n'
    replace_file(folder / FILE, text.encode())


def _versioned(folder: Path) -> dict[str, Any]:
    raw = read_json(folder / FILE, optional=True) or {"version": VERSION, "tables": {}}
    found = raw.get("version") if isinstance(raw, dict) else None
    if found != VERSION:
        raise ValueError(
            f"{folder / FILE} has version={found!r} and must have {VERSION}; delete it "
            "and make it anew with jaxdave calibrate"
        )
    return raw


def _raw(table: Table) -> dict[str, Any]:
    """As JSON holds it: every leaf once, and which one each context has."""
    distinct = sorted({leaf for some in table.leaves for leaf in some})
    at = {leaf: index for index, leaf in enumerate(distinct)}
    leaf_of = [[at[leaf] for leaf in some] for some in table.leaves]
    slots = [[[likely, *slot] for slot, likely in leaf] for leaf in distinct]
    return {"edge": table.edge, "leaf_of": leaf_of, "leaves": slots}


def _table(raw: dict[str, Any]) -> Table:
    leaves = [
        tuple((tuple(map(int, slot)), float(likely)) for likely, *slot in leaf)
        for leaf in raw["leaves"]
    ]
    for slot, likely in (pair for leaf in leaves for pair in leaf):
        if not all(0 <= one < 2 * PLACES for one in slot) or not 0 <= likely <= 1:
            raise ValueError("not a slot")
    of = [[leaves[index] for index in some] for some in raw["leaf_of"]]
    if [len(some) for some in of] != [CONTEXTS[1]] * CONTEXTS[0]:
        raise ValueError("not a table")
    return Table(float(raw["edge"]), tuple(tuple(some) for some in of))
