"""The walk and the policies, against loops and sorts in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.types import Drafts, Stand, View
from jaxdave.verify import walk

DRAFTS, PLACES = 6, 2
MANY = settings(max_examples=200)


@jax.jit
def chain(tokens, depth, valid, targets):
    """(draft where it ends, hops, last target, steps) in order, and in any order."""
    drafts = Drafts(tokens, depth, valid)

    def step_from(at, stand):
        # The memory records the path, so that it is seen to follow it.
        return Stand(targets[at], stand.memory * 10 + at, stand.n + 1)

    first = Stand(tokens[0], jnp.int32(0), jnp.int32(5))
    found = [walk(step_from, drafts, first, order) for order in (True, False)]
    return [(to.at, to.hops, to.target) for to in found]


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


def sorted_rank(opened, scores):
    """Places of the open positions by (score descending, position)."""
    order = sorted(np.flatnonzero(opened), key=lambda i: (-scores[i], i))
    return {int(i): place for place, i in enumerate(order)}


@MANY
@given(cells(0, 1, (12,)), cells(-2, 2, (12,)))
def test_rank_is_the_sorted_one_in_windows_of_any_length(opened, scores):
    want = sorted_rank(opened, scores)
    got = jax.jit(policies.rank)(opened == 1, scores.astype(np.float32))
    assert {i: int(got[i]) for i in want} == want
    short = sorted_rank(opened[:4], scores[:4])
    got = jax.jit(policies.rank)(opened[:4] == 1, scores[:4].astype(np.float32))
    assert {i: int(got[i]) for i in short} == short


@pytest.mark.parametrize("size", [4, 12, 32])
@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, 40.0])
def test_a_tie_goes_to_the_lowest_position(size, value):
    opened = np.arange(size) >= 1
    moved = commits(policies.static(2), opened, np.full(size, value))
    assert moved == [1, 2]


def commits(policy, opened, scores) -> list[int]:
    """The positions that a policy fills."""
    size = len(opened)
    view = View(
        jnp.where(jnp.asarray(opened), 99, 7).astype(jnp.int32),
        jnp.asarray(opened),
        jnp.arange(size, dtype=jnp.int32),
        jnp.asarray(scores, jnp.float32),
    )
    moved = np.asarray(policy.step(view))
    filled = np.flatnonzero(moved != np.asarray(view.tokens_W))
    assert (moved[filled] == filled).all()
    return filled.tolist()


@MANY
@given(cells(0, 1, (8,)), cells(-3, 3, (8,)), st.integers(1, 9))
def test_policies_commit_what_their_rules_say(opened, scores, count):
    free = np.flatnonzero(opened).tolist()
    order = sorted(free, key=lambda i: (-scores[i], i))
    assert commits(policies.static(count), opened == 1, scores) == sorted(order[:count])
    leftmost = commits(policies.left_to_right(count), opened == 1, scores)
    assert leftmost == free[:count]
    # Log-odds of 1 lie between the probabilities 0.7 and 0.8.
    for tau, bound in ((0.7, 1), (0.8, 2), (0.0, -9), (1.0, 9)):
        sure = [i for i in free if scores[i] >= bound] or order[:1]
        assert commits(policies.threshold(tau), opened == 1, scores) == sure


def test_thresholds_tell_saturated_scores_apart():
    opened, scores = np.ones(4, bool), np.array([12.0, 30.0, 10.0, 60.0])
    # As float32 probabilities all but two of these are 1.
    assert commits(policies.threshold(1 - 1e-5), opened, scores) == [0, 1, 3]
    assert commits(policies.threshold(1 - 1e-10), opened, scores) == [1, 3]
    assert commits(policies.static(1), opened, scores) == [3]


def test_threshold_bounds():
    opened, scores = np.array([True, True, False, True]), np.array([5.0, -40, 90, 30])
    assert commits(policies.threshold(0), opened, scores) == [0, 1, 3]
    assert commits(policies.threshold(1), opened, scores) == [3]
    for tau in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"threshold={tau}"):
            policies.threshold(tau)
    for make in (policies.static, policies.left_to_right):
        with pytest.raises(ValueError, match="tokens_per_step=0"):
            make(0)
