"""The walk, against loops in plain Python."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave.core.draft_api import DraftSet
from jaxdave.core.state import PolicyState
from jaxdave.decoding.accepted_path import longest_accepted_path, longest_path_at_once

DRAFTS, PLACES = 6, 2
MANY = settings(max_examples=200)


@jax.jit
def chain(tokens, depth, valid, targets):
    """(draft where it ends, hops, last target, steps) in order, and in any order."""
    drafts = DraftSet(tokens[:, None], depth, valid, jnp.ones(DRAFTS))

    def step_from(at, stand):
        # The memory records the path, so that it is seen to follow it.
        next_stand = PolicyState(targets[at], stand.memory * 10 + at, stand.n + 1)
        return at % 2, next_stand, jnp.bool_(True)

    def ahead(stand):
        return stand.tokens_L[None]

    first = PolicyState(tokens[0], jnp.int32(0), jnp.int32(5))
    found = [
        longest_accepted_path(step_from, ahead, drafts, first, order)
        for order in (True, False)
    ]
    return [(to.draft, to.num_hops, to.target) for to in found]


def looped_successors(tokens, depth, valid, targets, in_order):
    """For each draft the first other draft that is its target, or -1."""
    found = []
    for i in range(DRAFTS):
        hits = [
            j
            for j in range(DRAFTS)
            if valid[i] and valid[j] and tuple(targets[i]) == tuple(tokens[j])
            if (depth[j] == depth[i] + 1 if in_order else j != i)
        ]
        found.append(hits[0] if hits else -1)
    return found


def looped_walk(nexts):
    """The drafts on the path from draft 0, cut after DRAFTS - 1 hops."""
    path = [0]
    while nexts[path[-1]] >= 0 and len(path) < DRAFTS:
        path.append(nexts[path[-1]])
    return path


def cells(low, high, shape):
    size = int(np.prod(shape))
    flat = st.lists(st.integers(low, high), min_size=size, max_size=size)
    return flat.map(lambda v: np.array(v, np.int32).reshape(shape))


@MANY
@given(
    cells(0, 2, (DRAFTS, PLACES)),
    cells(0, 3, (DRAFTS,)),
    cells(0, 3, (DRAFTS,)),
    cells(0, 2, (DRAFTS, PLACES)),
)
def test_the_walk_is_the_looped_one(tokens, depth, invalid, targets):
    valid = invalid > 0
    seen = chain(tokens, depth, valid, targets)
    for in_order, (at, hops, target) in zip((True, False), seen, strict=True):
        path = looped_walk(looped_successors(tokens, depth, valid, targets, in_order))
        assert (int(at), int(hops)) == (path[-1], len(path) - 1)
        assert target.tokens_L.tolist() == targets[path[-1]].tolist()
        assert int(target.n) == 5 + len(path)
        assert int(target.memory) == int("".join(map(str, path)))


def test_a_chain_is_walked_to_its_end_and_a_gap_ends_it():
    tokens = np.arange(DRAFTS * PLACES, dtype=np.int32).reshape(DRAFTS, PLACES)
    depth, valid = np.arange(DRAFTS, dtype=np.int32), np.ones(DRAFTS, bool)
    targets = np.roll(tokens, -1, axis=0)
    targets[-1] = -7
    for at, hops, _ in chain(tokens, depth, valid, targets):
        assert (int(at), int(hops)) == (DRAFTS - 1, DRAFTS - 1)
    gap = valid.copy()
    gap[3] = False
    for at, hops, _ in chain(tokens, depth, gap, targets):
        assert (int(at), int(hops)) == (2, 2)


def test_a_cycle_has_a_bound():
    tokens = np.arange(DRAFTS * PLACES, dtype=np.int32).reshape(DRAFTS, PLACES)
    depth, valid = np.arange(DRAFTS, dtype=np.int32), np.ones(DRAFTS, bool)
    targets = np.roll(tokens, -1, axis=0)
    _, (_, hops, _) = chain(tokens, depth, valid, targets)
    assert int(hops) == DRAFTS - 1


@functools.partial(jax.jit, static_argnames=("in_order", "reads_step"))
def both_ways(tokens, depth, valid, targets, certain, in_order, reads_step):
    """The path of a policy without memory, by the loop and at once.

    With `reads_step` what the policy does depends on its step index as well.
    """
    drafts = DraftSet(tokens[:, None], depth, valid, jnp.ones(DRAFTS))

    def step_from(at, stand):
        row = (at + stand.n) % DRAFTS if reads_step else at
        stepped = PolicyState(targets[row], (), stand.n + 1)
        return jnp.int32(0), stepped, certain[row]

    def steps_at(n_K):
        states = PolicyState(tokens, (), n_K)
        return jax.vmap(step_from)(jnp.arange(DRAFTS), states)[1:]

    def ahead(stand):
        is_over = stand.tokens_L[0] == 0
        return jnp.where(is_over, -1, stand.tokens_L[None])

    first = PolicyState(tokens[0], (), jnp.int32(5))
    return (
        longest_accepted_path(step_from, ahead, drafts, first, in_order),
        longest_path_at_once(steps_at, ahead, drafts, first, in_order),
    )


@MANY
@given(
    cells(0, 2, (DRAFTS, PLACES)),
    cells(0, 3, (DRAFTS,)),
    cells(0, 3, (DRAFTS,)),
    cells(0, 2, (DRAFTS, PLACES)),
    cells(0, 6, (DRAFTS,)),
    st.booleans(),
    st.booleans(),
)
def test_the_path_at_once_is_the_loop_s(
    tokens, depth, invalid, targets, doubtful, in_order, reads_step
):
    certain = doubtful > 0
    looped, at_once = both_ways(
        tokens, depth, invalid > 0, targets, certain, in_order, reads_step
    )
    chex.assert_trees_all_equal(looped, at_once)


def test_long_paths_are_found_at_once():
    """Chains, in which the random drafts of the law above rarely end late."""
    tokens = 1 + np.arange(DRAFTS * PLACES, dtype=np.int32).reshape(DRAFTS, PLACES)
    valid = np.ones(DRAFTS, bool)
    for order in (np.arange(DRAFTS), np.array([0, 4, 2, 5, 1, 3])):
        depth = np.argsort(order).astype(np.int32)
        targets = np.zeros_like(tokens)
        targets[order[:-1]] = tokens[order[1:]]
        for length in range(DRAFTS):
            certain = np.ones(DRAFTS, bool)
            certain[order[length]] = False
            for in_order in (True, False):
                looped, at_once = both_ways(
                    tokens, depth, valid, targets, certain, in_order, False
                )
                assert int(at_once.num_hops) == length
                chex.assert_trees_all_equal(looped, at_once)
