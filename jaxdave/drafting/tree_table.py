"""Tables of draft trees: which future states one-token steps visit, and how often.

A *draft tree* (see `tree`) lists states that the next steps may reach. Its nodes name
neither positions nor tokens but *places* in an order: the open positions, sorted by the
confidence of the last prediction. Place 0 is the position that the model is surest of.
A node is a set of places that are filled, each with the model's best token there or
with the runner-up. It is a set and not a path: whoever fills places 0 and 2 arrives at
the same state in either order, so both orders share one node.

Which nodes are likely depends on the *context* of a state. A table knows two numbers of
it: how many positions of the active block are open, and the first place whose score is
nearly that of the next place, from where on the order is in doubt. Finer contexts (the
scores themselves, several gaps) were counted and did not pay. Each context has a
*leaf*, its nodes in the order in which they are worth drafting: a call of K drafts
takes the first K - 1 of them, beside the policy's own next state.

`jaxdave calibrate` decodes prompts, counts which nodes the decode visits
(`jaxdave.engine.calibration`) and writes a table to drafts.json in the checkpoint's
folder. A table can save calls of the model and cannot change the text, as a draft that
the policy does not confirm is dropped. Tables exist for policies that commit a fixed
number of tokens a step, the best first (`policies.static`): a policy that commits as
many as are sure is foreseen by simulation as well as by any table, as what it commits
depends on the scores themselves (docs/lab_notes/drafts.md has the figures).

Source: the calibrated draft graphs of Spiffy, arXiv 2509.18085.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.numerics.quantization import QUANTIZATIONS
from jaxdave.runtime.files import read_json, replace_file
from jaxdave.runtime.locks import locked

TABLE_FILE = "drafts.json"
"""Name of the file of all tables in a checkpoint's folder."""
TABLE_VERSION = 3
"""Version of the file's layout; a file of another one is refused."""
_LOCK_SECONDS = 10.0
"""For how long the writing of a table waits for that of another one."""
MAX_PLACES = 32
"""Places that nodes can name: the most confident ones."""
OPEN_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Upper ends of the ranges of open positions that contexts tell apart; one more context
stands for all counts above the last one."""
NUM_GAPS = 8
"""Places at which contexts look for the first close call; one more context stands for
none."""
CONTEXT_SHAPE = (len(OPEN_COUNTS) + 1, NUM_GAPS + 1)
"""Contexts by open positions, and by the first close call."""
MAX_LEAF_NODES = 31
"""Nodes that calibration keeps for a context at most: 32 drafts less the first one."""
UNSEEN_FACTOR = 0.5
"""The worth of a nested node that calibration has not seen, as a share of that of the
node before it."""

TreeNode = tuple[int, ...]
"""A set of filled places as a sorted tuple of numbers 2 * place + rank. Rank 0 is the
best token there, rank 1 the runner-up: (0, 4) fills places 0 and 2 with their best
tokens, (0, 3) fills place 0 with its best token and place 1 with its runner-up."""
Leaf = tuple[tuple[TreeNode, float], ...]
"""The nodes of one context, each with the share of calibrated paths that it extends; no
node has a larger share than the one before it."""


class TreeTable(NamedTuple):
    """The calibrated draft trees of one model under one way of decoding.

    Attributes:
        edge: Two scores that differ by less than this are a close call, in log-odds.
        leaves: The leaf of each context, indexed [open positions][first close call], of
            the lengths `CONTEXT_SHAPE`.
    """

    edge: float
    leaves: tuple[tuple[Leaf, ...], ...]


class PackedTable(NamedTuple):
    """The first nodes of every leaf as arrays, one entry for each draft of a call.

    Entry 0 of each context is the policy's own next state, which fills no place.

    Attributes:
        code: What each draft does at each place, int8 [open, close, K, MAX_PLACES]. 0
            leaves it open, 1 fills in the best token and 2 the runner-up.
        worth: How likely each draft is to be reached, float32 [open, close, K].
    """

    code: np.ndarray
    worth: np.ndarray


@functools.cache
def pack(table: TreeTable, num_drafts: int, tokens_per_step: int = 1) -> PackedTable:
    """The drafts of every context as arrays that a compiled program can index.

    Args:
        table: The calibrated trees.
        num_drafts: Drafts of a call, K, the policy's own next state included.
        tokens_per_step: Tokens that a step of the policy commits.

    Returns:
        The arrays; computed once for each table and number of drafts.
    """
    code = np.zeros((*CONTEXT_SHAPE, num_drafts, MAX_PLACES), np.int8)
    worth = np.ones((*CONTEXT_SHAPE, num_drafts), np.float32)
    for context in np.ndindex(*CONTEXT_SHAPE):
        # Draft 0 keeps code 0 at all places and worth 1: a certain state to begin with.
        leaf = table.leaves[context[0]][context[1]]
        leaf = fill_with_nested(leaf, num_drafts - 1, tokens_per_step)
        for k, (node, share) in enumerate(leaf):
            worth[*context, k + 1] = share
            for number in node:
                place, rank = divmod(number, 2)
                code[*context, k + 1, place] = 1 + rank
    return PackedTable(code, worth)


def nested_node(size: int) -> TreeNode:
    """The node that fills the first places with their best tokens.

    Nested drafts (`nested`) visit these nodes, one after the other.

    Args:
        size: How many places are filled.

    Returns:
        The node, e.g. (0, 2, 4) for 3 places.
    """
    return tuple(range(0, 2 * size, 2))


def fill_with_nested(leaf: Leaf, count: int, tokens_per_step: int = 1) -> Leaf:
    """The first nodes of a leaf, and nested ones where it has too few.

    Args:
        leaf: The calibrated nodes of a context.
        count: Nodes that are wanted.
        tokens_per_step: Tokens that a step of the policy commits.

    Returns:
        `count` nodes, or fewer if all nested ones are among them already.
    """
    chosen = list(leaf[:count])
    known = {node for node, _ in chosen}
    # Below the last calibrated node, and less
    # with each step: drafts are ranked by worth.
    worth = chosen[-1][1] if chosen else 1.0
    # Nodes of the leaf are nested, too, where the order held; those are not repeated.
    for size in range(tokens_per_step, MAX_PLACES + 1, tokens_per_step):
        if len(chosen) < count and nested_node(size) not in known:
            worth *= UNSEEN_FACTOR
            chosen.append((nested_node(size), worth))
    return tuple(chosen)


def grow(paths: Sequence[Sequence[TreeNode]], max_nodes: int = MAX_LEAF_NODES) -> Leaf:
    """Choose the nodes of a leaf, each time the one that adds most.

    A call follows a path through the tree until it comes to a node that is not
    drafted. So a node is worth as much as there are paths that wait for it: those of
    which all earlier nodes are chosen already.

    Args:
        paths: The visited nodes of each observation of the context, in order.
        max_nodes: Nodes to choose at most.

    Returns:
        The nodes in the order of choice, each with its share of the paths.
    """
    chosen: dict[TreeNode, float] = {}
    waiting, share = [path for path in paths if path], 1.0
    while waiting and len(chosen) < max_nodes:
        # How many paths each node would take one step
        # further, if it was the next to be chosen.
        gains = Counter(path[0] for path in waiting)
        # Of equals the smaller node, then the first by its numbers, so that equal
        # counts give an equal table on every machine.
        best = min(gains, key=lambda node: (-gains[node], len(node), node))
        # Choosing a node brings its paths to the next one, so that a later
        # count can be higher than an earlier one. Shares are capped, as none
        # may be likelier than one on the way to it.
        share = min(share, gains[best] / len(paths))
        chosen[best] = round(share, 4)
        # Paths move on past every chosen node, and those that are used up drop out.
        waiting = [_rest(path, chosen) for path in waiting]
        waiting = [path for path in waiting if path]
    return tuple(chosen.items())


def _rest(path: Sequence[TreeNode], chosen) -> Sequence[TreeNode]:
    """The part of a path from its first node on that is not chosen."""
    first = next((i for i, node in enumerate(path) if node not in chosen), len(path))
    return path[first:]


def table_key(
    config: ModelConfig,
    block_length: int | None,
    cache: str | None,
    tokens_per_step: int = 1,
) -> str:
    """The name of a table in the file: the way of decoding that it was calibrated for.

    Args:
        config: The model.
        block_length: Block length of the decode; None: the model's own.
        cache: Cache rule of a full-attention model; None: the usual one.
        tokens_per_step: Tokens that a step of the policy commits.

    Returns:
        A name such as "static(1), block 4, exact".
    """
    usual = "exact" if config.attention != "full" else "dual"
    length = block_length or config.block_length
    return f"static({tokens_per_step}), block {length}, {cache or usual}"


def model_label(config: ModelConfig) -> str:
    """What tables are of, as the file holds it: places in another model mean nothing.

    Args:
        config: The model.

    Returns:
        Its family and shape in words. Weights of one shape are not told apart.
    """
    return (
        f"{config.family}, {config.num_layers} layers of {config.hidden}, "
        f"{config.vocab_size} tokens"
    )


def quantized_key(key: str, quantize: str | None) -> str:
    """The name of a table in the file where weights may be quantised.

    Quantised weights are another model, so they have tables of their own.

    Args:
        key: A name as of `table_key`.
        quantize: A key of `QUANTIZATIONS`, or None for weights as they are.

    Returns:
        The name, with the quantisation added to it.
    """
    return key if quantize is None else f"{key}, {quantize}"


def select_tables(
    tables: Mapping[str, TreeTable], quantize: str | None
) -> dict[str, TreeTable]:
    """The tables of a folder that serve a model.

    Quantised weights use their own tables where they were calibrated, else those of the
    weights that they were made of. These are nearly right, and no draft changes the
    text.

    Args:
        tables: All tables of the folder by their names in the file.
        quantize: How the model's weights are quantised; None: they are not.

    Returns:
        Tables by names as of `table_key`.
    """
    ends = tuple(quantized_key("", way) for way in QUANTIZATIONS)
    plain = {key: table for key, table in tables.items() if not key.endswith(ends)}
    if quantize is None:
        return plain
    end = quantized_key("", quantize)
    # A quantised model's own tables replace those of the same name.
    own = {key.removesuffix(end): tables[key] for key in tables if key.endswith(end)}
    return plain | own


def read_tables(folder: Path, config: ModelConfig) -> dict[str, TreeTable]:
    """Read the tables in a checkpoint's folder.

    Args:
        folder: The checkpoint's folder.
        config: Its model.

    Returns:
        Tables by their names in the file; none where the model was not calibrated.

    Raises:
        ValueError: The file holds something else, is of another version or another
            model, or was changed since it was written.
    """
    raw = _read_versioned(folder)
    if raw is None:
        return {}
    path, mend = (
        folder / TABLE_FILE,
        "delete it, or make it anew with jaxdave calibrate",
    )
    try:
        tables = {key: _from_json(table) for key, table in raw["tables"].items()}
        digest, of_model = raw["digest"], raw["model"]
    except (TypeError, ValueError, AttributeError, KeyError, IndexError):
        raise ValueError(f"{path} is no table of drafts; {mend}") from None
    if of_model != model_label(config):
        raise ValueError(
            f"{path} is of another model ({of_model}) than this one "
            f"({model_label(config)}); {mend}"
        )
    if digest != tables_digest(raw["tables"]):
        raise ValueError(f"{path} was changed after it was written; {mend}")
    return tables


def write_table(folder: Path, key: str, table: TreeTable, config: ModelConfig) -> None:
    """Write a table to a checkpoint's folder; its other tables are kept.

    Tables of another model, which a folder can have been copied with, are dropped.

    Args:
        folder: The checkpoint's folder.
        key: The table's name in the file (see `quantized_key`).
        table: The table.
        config: The model that it is of.

    Raises:
        ValueError: The folder has a file of another version.
    """
    label = model_label(config)
    # Read and written under a lock: two calibrations of one model keep both tables.
    with locked(folder / f".{TABLE_FILE}.lock", timeout=_LOCK_SECONDS):
        raw = _read_versioned(folder)
        known = raw.get("tables") if raw and raw.get("model") == label else None
        tables = {**(known or {}), key: _to_json(table)}
        # One line for each table, in the order of their names: a file under version
        # control then changes where a table does.
        rows = (f"{json.dumps(k)}: {json.dumps(tables[k])}" for k in sorted(tables))
        inner = ",\n".join(rows)
        head = f'"version": {TABLE_VERSION}, "model": {json.dumps(label)}'
        digest = json.dumps(tables_digest(tables))
        text = f'{{{head},\n"digest": {digest}, "tables": {{\n{inner}\n}}}}\n'
        replace_file(folder / TABLE_FILE, text.encode())


def tables_digest(tables: Mapping[str, Any]) -> str:
    """A digest of tables as JSON holds them.

    Args:
        tables: Tables by their names, as the file has them.

    Returns:
        16 digits; what was cut short or edited has others.
    """
    content = json.dumps(tables, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _read_versioned(folder: Path) -> dict[str, Any] | None:
    """The content of the file, of this version; None where there is no file."""
    raw = read_json(folder / TABLE_FILE, optional=True)
    if not raw and not (folder / TABLE_FILE).exists():
        return None
    version = raw.get("version") if isinstance(raw, dict) else None
    if version != TABLE_VERSION:
        raise ValueError(
            f"{folder / TABLE_FILE} has version={version!r} and must have "
            f"{TABLE_VERSION}; delete it and make it anew with jaxdave calibrate"
        )
    return raw


def _to_json(table: TreeTable) -> dict[str, Any]:
    """A table as JSON holds it.

    Most contexts share a leaf, so `leaves` holds each distinct leaf once and `leaf_of`
    holds, for each context, an index into them. A node is a list of its share, then its
    numbers.
    """
    distinct = sorted({leaf for row in table.leaves for leaf in row})
    index_of = {leaf: index for index, leaf in enumerate(distinct)}
    leaf_of = [[index_of[leaf] for leaf in row] for row in table.leaves]
    leaves = [[[share, *node] for node, share in leaf] for leaf in distinct]
    return {"edge": table.edge, "leaf_of": leaf_of, "leaves": leaves}


def _from_json(raw: dict[str, Any]) -> TreeTable:
    """The table of its JSON. Raises an error of Python's own where that is not one."""
    leaves = [
        tuple((tuple(map(int, node)), float(share)) for share, *node in leaf)
        for leaf in raw["leaves"]
    ]
    for node, share in (pair for leaf in leaves for pair in leaf):
        if (
            not all(0 <= number < 2 * MAX_PLACES for number in node)
            or not 0 <= share <= 1
        ):
            raise ValueError("not a node")
    # A file of other contexts would be indexed wrongly inside a compiled program, where
    # nothing is checked any more.
    by_context = [[leaves[index] for index in row] for row in raw["leaf_of"]]
    if [len(row) for row in by_context] != [CONTEXT_SHAPE[1]] * CONTEXT_SHAPE[0]:
        raise ValueError("not a table")
    return TreeTable(float(raw["edge"]), tuple(map(tuple, by_context)))
