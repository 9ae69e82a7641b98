"""Steps and log-probabilities of tokens: those of plain Python, whatever drafts do."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from helpers import fake_full_model, fake_model, official_loops
from helpers.fake_model import (
    MASK,
    ROWS,
    SIZE,
    STOP,
    build,
    capped,
    dense_logits,
    prompts_of,
    weights,
)
from helpers.losslessness import made
from helpers.oracle import blank, finished, first_block, policy_step

import jaxdave
from jaxdave import policies
from jaxdave.core.state import Stats
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion
from jaxdave.engine.trajectory import read_trajectory

ROOM, LENGTH = 12, 4
RULES = {
    "static(2)": policies.static(2),
    "threshold(0.3)": policies.threshold(0.3),
    "left_to_right(1)": policies.left_to_right(1),
}


def steps_of(net, prompt, rule: str) -> list[tuple[int, int, int, float]]:
    """(position, token, step, log-probability) by definition, in the order of steps."""
    canvas, begin, step, found = blank(prompt, ROOM, LENGTH), len(prompt), 0, []
    end = len(canvas)
    while not finished(canvas, begin, end):
        lo, hi = first_block(canvas, LENGTH)
        after = policy_step(net, canvas, canvas, end, LENGTH, rule)
        places = [p for p in range(lo, min(hi, end)) if canvas[p] == MASK]
        logits = dense_logits(net, canvas, places, LENGTH).astype(np.float64)
        logits[:, [MASK, *range(SIZE, ROWS)]] = -np.inf
        log_probs = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        for place, row in zip(places, log_probs, strict=True):
            if after[place] != MASK and place < begin + ROOM:
                found.append((place - begin, after[place], step, row[after[place]]))
        canvas, step = after, step + 1
    return found


@pytest.mark.parametrize(
    ("rule", "drafts"),
    [
        ("static(2)", 5),
        ("threshold(0.3)", 5),
        ("left_to_right(1)", 1),
        pytest.param("static(2)", 1, marks=pytest.mark.slow),
        pytest.param("threshold(0.3)", 1, marks=pytest.mark.slow),
        pytest.param("left_to_right(1)", 5, marks=pytest.mark.slow),
    ],
)
def test_what_is_recorded_is_what_the_rule_does(rule, drafts):
    decoder = build(RULES[rule], drafts, LENGTH, ROOM, record_steps=True)
    prompts = prompts_of([1, 4, 6], 3, STOP)
    for salt in range(3):
        net = weights(salt)
        rows = generate(decoder, net, prompts).completions
        for prompt, row in zip(prompts, rows, strict=True):
            expected = steps_of(net, prompt, rule)
            trace = row.trajectory
            assert trace is not None
            got = list(zip(*trace[:3], strict=True))
            assert got == [one[:3] for one in expected]
            want = [one[3] for one in expected]
            np.testing.assert_allclose(trace.log_probs, want, rtol=1e-4, atol=1e-5)
            # Blocks are decoded whole, and what was not asked for is cut off.
            assert max(trace.calls) <= row.nfe.verify
            answer = [trace.token_ids[trace.positions.index(i)] for i in range(3)]
            assert list(row.token_ids[:3]) == answer[: len(row.token_ids)]


def test_calls_of_several_draft_lengths_record_the_same():
    """The loop has a branch for each of them, as it has under draft_steps="auto"."""
    rule, prompts = RULES["static(2)"], prompts_of([1, 4, 6], 3, STOP)
    one, several = (
        build(rule, drafts, LENGTH, ROOM, record_steps=True, numerics="guarded")
        for drafts in (1, (2, 5))
    )
    expected = generate(one, weights(0), prompts).completions
    for row, other in zip(
        generate(several, weights(0), prompts).completions, expected, strict=True
    ):
        assert without_calls(row) == without_calls(other)


NAMES = ["static", "threshold", "klass", "saber"]


@pytest.mark.parametrize(
    ("kind", "temperature"),
    [("causal", 0.7), pytest.param("dual", 0.0, marks=pytest.mark.slow)],
)
def test_drafts_and_neighbours_change_nothing_but_calls(kind, temperature):
    common: dict[str, Any] = {"block_length": LENGTH, "max_new_tokens": ROOM}
    common |= {"temperature": temperature, "record_steps": True}
    config, network = fake_model.CONFIG, fake_model.network(LENGTH)
    if kind == "dual":
        config, network = fake_full_model.CONFIG, fake_full_model.network(False)
        common["cache"] = kind
    chosen = {name: made(name, 4) for name in NAMES}
    prompts = prompts_of([2, 5, 3], 8, MASK)
    for decoder, group in official_loops.programs(
        config, lambda _: network, chosen, 6, **common
    ):
        for name, index in group:
            for salt in range(3):
                params = official_loops.Chosen(weights(salt), index)
                quick = generate(decoder, params, prompts, seed=5)
                plain = generate(capped(decoder, 1), params, prompts, seed=5)
                alone = generate(decoder, params, prompts[1:2], seed=5).completions[0]
                rows = zip(quick.completions, plain.completions, strict=True)
                for row, other in [*rows, (quick.completions[1], alone)]:
                    assert without_calls(row) == without_calls(other), name
                    assert is_possible(row), name


def without_calls(row):
    trace = row.trajectory
    assert trace is not None and len(trace.steps) > 0
    # NaN is no equal of itself.
    bits = np.asarray(trace.log_probs, np.float32).view(np.int32).tolist()
    return trace._replace(calls=(), log_probs=tuple(bits))


def is_possible(row: Completion) -> bool:
    """Steps rise and none is left out; what is known is a probability."""
    trace = row.trajectory
    assert trace is not None
    known = [one for one in trace.log_probs if not math.isnan(one)]
    assert MASK not in trace.token_ids
    is_ordered = list(trace.steps) == sorted(trace.steps)
    return is_ordered and all(one <= 0 for one in known) and len(known) > 0


def test_a_position_that_was_masked_again_has_no_step():
    """Positions 1 to 4 are the answer; the policy has taken the token of 3 back."""
    none, steps_BT = np.zeros(1, np.int32), np.array([[-1, 4, 0, 2, -1]])
    stats = Stats(*[none] * len(Stats._fields))._replace(  # pyright: ignore
        step_T=steps_BT, call_T=steps_BT, log_prob_T=-0.5 * np.ones((1, 5))
    )
    trace = read_trajectory(stats, 0, np.array([7, 8, 9, MASK, MASK]), 1, 5, MASK)
    assert trace is not None and trace[:3] == ((1, 0), (9, 8), (0, 4))


def test_nothing_is_recorded_unless_asked_for():
    decoder = build(policies.static(1), 2, LENGTH, ROOM)
    row = generate(decoder, weights(0), [[3, 4]]).completions[0]
    assert row.trajectory is None and "trajectory" not in row.to_dict()
    assert not DecodeConfig().record_steps


def test_it_is_json():
    decoder = build(policies.static(1), 2, LENGTH, ROOM, record_steps=True)
    row = generate(decoder, weights(0), [[3, 4]]).completions[0]
    assert row.trajectory is not None
    values = json.loads(row.to_json())["trajectory"]
    assert len(values["steps"]) == ROOM and values["steps"][:3] == [0, 1, 2]
    broken = row.trajectory._replace(log_probs=(math.nan,))
    assert broken.to_dict()["log_probs"] == [None]
    assert dataclasses.replace(row, trajectory=None) != row


def test_a_policy_that_weighs_candidates_is_refused():
    with pytest.raises(ValueError, match="record_steps=True: policy info_gain"):
        build(made("info_gain", 4), 2, LENGTH, ROOM, record_steps=True)


def test_a_transformer_under_guarded_numerics():
    """Calls have other shapes with drafts: rounding moves numbers, and no step."""
    model = jaxdave.load("sdar-1m")
    config = DecodeConfig(
        draft_steps=4, max_new_tokens=24, temperature=0.8, record_steps=True
    )
    sampler = jaxdave.Sampler(model, config)
    prompt = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"
    quick, plain = sampler(prompt), sampler.undrafted()(prompt)
    assert quick.nfe.total < plain.nfe.total
    first, second = quick.trajectory, plain.trajectory
    assert first is not None and second is not None
    assert first[:3] == second[:3]
    np.testing.assert_allclose(first.log_probs, second.log_probs, rtol=1e-3, atol=1e-6)
