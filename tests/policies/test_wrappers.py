"""Wrappers, orders, bounds, and the worked examples of the published schedules."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference_policies as rules
from helpers.replays import (
    MASK,
    WIDE,
    PredictionTrace,
    key_of,
    random_trace,
    run_policy,
    run_rule,
    trace_of_logits,
    view_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.core.prediction import Prediction
from jaxdave.policies import deferred, hierarchical, local_leap, wino
from jaxdave.policies.block_rules import BlockClock, even_split, time_grid
from jaxdave.policies.registry import makers

MAKERS = makers()


def commits(policy, open_W, scores, **others) -> list[int]:
    """The positions that a policy fills in its first step on a block."""
    size = len(open_W)
    token_W = jnp.arange(size, dtype=jnp.int32) + 10
    parts = {"score": scores, "gap": scores, "margin": scores, "entropy": scores}
    features = [jnp.asarray(v, jnp.float32) for v in {**parts, **others}.values()]
    tokens_W = jnp.where(jnp.asarray(open_W), MASK, 7).astype(jnp.int32)
    view = view_of(
        Prediction(token_W, *features, runner_up=-token_W, lead=features[1]),
        jnp.zeros((size, 6)),
        tokens_W,
        start=jnp.int32(0),
        max_new_tokens=jnp.int32(size),
        n=jnp.int32(3),
        key=key_of(0, 3),
    )
    after_W = np.asarray(policy.step(view, policy.init(size, 6))[0])
    filled = np.flatnonzero(after_W != np.asarray(tokens_W))
    assert (after_W[filled] == filled + 10).all()
    return filled.tolist()


def integers(low, high, size):
    """Arrays of random whole numbers."""
    return st.lists(st.integers(low, high), min_size=size, max_size=size).map(np.array)


@settings(max_examples=200)
@given(integers(0, 1, 12), integers(-2, 2, 12))
def test_rank_is_the_sorted_one_in_windows_of_any_length(open_W, scores):
    for size in (12, 4):
        free = np.flatnonzero(open_W[:size]).tolist()
        order = sorted(free, key=lambda i: (-scores[i], i))
        got = _RANK(open_W[:size] == 1, scores[:size].astype(np.float32))
        assert [int(got[i]) for i in order] == list(range(len(order)))


_RANK = jax.jit(policies.rank)


@pytest.mark.parametrize("size", [4, 12, 32])
@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, 40.0])
def test_a_tie_goes_to_the_lowest_position(size, value):
    open_W = np.arange(size) >= 1
    assert commits(policies.static(2), open_W, np.full(size, value)) == [1, 2]


@pytest.mark.parametrize(("masks", "max_tokens"), [(40, 20), (25, 17), (10, 7), (6, 5)])
def test_wino_commits_no_more_than_a_share_of_the_masks(masks, max_tokens):
    open_W, scores = np.arange(48) < masks, np.arange(48) / 8 + 1
    last = list(range(masks - max_tokens, masks))
    assert commits(wino(), open_W, scores) == last
    assert commits(wino(1.0), open_W, scores) == [masks - 1]


def test_a_first_token_decided_alone_is_not_taken_back():
    """Nothing but the call that began the block could predict it again."""
    policy = policies.first_alone(wino(0.0, 1.0))
    trace = random_trace("shadows")
    blocks = run_policy(policy, trace._replace(prompt=np.zeros_like(trace.prompt)))
    assert (blocks[:, 0, 0] != MASK).all()
    for at in range(1, blocks.shape[1]):
        before, after = blocks[:, at - 1] == MASK, blocks[:, at] == MASK
        # What follows a complete block is another one.
        assert not (after[:, 0] & before.any(axis=1)).any()


def test_thresholds_tell_saturated_scores_apart():
    open_W, scores = np.ones(4, bool), np.array([12.0, 30.0, 10.0, 60.0])
    # As float32 probabilities all but two of these are 1.
    assert commits(policies.threshold(1 - 1e-5), open_W, scores) == [0, 1, 3]
    assert commits(policies.threshold(1 - 1e-10), open_W, scores) == [1, 3]
    assert commits(policies.static(1), open_W, scores) == [3]


def test_threshold_bounds():
    open_W, scores = np.array([True, True, False, True]), np.array([5.0, -40, 90, 30])
    assert commits(policies.threshold(0), open_W, scores) == [0, 1, 3]
    assert commits(policies.threshold(1), open_W, scores) == [3]
    dynamic = policies.low_confidence_dynamic(4, 1.0)
    assert commits(dynamic, open_W, scores) == [3]
    assert commits(hierarchical(1.0, 1.0), open_W, scores) == [3]


def test_a_bound_that_is_met_exactly_counts_where_the_source_says_so():
    open_W, scores = np.ones(4, bool), np.array([0.0, 1.0, 0.0, -1.0])
    for policy in (
        policies.threshold(0.5),
        local_leap(0.5, 0.5),
        local_leap(0.7, 0.5),
        deferred(32, 0.5),
    ):
        assert commits(policy, open_W, scores) == [0, 1, 2]
    for policy in (
        policies.low_confidence_dynamic(9, 0.5),
        hierarchical(0.5, 0.5),
        hierarchical(0.7, 0.5),
    ):
        assert commits(policy, open_W, scores) == [1]
    # Position 2 is decoded, so the last one is a run of its own.
    open_W, scores = np.array([True, True, False, True]), np.array([1.0, -1, 9, 0])
    assert commits(hierarchical(0.9, 0.5), open_W, scores) == [0]
    assert commits(hierarchical(0.9, 0.4), open_W, scores) == [0, 3]
    # Two steps: the first one of the grid commits, so that its bound decides.
    clear = policies.sched(2, max_change_ratio=1.0)
    for policy in (clear, policies.prophet(8)):
        assert commits(policy, open_W, scores, gap=np.full(4, 7.5)) == [0, 1, 3]
        assert len(commits(policy, open_W, scores, gap=np.full(4, 7.25))) == 1


def split(masks: int, steps: int) -> list[int]:
    """The counts of every step of the even split."""
    at = [BlockClock(jnp.int32(k), jnp.int32(masks)) for k in range(steps)]
    left, counts = masks, []
    for clock in at:
        counts.append(min(int(even_split(masks, steps, clock)), left))
        left -= counts[-1]
    return counts


def test_the_worked_examples_of_the_schedules():
    assert split(10, 4) == [3, 3, 2, 2]
    assert split(8, 3) == [3, 3, 2]
    shares = time_grid(4, 1e-3).shares()
    assert np.allclose(shares, [0.24975, 0.33289, 0.49900, 1], atol=1e-5)
    left, counts = 8, []
    for ratio in shares:
        counts.append(int(left * ratio))
        left -= counts[-1]
    assert counts == [1, 2, 2, 3]


def test_times_are_the_float32_numbers_of_torch():
    """int(m share) turns on the last bit where m share is a whole number but for it."""
    torch = pytest.importorskip("torch")
    for steps, eps in ((1, 0.5), (2, 1e-3), (9, 0.1), (32, 1e-3), (511, 0.25)):
        times = torch.linspace(1, eps, steps + 1)
        shares = [float(1 - times[i + 1] / times[i]) for i in range(steps - 1)]
        ours = time_grid(steps, eps).shares()
        # Processors without a fused multiply-add round twice.
        if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
            assert ours.tolist() == [*shares, 1.0]
        assert ours == pytest.approx([*shares, 1.0], abs=1e-6)


@pytest.mark.parametrize("name", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize(
    ("steps", "left"),
    # 8 masks in 4 steps: 1, 2, 2, 3. In 8 steps: none in the first one, two in the
    # last; what commits none takes no call.
    [(4, [7, 5, 3, 0, 0, 0, 0, 0]), (8, [7, 6, 5, 4, 3, 2, 0, 0])],
)
def test_the_worked_examples_of_dreams_time(name, steps, left):
    trace = random_trace("grid", cases=4, steps=8)
    trace = trace._replace(prompt=np.full(4, 4), max_new_tokens=np.full(4, 8))
    blocks = run_policy(MAKERS[name](steps), trace)
    assert ((blocks == MASK).sum(axis=2) == left).all()


def test_the_worked_example_of_the_entropy_bound():
    open_W, entropy = np.ones(3, bool), np.array([0.3, 0.05, 0.1])
    bounded = policies.entropy_bounded(0.35)
    assert commits(bounded, open_W, -entropy, entropy=entropy) == [1, 2]
    lowest = policies.entropy_bounded(0.0)
    assert commits(lowest, open_W, -entropy, entropy=entropy) == [1]


def test_a_peak_has_the_lowest_entropy_and_a_flat_row_log_v():
    logits = np.zeros((1, 1, WIDE, 6), np.float32)
    logits[..., 4, 2] = 80
    trace = trace_of_logits(logits, np.zeros(1, int), np.full(1, WIDE))
    assert trace.entropy[0, 0, 4] < 1e-6
    assert np.allclose(np.delete(trace.entropy[0, 0], 4), math.log(6))
    assert (
        np.flatnonzero(run_policy(policies.entropy(64), trace)[0, 0] != MASK) == 4
    ).all()


@pytest.mark.parametrize("length", [1, 3, 5, 12, 40])
def test_small_blocks_are_done_one_after_the_other(length):
    def rule(view, memory):
        first = view.open[0] // length
        view.open = [i for i in view.open if i // length == first]
        return rules.threshold(0.7)(view, memory)

    policy = policies.small_blocks(policies.threshold(0.7), length)
    assert (
        run_policy(policy, random_trace("grid")) == run_rule(rule, random_trace("grid"))
    ).all()


def test_the_first_position_is_committed_alone():
    def rule(view, memory):
        if view.open[0] == 0:
            view.open = [0]
        # The schedule counts that step, as a step with one open position.
        return rules.low_confidence(4)(view, memory)

    policy = policies.first_alone(policies.low_confidence(4))
    got = run_policy(policy, random_trace("grid"))
    assert (got == run_rule(rule, random_trace("grid"))).all()
    for case, prompt in enumerate(random_trace("grid").prompt):
        filled = np.flatnonzero(got[case, 0] != MASK)
        assert prompt or filled.tolist() == [0]


def test_demoted_tokens_come_last():
    def rule(inner, view, memory):
        demoted = [i for i in range(WIDE) if view.token[i] in (1, 4)]
        view.odds = [-1e30 if i in demoted else v for i, v in enumerate(view.odds)]
        view.entropy = [1e30 if i in demoted else v for i, v in enumerate(view.entropy)]
        return inner(view, memory)

    for policy, inner in (
        (policies.low_confidence(5), rules.low_confidence(5)),
        (policies.threshold(0.7), rules.threshold(0.7)),
        (policies.factor(1.0), rules.factor(1.0)),
        (policies.entropy(7), rules.dream("entropy", 7, 1e-3)),
        (local_leap(), rules.local_leap(0.9, 0.75, 4)),
    ):
        wrapped = policies.demote(policy, [4, 1])
        want = run_rule(functools.partial(rule, inner), random_trace("grid"))
        assert (run_policy(wrapped, random_trace("grid")) == want).all()


def test_memory_begins_anew_in_every_block():
    """A block after another is decoded as it would be on its own."""
    trace = random_trace("logits", cases=8)
    whole = trace._replace(prompt=np.zeros(8, int), max_new_tokens=np.full(8, 2 * WIDE))
    second_block = (part[:, WIDE:] for part in whole[:6])
    cut = PredictionTrace._make([*second_block, whole.prompt, whole.max_new_tokens])
    for policy in (policies.low_confidence(12), policies.sequential(12)):
        blocks = run_policy(policy, whole)
        assert (blocks[:, WIDE - 1] != MASK).all()
        assert (blocks[:, WIDE : 2 * WIDE] == run_policy(policy, cut)[:, :WIDE]).all()
