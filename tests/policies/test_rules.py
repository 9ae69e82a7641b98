"""Every policy against the plain statement of its rule, over two blocks."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference_memory as memories
from helpers import reference_policies as rules
from helpers.replays import MASK, PROMPT, random_trace, run_policy, run_rule

from jaxdave import policies
from jaxdave.core.prediction import Prediction
from jaxdave.policies import (
    credit,
    deferred,
    first_hitting,
    hierarchical,
    klass,
    local_leap,
    saber,
    wino,
)
from jaxdave.policies.credit import NO_CREDIT, best_with_bonus
from jaxdave.policies.dilated import rounds
from jaxdave.policies.registry import makers

MAKERS = makers()

trace = functools.cache(random_trace)
SUMS = ("entropy_bounded", "eb_sampler", "prophet", "sched", "saber")
"""Policies that add floats: compiled as they are when they decode."""
GRIDS = ("grid", "sure")
DIRECT = [name for name in MAKERS if MAKERS[name]().scoring is None]
"""Policies whose step commits; the others are in test_candidates.py."""
CASES = [
    (policies.static(1), rules.static(1), GRIDS),
    (policies.static(3), rules.static(3), GRIDS),
    (policies.left_to_right(2), rules.left_to_right(2), GRIDS),
    (policies.leftmost_run(), rules.leftmost_run(0.9, 1), GRIDS),
    (policies.leftmost_run(0.6, 3), rules.leftmost_run(0.6, 3), GRIDS),
    (policies.threshold(0.7), rules.threshold(0.7), GRIDS),
    (policies.threshold(1 - 1e-10), rules.threshold(1 - 1e-10), GRIDS),
    (policies.cad(), rules.cad(0.8, 1, 4), GRIDS),
    (policies.cad(0.6, 2, 3), rules.cad(0.6, 2, 3), GRIDS),
    (policies.cad(0.3, 1, 12), rules.cad(0.3, 1, 12), GRIDS),
    (policies.factor(1.0), rules.factor(1.0), GRIDS),
    (policies.factor(0.3), rules.factor(0.3), GRIDS),
    (policies.factor(5.0), rules.factor(5.0), GRIDS),
    (policies.low_confidence(5), rules.low_confidence(5), GRIDS),
    (policies.low_confidence(128), rules.low_confidence(128), GRIDS),
    (policies.random(4), rules.random(4), ("grid",)),
    (first_hitting(), rules.first_hitting(), ("grid",)),
    (policies.origin(6, 1e-3), rules.origin(6, 1e-3), ("grid",)),
    (policies.origin(40, 0.2), rules.origin(40, 0.2), ("grid",)),
    (policies.maskgit_plus(7), rules.dream("maskgit_plus", 7, 1e-3), GRIDS),
    (policies.topk_margin(5, 0.1), rules.dream("topk_margin", 5, 0.1), GRIDS),
    (policies.entropy(40), rules.dream("entropy", 40, 1e-3), GRIDS),
    # As many steps as masks: none in the first step, two in the last.
    (policies.entropy(12), rules.dream("entropy", 12, 1e-3), GRIDS),
    (policies.maskgit_plus(11), rules.dream("maskgit_plus", 11, 1e-3), GRIDS),
    (policies.origin(12), rules.origin(12, 1e-3), ("grid",)),
    (
        policies.maskgit_plus(5, alg_temp=0.2),
        rules.dream("maskgit_plus", 5, 1e-3, 0.2),
        GRIDS,
    ),
    (
        policies.topk_margin(5, alg_temp=0.5),
        rules.dream("topk_margin", 5, 1e-3, 0.5),
        GRIDS,
    ),
    (
        policies.entropy(5, alg_temp=1.0),
        rules.dream("entropy", 5, 1e-3, 1.0),
        ("grid",),
    ),
    (policies.sequential(5), rules.sequential(5), GRIDS),
    (policies.low_confidence_static(5), rules.low_confidence_static(5), GRIDS),
    (
        policies.low_confidence_dynamic(5, 0.6),
        rules.low_confidence_dynamic(5, 0.6),
        GRIDS,
    ),
    (
        policies.low_confidence_dynamic(20, 0.9),
        rules.low_confidence_dynamic(20, 0.9),
        GRIDS,
    ),
    (policies.entropy_bounded(0.35), rules.entropy_bounded(0.35), GRIDS),
    (policies.entropy_bounded(1.0), rules.entropy_bounded(1.0), GRIDS),
    (policies.entropy_threshold(0.25), rules.entropy_threshold(0.25), GRIDS),
    (policies.entropy_threshold(0.0), rules.entropy_threshold(0.0), GRIDS),
    (policies.entropy_threshold(0.7), rules.entropy_threshold(0.7), GRIDS),
    (policies.multi_block(4, 0.25, 0.5), rules.multi_block(4, 0.25, 0.5), GRIDS),
    (policies.multi_block(3, 0.5, 0.1), rules.multi_block(3, 0.5, 0.1), GRIDS),
    (policies.multi_block(5, 0.25, 1.0), rules.multi_block(5, 0.25, 1.0), GRIDS),
    (policies.multi_block(), rules.entropy_threshold(0.4), GRIDS),
    (policies.dilated(), rules.dilated(2), GRIDS),
    (policies.dilated(3), rules.dilated(3), GRIDS),
    (policies.dilated(5), rules.dilated(5), GRIDS),
    (policies.dilated(13), rules.dilated(13), GRIDS),
    (policies.eb_sampler(0.5), rules.eb_sampler(0.5, "entropy"), GRIDS),
    (
        policies.eb_sampler(0.125, "confidence"),
        rules.eb_sampler(0.125, "confidence"),
        GRIDS,
    ),
    (hierarchical(0.9, 0.4), rules.hierarchical(0.9, 0.4), GRIDS),
    (hierarchical(0.99, 0.8), rules.hierarchical(0.99, 0.8), GRIDS),
    (local_leap(0.9, 0.75, 1), rules.local_leap(0.9, 0.75, 1), GRIDS),
    (local_leap(), rules.local_leap(0.9, 0.75, 4), GRIDS),
    (
        policies.joint_threshold(0.6, 0.3, 4, 2),
        rules.joint_threshold(0.6, 0.3, 2),
        GRIDS,
    ),
    (policies.joint_threshold(), rules.joint_threshold(0.95, 0.9, 1), GRIDS),
    (policies.llada2_s(), rules.joint_threshold(0.5, 0.0, 1), GRIDS),
    (policies.llada2_q(), rules.joint_threshold(0.7, 0.5, 1), GRIDS),
    (deferred(4, 0.8, 6), memories.deferred(4, 0.8, 6), GRIDS),
    (deferred(3, 0.9, 128), memories.deferred(3, 0.9, 128), GRIDS),
    (credit(), memories.credit(0.9, 0.7, 0.2, 0.8), ("logits",)),
    (credit(0.6, 3.0, 1.0, 0.5), memories.credit(0.6, 3, 1, 0.5), ("logits",)),
    (
        credit(0.8, 2.0, 0.2, 0.8, 2),
        memories.credit(0.8, 2.0, 0.2, 0.8, 2),
        ("logits",),
    ),
    (klass(), memories.klass(0.9, 0.01, 2), ("logits",)),
    (klass(0.5, 0.3, 3), memories.klass(0.5, 0.3, 3), ("logits",)),
    (klass(0.5, 3.0, 2), memories.klass(0.5, 3.0, 2), ("logits",)),
    (policies.prophet(9), memories.prophet(9, (7.5, 5, 2.5), -1, 5), GRIDS),
    (
        policies.prophet(6, 100.0, 5.0, 0.0),
        memories.prophet(6, (100, 5, 0), -1, 5),
        GRIDS,
    ),
    (
        policies.prophet(12, 6.0, 4.5, 3.0, 3, 4),
        memories.prophet(12, (6, 4.5, 3), 3, 4),
        GRIDS,
    ),
    (
        policies.prophet(12, 6.0, 4.5, 3.0, 9, 3),
        memories.prophet(12, (6, 4.5, 3), 9, 3),
        GRIDS,
    ),
    (
        policies.sched(8, max_change_ratio=0.4),
        memories.sched(8, 7.5, 2.5, "cosine", 4, 0, 0, 0.4, 1e-3),
        GRIDS,
    ),
    (
        policies.sched(12, 6.0, 4.0, "linear", 4.0, 0.0, 0, 0.0),
        memories.sched(12, 6, 4, "linear", 4, 0, 0, 0.0, 1e-3),
        GRIDS,
    ),
    (
        policies.sched(100, 8.0, 4.0, "linear", 4.0, 0.25, 3, 0.5),
        memories.sched(100, 8, 4, "linear", 4, 0.25, 3, 0.5, 1e-3),
        GRIDS,
    ),
    (
        policies.sched(9, 6.0, 4.0, "linear", 4.0, 0.25, 1, 0.5, 0.15),
        memories.sched(9, 6, 4, "linear", 4, 0.25, 1, 0.5, 0.15),
        GRIDS,
    ),
    (
        policies.sched(9, 9.0, 1.0, "exp", 2.0, 0.0, 0, 1.0),
        memories.sched(9, 9, 1, "exp", 2, 0, 0, 1, 1e-3),
        GRIDS,
    ),
    (saber(2), memories.saber(2), ("grid", "apart")),
    (saber(5), memories.saber(5), ("grid", "apart")),
    (saber(1), memories.saber(1), ("grid", "apart")),
    (wino(), memories.wino(0.6, 0.9), ("grid", "shadows")),
    (wino(0.3, 1.0), memories.wino(0.3, 1.0), ("grid", "shadows")),
    (wino(0.5, 0.5), memories.wino(0.5, 0.5), ("shadows",)),
    (wino(0.0, 0.95), memories.wino(0.0, 0.95), ("shadows",)),
]


def adds_floats(case) -> bool:
    return case[0].name.split("(")[0] in SUMS


@pytest.mark.parametrize(
    ("policy", "rule", "kinds"),
    [
        pytest.param(
            *case,
            id=case[0].name,
            marks=pytest.mark.as_shipped if adds_floats(case) else (),
        )
        for case in sorted(CASES, key=adds_floats)
    ],
)
def test_a_policy_commits_what_its_rule_says(policy, rule, kinds):
    for kind in kinds:
        want = run_rule(rule, trace(kind))
        got = run_policy(policy, trace(kind))
        for case, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            apart = np.flatnonzero((mine != theirs).any(axis=1))
            assert not apart.size, (kind, case, apart[0], mine[apart[0]].tolist())


def test_tied_ids_go_to_the_lowest_and_odds_count_the_unlisted():
    """Logits 2, 2, 1 of ids 4, 1, 3; id 0 and its like are unlisted and weigh e."""
    ids, logits = jnp.array([[4, 1, 3, NO_CREDIT]]), jnp.array([[2.0, 2.0, 1.0, 99.0]])
    others = float(np.log(np.exp(2) + 2 * np.e))
    odds = jnp.array([2 - others], jnp.float32)
    pred = Prediction(
        token=jnp.array([4], jnp.int32),
        score=odds,
        gap=odds,
        margin=odds,
        entropy=odds,
        runner_up=jnp.array([-1]),
        lead=odds,
    )
    same = best_with_bonus(pred, ids, logits, jnp.zeros((1, 4)))
    assert int(same[0][0]) == 1 and np.isclose(float(same[1][0]), 2 - others)
    lifted = best_with_bonus(pred, ids, logits, jnp.array([[0.0, 0.0, 3.0, 0.0]]))
    others = float(np.log(2 * np.exp(2) + np.e))
    assert int(lifted[0][0]) == 3 and np.isclose(float(lifted[1][0]), 4 - others)


@pytest.mark.parametrize("depth", range(2, 9))
def test_a_block_of_a_power_of_two_takes_as_many_rounds_without_neighbours(depth):
    round_W = rounds(2**depth, 2)
    assert sorted(set(round_W)) == list(range(depth))
    assert (round_W[1:] != round_W[:-1]).all()


def test_every_policy_has_a_case():
    """A new policy needs a case in `CASES`: its rule once more, in plain Python."""
    assert {policy.name.split("(")[0] for policy, *_ in CASES} == set(DIRECT)


@pytest.mark.parametrize("name", DIRECT)
def test_a_policy_makes_progress_and_touches_nothing_else(name):
    policy = MAKERS[name]()
    states = run_policy(policy, trace("logits"))
    assert (states == run_policy(policy, trace("logits"))).all()
    finished = 0
    for case, blocks in enumerate(states):
        prompt = int(trace("logits").prompt[case])
        end = int(trace("logits").max_new_tokens[case])
        start, block = -prompt, [PROMPT] * prompt + [MASK] * (len(blocks[0]) - prompt)
        steps = max_steps = 0
        for after in blocks.tolist():
            inside = [i for i in range(len(block)) if 0 <= start + i < end]
            masks = [i for i in inside if block[i] == MASK]
            left = [i for i in inside if after[i] == MASK]
            # A step may take back more than it fills, if the block ends in time.
            steps, max_steps = (steps + 1, max_steps) if steps else (1, len(masks))
            assert steps <= max_steps or not masks
            if not policy.revises:
                assert len(left) < len(masks) or not masks
            if not (policy.revises or policy.edits):
                assert all(
                    a == b for a, b in zip(block, after, strict=True) if a != MASK
                )
            outside = [i for i in range(len(block)) if i not in inside]
            assert all(block[i] == after[i] for i in outside)
            block = after
            if not left and start + len(block) < end:
                start, block, steps = start + len(block), [MASK] * len(block), 0
        finished += not left
    assert finished == len(states)
