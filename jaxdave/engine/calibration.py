"""Calibration of draft trees: which drafts the plain policy would have confirmed.

The policy decodes prompts one state at a time. At each state, its path ahead is
compared with the order of the prediction that drafts would be made of. Where that
prediction depends on the drafts of the last call (block-causal models look ahead from
the deepest draft), the same prompts are decoded with drafts as well.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

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
from jaxdave.engine.placement import placement_of
from jaxdave.runtime.compilation import compile_options
from jaxdave.runtime.meshes import split_specs
from jaxdave.runtime.platform import in_32_bits

DRAFT_LENGTHS = (1, 8, 32)
"""Drafts per call of the decodes that are observed."""
MIN_OBSERVATIONS = 40
"""A context observed less often gets the leaf of all contexts with as many open."""
CLOSE_QUANTILE = 0.45
"""Gaps between neighbours in the order below this quantile are close calls."""


class Observation(NamedTuple):
    """What drafts of one row could be made of after one call, on the host.

    Attributes:
        tokens_T: The sequence.
        start: First position of the window.
        n: Policy-step index.
        order_L: Rank of each open position in the order of the prediction.
        token_L: Predicted tokens.
        runner_up_L: Second best tokens.
        open_L: Positions that may be decoded before the window moves.
        open_count: Index of the context by open positions.
        gap_P: Score gaps between neighbours in the order.
        is_resting: The row has ended, or its next call is a refresh.
    """

    tokens_T: Any
    start: Any
    n: Any
    order_L: Any
    token_L: Any
    runner_up_L: Any
    open_L: Any
    open_count: Any
    gap_P: Any
    is_resting: Any


class VisitedPath(NamedTuple):
    """The tree nodes that were visited after an observation, and its context.

    Attributes:
        open_count: Index of the context by open positions.
        gap_P: Score gaps, from which the other half of the context follows.
        nodes: Visited nodes, in order.
    """

    open_count: int
    gap_P: np.ndarray
    nodes: list[TreeNode]


@in_32_bits()
def calibrate(
    decoder: Decoder,
    params: Any,
    batches: Sequence[Sequence[Sequence[int]]],
    tick: Callable[[int], object],
    tokens_per_step: int = 1,
) -> TreeTable:
    """Count the tree nodes that a decoder's policy visits.

    Args:
        decoder: A decoder of `policies.static`.
        params: The model's parameters.
        batches: Batches of prompts, as token ids.
        tick: Called after each batch with its number of prompts.
        tokens_per_step: Tokens that a step of the policy commits at most.

    Returns:
        The table for `jaxdave.drafting.tree.tree`.
    """
    # A full-attention prediction does not depend on the last call's drafts: the plain
    # decode alone shows all that drafts could be made of.
    looks_ahead = decoder.spec.model.evaluate_blocks is not None
    limits = [d for d in DRAFT_LENGTHS if d <= decoder.spec.num_drafts]
    limits = limits if looks_ahead else limits[:1]
    observer, paths = _observer(decoder, params), list[VisitedPath]()
    for prompts in batches:
        decodes = [
            list(_observations(decoder, params, observer, prompts, limit))
            for limit in limits
        ]
        for row in range(len(prompts)):
            # [calls] of all rows -> per row, in each of the decodes.
            plain, *drafted = (
                [Observation(*(part[row] for part in batch)) for batch in decode]
                for decode in decodes
            )
            paths.extend(_paths(plain, [plain, *drafted], tokens_per_step))
        tick(len(prompts))
    return _build_table(paths, tokens_per_step)


def _paths(
    plain: list[Observation],
    decodes: Sequence[list[Observation]],
    tokens_per_step: int,
) -> Iterator[VisitedPath]:
    """What came true after every observation of a row.

    plain: the decode without drafts, which visits every state of the path.
    """
    # By step index: the plain decode visits every one, so that an
    # observation of a drafted decode finds its own future there. Of
    # observations of one index, the first counts.
    after = {int(seen.n): plain[i + 1 :] for i, seen in reversed([*enumerate(plain)])}
    for observation in (one for decode in decodes for one in decode):
        if not observation.is_resting:
            coming = after[int(observation.n)]
            nodes = list(visited_nodes(observation, coming, tokens_per_step))
            yield VisitedPath(int(observation.open_count), observation.gap_P, nodes)


def visited_nodes(
    observation: Observation, after: Iterable[Observation], tokens_per_step: int = 1
) -> Iterator[TreeNode]:
    """The nodes that a row's path visits after an observation, as far as a tree could.

    Args:
        observation: One row after one call.
        after: The states that the plain decode visits next.
        tokens_per_step: Tokens that a step commits; the last one of a block may commit
            fewer.

    Yields:
        Nodes; the path ends where a step commits a token that was neither the best nor
        the runner-up, or a position outside the window.
    """
    # Follow the plain decode state by state, and write down what each step has filled
    # in the terms of the observation: its places, and whether tokens were best or
    # runners-up.
    now, node = observation, ()
    for then in after:
        # No draft reaches past the end of a row or past a refresh.
        changed = np.flatnonzero(now.tokens_T != then.tokens_T)
        if then.is_resting or not 1 <= len(changed) <= tokens_per_step:
            return
        filled = [_number_of(observation, int(at), then.tokens_T[at]) for at in changed]
        if min(filled) < 0:
            return
        now, node = then, tuple(sorted((*node, *filled)))
        yield node


def _number_of(observation: Observation, position: int, token: int) -> int:
    """How a node names a filled position (see `TreeNode`); -1 where it cannot."""
    index = position - int(observation.start)
    if not 0 <= index < len(observation.open_L) or not observation.open_L[index]:
        return -1
    place = int(observation.order_L[index])
    ranked = observation.token_L[index], observation.runner_up_L[index]
    if place >= MAX_PLACES or token not in ranked or ranked[0] < 0:
        return -1
    return 2 * place + ranked.index(token)


def _build_table(paths: Sequence[VisitedPath], tokens_per_step: int = 1) -> TreeTable:
    """Leaves by context; a rare context has the leaf of all with as many open."""
    counts_P = tree.ends_step(tokens_per_step)
    # 1.0 stands in where nothing was observed; the quantile of no numbers is undefined.
    gaps = np.concatenate([[1.0], *(path.gap_P[counts_P] for path in paths)])
    edge = round(float(np.quantile(gaps[np.isfinite(gaps)], CLOSE_QUANTILE)), 4)
    nodes: dict[tuple[int, int], list[list[TreeNode]]] = defaultdict(list)
    for path in paths:
        # True at the end: argmax is then `NUM_GAPS`, "none", where no gap is close.
        is_close = np.append((path.gap_P < edge) & counts_P, True)
        nodes[path.open_count, int(np.argmax(is_close))].append(path.nodes)

    def leaves(open_count: int) -> Iterator[Leaf]:
        contexts = [nodes[open_count, close] for close in range(NUM_GAPS + 1)]
        common = grow([path for context in contexts for path in context])
        for context in contexts:
            yield grow(context) if len(context) >= MIN_OBSERVATIONS else common

    return TreeTable(edge, tuple(tuple(leaves(i)) for i in range(CONTEXT_SHAPE[0])))


class _Observer(NamedTuple):
    """Compiled functions: step(limit, state) -> state; observe(rows) -> Observation."""

    step: Callable[..., Any]
    observe: Callable[..., Observation]


def _observer(decoder: Decoder, params: Any) -> _Observer:
    placement = placement_of(params)
    placement.check_one_process("calibration")
    spec = placement.spec_of(decoder.spec)

    def observe(row):
        context = draft_context(spec, params, row)
        order_L = tree.draft_order(context)
        return Observation(
            tokens_T=row.tokens_T,
            start=row.start,
            n=row.n,
            order_L=order_L,
            token_L=row.pred.token[0],
            runner_up_L=row.pred.runner_up[0],
            open_L=context.open_L,
            open_count=tree.open_count_index(context),
            gap_P=tree.score_gaps(context, order_L),
            is_resting=row.done | row.needs_refresh,
        )

    def step(params, limit, state):
        # The limit is a runtime argument: one
        # program serves all observed draft lengths.
        runtime = spec.runtime(1)._replace(max_num_drafts=limit)
        return decode_loop.step(spec, params, runtime, state)[0]

    states = placement.state_specs(spec, False)
    step = placement.program(
        step, (split_specs(params), PartitionSpec(), states), states
    )
    compiled = jax.jit(step, compiler_options=compile_options())
    return _Observer(functools.partial(compiled, params), jax.jit(jax.vmap(observe)))


def _observations(
    decoder: Decoder, params: Any, observer: _Observer, prompts: Sequence, limit: int
) -> Iterator[Observation]:
    """Every row after each call, on the host; a call uses at most `limit` drafts."""
    state = prefill_prompts(decoder, params, prompts)
    # Every call takes at least one policy step,
    # so that rows end within this many calls.
    for _ in range(decoder.max_rounds + 1):
        yield Observation(*jax.device_get(observer.observe(state.rows)))
        if state.rows.done.all():
            return
        state = observer.step(jnp.int32(limit), state)
