"""Draft trees: the states that one-token steps are most likely to visit.

A nested draft bets on one order of the positions. A tree spreads its budget over the
orders that were seen when the model was calibrated: a slot is a set of places in the
last prediction's order, e.g. {0, 2} for the best and the third best of what is open.
Orders that meet again share their slots. Source: the calibrated graphs of Spiffy (arXiv
2509.18085), with sets in place of paths.
"""

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.config import ModelConfig
from jaxdave.draft import DraftFn, Outlook, nested
from jaxdave.files import replace_file
from jaxdave.policies import static
from jaxdave.tokenizer import read_json
from jaxdave.types import Drafts, Guess, Policy

FILE = "drafts.json"
PLACES = 32
"""Places of the order that slots speak of."""
MOST_LEFT = 16
"""Positions left in the active block, counted up to here; more are like this."""

Slot = tuple[int, ...]


class Table(NamedTuple):
    """Slots, what adds most first (`grown`), by positions left in the active block."""

    slots: tuple[tuple[Slot, ...], ...]


def place_of(outlook: Outlook) -> jax.Array:
    """Place of each open position [L] in the order that the last prediction says."""
    score_L, block_L, open_L = outlook.pred.score[0], outlook.block_L, outlook.open_L
    at_L = jnp.arange(score_L.shape[0], dtype=jnp.int32)
    sooner_LL = score_L[None, :] > score_L[:, None]
    sooner_LL |= (score_L[None, :] == score_L[:, None]) & (
        at_L[None, :] < at_L[:, None]
    )
    sooner_LL &= block_L[None, :] == block_L[:, None]
    sooner_LL |= block_L[None, :] < block_L[:, None]
    return jnp.sum(sooner_LL & open_L[None, :], axis=1, dtype=jnp.int32)


def left_of(outlook: Outlook) -> jax.Array:
    """How many positions of the first block with any are open, at most `MOST_LEFT`."""
    open_L, block_L = outlook.open_L, outlook.block_L
    active = jnp.min(jnp.where(open_L, block_L, block_L[-1]))
    left = jnp.sum(open_L & (block_L == active), dtype=jnp.int32)
    return jnp.minimum(left, MOST_LEFT)


@functools.cache
def tree(table: Table) -> DraftFn:
    """The draft function of a table, for policies of one token a step, the best first.

    At a temperature, where every step draws its tokens anew, use `draft.nested`.
    """

    def draft(outlook: Outlook, first: Guess, budget: int) -> Drafts:
        slots_KR = jnp.asarray(packed(table, budget))[left_of(outlook)]
        place_L = place_of(outlook)
        near_L = outlook.open_L & (place_L < PLACES)
        filled_KL = slots_KR[:, jnp.minimum(place_L, PLACES - 1)] & near_L[None]
        token_L, first_L = outlook.pred.token[0], first.tokens_NL[0]
        tokens_KL = jnp.where(filled_KL, token_L[None], first_L[None])
        size_K = jnp.sum(slots_KR, axis=1, dtype=jnp.int32)
        is_there_K = jnp.sum(filled_KL, axis=1, dtype=jnp.int32) == size_K
        is_told_K = jnp.all(~filled_KL | (token_L >= 0)[None], axis=1)
        valid_K = is_there_K & is_told_K & ~jax.vmap(outlook.ended)(tokens_KL)
        return Drafts(tokens_KL[:, None], size_K, valid_K.at[0].set(first.valid))

    return draft


@functools.cache
def packed(table: Table, budget: int) -> np.ndarray:
    """Slots as flags [left, K, place]; the first is the policy's own next state."""
    flags = np.zeros((MOST_LEFT + 1, budget, PLACES), bool)
    for left, slots in enumerate(table.slots):
        for k, slot in enumerate(filled_up(slots, budget - 1)):
            flags[left, k + 1, list(slot)] = True
    return flags


def filled_up(slots: Sequence[Slot], count: int) -> list[Slot]:
    """The first slots; where calibration saw too few, nested ones as well."""
    chosen = list(slots[:count])
    nests = (tuple(range(size)) for size in range(1, PLACES + 1))
    rest = [slot for slot in nests if slot not in chosen]
    return chosen + rest[: count - len(chosen)]


def key_of(config: ModelConfig, block_length: int | None, cache: str | None) -> str:
    """What a table is kept under; None: the model's own."""
    usual = "exact" if config.attention == "block_causal" else "dual"
    return f"static(1), block {block_length or config.block_length}, {cache or usual}"


def best_of(
    tables: Mapping[str, Table],
    config: ModelConfig,
    policy: Policy,
    *,
    block_length: int | None = None,
    cache: str | None = None,
    temperature: float = 0.0,
) -> DraftFn:
    """The tree of a model's tables where one fits the decode, else `draft.nested`.

    A tree orders one token a step by confidence and does not know later noise, so it
    fits `policies.static(1)` at temperature 0.

    Example:
        draft = best_of(model.tables, model.config, policies.static(1))
        decoder = freedave(model.config, draft=draft)
    """
    table = tables.get(key_of(config, block_length, cache))
    fits = policy.name == static(1).name and temperature == 0
    return tree(table) if table is not None and fits else nested


def read(folder: Path) -> dict[str, Table]:
    """The tables beside a checkpoint; none where it was not calibrated.

    Raises ValueError for a file that is none.
    """
    raw = read_json(folder / FILE, optional=True)
    try:
        return {key: _table(found) for key, found in raw.items()}
    except (TypeError, ValueError, AttributeError):
        raise ValueError(
            f"{folder / FILE} is no table of drafts; delete it, or make it anew with "
            "jaxdave calibrate"
        ) from None


def write(folder: Path, key: str, table: Table) -> None:
    """Put a table beside a checkpoint; others stay."""
    raw = read_json(folder / FILE, optional=True)
    raw[key] = [[list(slot) for slot in slots] for slots in table.slots]
    lines = (f"{json.dumps(key)}: {json.dumps(raw[key])}" for key in sorted(raw))
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    replace_file(folder / FILE, text.encode())


def _table(raw: Sequence[Sequence[Sequence[int]]]) -> Table:
    slots = tuple(tuple(tuple(map(int, s)) for s in some) for some in raw)
    places = [place for some in slots for slot in some for place in slot]
    if len(slots) != MOST_LEFT + 1 or not all(0 <= p < PLACES for p in places):
        raise ValueError("not a table")
    return Table(slots)


def grown(paths: Sequence[Sequence[Slot]], most: int = 63) -> tuple[Slot, ...]:
    """Slots in the order in which each adds most to how far the paths are followed.

    paths: what was visited, slot by slot; a path is followed until a slot is missing.
    """
    chosen: list[Slot] = []
    waiting = [path for path in paths if path]
    while waiting and len(chosen) < most:
        gains = Counter(path[0] for path in waiting)
        best = min(gains, key=lambda slot: (-gains[slot], len(slot), slot))
        chosen.append(best)
        waiting = [_rest(path, chosen) for path in waiting]
        waiting = [path for path in waiting if path]
    return tuple(chosen)


def _rest(path: Sequence[Slot], chosen: Sequence[Slot]) -> Sequence[Slot]:
    """The path from the first slot on that is not chosen."""
    at = next((i for i, slot in enumerate(path) if slot not in chosen), len(path))
    return path[at:]
