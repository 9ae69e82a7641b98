"""Calibration: which drafts the plain policy would have confirmed, by the thousand.

The policy decodes prompts one state at a time. Its path ahead is compared with the
order of the prediction that drafts would be made of at each state. Where what is
predicted depends on the drafts of the last call (block-causal models look ahead from
the deepest), the same prompts are decoded with drafts as well.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.decoding import loop as decode_loop
from jaxdave.decoding.propose import draft_context
from jaxdave.drafting import tree
from jaxdave.drafting.tree_table import (
    CONTEXT_SHAPE,
    MAX_PLACES,
    NUM_GAPS,
    Leaf,
    TreeNode,
    TreeTable,
    grow,
)
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import prefill_prompts
from jaxdave.runtime.compilation import compile_options

DRAFT_LENGTHS = (1, 8, 32)
"""Drafts a call of the decodes that are looked at."""
MIN_OBSERVATIONS = 40
"""A context that was seen less often has the leaf of all that leave as many open."""
CLOSE_QUANTILE = 0.45
"""Of two places in a row, those with a smaller gap than this share are a close call."""


class Observation(NamedTuple):
    """One row after one call: what is known [T], and how the rest looks [L]."""

    tokens_T: Any
    start: Any
    n: Any
    place_L: Any
    token_L: Any
    runner_L: Any
    open_L: Any
    left: Any
    gap_P: Any
    rests: Any


class VisitedPath(NamedTuple):
    """A sight's context but for the edge, and the slots that were visited after it."""

    left: int
    gap_P: np.ndarray
    path: list[TreeNode]


def calibrate(decoder: Decoder, params, batches: Sequence[Sequence], tick) -> TreeTable:
    """The slots that the decoder's policy visits on prompts, one token a step.

    batches: lists of prompts; tick(number of prompts) is called after each.
    """
    looks_ahead = decoder.spec.model.evaluate_blocks is not None
    caps = [cap for cap in DRAFT_LENGTHS if cap <= decoder.spec.draft_steps]
    caps = caps if looks_ahead else caps[:1]
    eyes, seen = _observer(decoder, params), list[VisitedPath]()
    for batch in batches:
        decodes = [
            list(_observations(decoder, params, eyes, batch, cap)) for cap in caps
        ]
        for row in range(len(batch)):
            film, *others = (
                [Observation(*(part[row] for part in sight)) for sight in sights]
                for sights in decodes
            )
            seen.extend(_paths(film, [film, *others]))
        tick(len(batch))
    return _build_table(seen)


def _paths(
    film: list[Observation], decodes: Sequence[list[Observation]]
) -> Iterator[VisitedPath]:
    """What every sight of a row saw come true; film: the decode without drafts."""
    after = {int(sight.n): film[at + 1 :] for at, sight in reversed([*enumerate(film)])}
    for sight in (one for sights in decodes for one in sights if not one.rests):
        path = list(visited_nodes(sight, after[int(sight.n)]))
        yield VisitedPath(int(sight.left), sight.gap_P, path)


def visited_nodes(
    sight: Observation, after: Iterable[Observation]
) -> Iterator[TreeNode]:
    """The slots that a row's path visits after a sight, while it can."""
    now, slot = sight, ()
    for then in after:
        moved = np.flatnonzero(now.tokens_T != then.tokens_T)
        if then.rests or len(moved) != 1:
            return
        at, token = int(moved[0]) - int(sight.start), then.tokens_T[moved[0]]
        if not 0 <= at < len(sight.open_L) or not sight.open_L[at]:
            return
        place, said = int(sight.place_L[at]), (sight.token_L[at], sight.runner_L[at])
        if place >= MAX_PLACES or token not in said or said[0] < 0:
            return
        now, slot = then, tuple(sorted((*slot, 2 * place + said.index(token))))
        yield slot


def _build_table(seen: Sequence[VisitedPath]) -> TreeTable:
    """Leaves by context; a rare one has the leaf of all with as many open."""
    gaps = np.concatenate([[1.0], *(one.gap_P for one in seen)])
    edge = round(float(np.quantile(gaps[np.isfinite(gaps)], CLOSE_QUANTILE)), 4)
    paths: dict[tuple[int, int], list[list[TreeNode]]] = defaultdict(list)
    for one in seen:
        is_close = np.append(one.gap_P < edge, True)
        paths[one.left, int(np.argmax(is_close))].append(one.path)

    def leaves(left: int) -> Iterator[Leaf]:
        every = [path for close in range(NUM_GAPS + 1) for path in paths[left, close]]
        common = grow(every)
        for close in range(NUM_GAPS + 1):
            mine = paths[left, close]
            yield grow(mine) if len(mine) >= MIN_OBSERVATIONS else common

    return TreeTable(
        edge, tuple(tuple(leaves(left)) for left in range(CONTEXT_SHAPE[0]))
    )


class _Observer(NamedTuple):
    """Compiled: step(cap, state) -> state; look(rows) -> what each of them sees."""

    step: Callable[..., Any]
    queries: Callable[..., Observation]


def _observer(decoder: Decoder, params) -> _Observer:
    spec = decoder.spec

    def queries(row):
        context = draft_context(spec, params, row)
        place_L, pred = tree.draft_order(context), row.pred
        return Observation(
            row.tokens_T, row.start, row.n, place_L, pred.token[0], pred.runner_up[0],
            context.open_L, tree.open_count_index(context),
            tree.score_gaps(context, place_L),
            row.done | row.needs_refresh,
        )  # fmt: skip

    step = jax.jit(
        lambda params, cap, state: decode_loop.step(
            spec, params, spec.runtime(1)._replace(max_num_drafts=cap), state
        )[0],
        compiler_options=compile_options(),
    )
    return _Observer(functools.partial(step, params), jax.jit(jax.vmap(queries)))


def _observations(
    decoder: Decoder, params, eyes: _Observer, prompts: Sequence, cap: int
) -> Iterator[Observation]:
    """What every row sees after each call of the policy, on the host."""
    state = prefill_prompts(decoder, params, prompts)
    for _ in range(decoder.max_new_tokens + 1):
        yield Observation(*jax.device_get(eyes.queries(state.rows)))
        if state.rows.done.all():
            return
        state = eyes.step(jnp.int32(cap), state)
