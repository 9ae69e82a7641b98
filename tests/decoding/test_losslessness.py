# pyright: reportCallIssue=false
"""The laws of decoding: drafts change the number of calls and nothing else."""

import numpy as np
import pytest
from helpers import fake_model, oracle
from helpers.fake_model import MASK, VARIANTS, build, capped, prompts_of, texts, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.engine.generation import generate

POLICIES = (
    policies.static(1),
    policies.static(2),
    policies.left_to_right(1),
    policies.threshold(0.3),
    policies.threshold(0.9),
    policies.threshold(0.0),
)
FILTERS = ({}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.9})


@st.composite
def shapes(draw):
    """(policy, draft steps, block length): what a program is compiled for."""
    drafts = draw(st.sampled_from((*range(1, 17), 32)))
    length = draw(st.sampled_from((1, 2, 4, 8, 32)))
    return draw(st.sampled_from(POLICIES)), drafts, length


@st.composite
def batches(draw, most: int = 40):
    """Three prompts of mixed lengths, pad and stop ids included, and a network.

    most: tokens of a prompt; with 20 a shape below is one program.
    """
    lengths = draw(st.lists(st.integers(1, most), min_size=3, max_size=3))
    salt = draw(st.integers(0, 999))
    variant = draw(st.sampled_from(sorted(VARIANTS)))
    return prompts_of(lengths, salt, MASK), weights(salt, **VARIANTS[variant])


def against_the_oracle(policy, drafts, length, room, batch):
    """Tokens, steps, canvases and calls of every cap, at temperature 0."""
    prompts, net = batch
    decoder = build(policy, drafts, length, room)
    truth = [oracle.oracle(net, p, room, length, policy.name) for p in prompts]
    for cap in sorted({1, (drafts + 1) // 2, drafts}):
        result, canvases = fake_model.decode(capped(decoder, cap), net, prompts)
        for prompt, want, row, canvas in zip(
            prompts, truth, result.completions, canvases, strict=True
        ):
            same = want.token_ids, want.finish_reason, len(want.token_ids), want.steps
            assert fake_model.text(row) == same
            end = len(want.canvas)
            assert canvas[:end].tolist() == want.canvas[:end]
            assert (canvas[end:] == MASK).all()
            assert MASK not in row.token_ids
            calls = oracle.freedave_calls(
                net, prompt, room, length, policy.name, cap, drafts
            )
            assert row.nfe.total == calls <= want.steps
            assert sum(row.accepted) == row.steps - 1
            if cap == 1:
                assert calls == want.steps
    return truth


@pytest.mark.parametrize(
    "shape",
    [
        (policies.static(1), 13, 2, 19),
        pytest.param((policies.static(2), 7, 4, 37), marks=pytest.mark.slow),
        (policies.left_to_right(1), 16, 1, 24),
        (policies.threshold(0.3), 5, 8, 40),
        (policies.threshold(0.9), 4, 32, 33),
        pytest.param((policies.threshold(0.0), 3, 4, 30), marks=pytest.mark.slow),
    ],
    ids=lambda shape: shape[0].name,
)
@given(batches(20))
def test_any_drafts_give_the_oracles_text(shape, batch):
    against_the_oracle(*shape, batch)


def with_noise(policy, drafts, length, room, sampling, cases):
    """Every cap of a program gives the text of cap 1, in any order of rows."""
    decoder = build(policy, drafts, length, room, **sampling)
    for prompts, net in cases:
        plain, canvases = fake_model.decode(capped(decoder, 1), net, prompts, seed=3)
        assert all(row.nfe.total == row.steps for row in plain.completions)
        for cap in sorted({(drafts + 1) // 2, drafts}):
            quick, others = fake_model.decode(
                capped(decoder, cap), net, prompts, seed=3
            )
            assert texts(quick) == texts(plain)
            np.testing.assert_array_equal(others, canvases)
            for a, b in zip(quick.completions, plain.completions, strict=True):
                assert a.nfe.total <= b.nfe.total
        turned = generate(decoder, net, prompts[::-1], seed=3)
        assert texts(turned) == texts(plain)[::-1]


@pytest.mark.parametrize(
    ("shape", "temperature", "filters"),
    [
        ((policies.static(1), 13, 4, 30), 0.7, {"confidence": "plain"}),
        pytest.param(
            (policies.static(2), 6, 32, 33), 1.0, FILTERS[1], marks=pytest.mark.slow
        ),
        pytest.param(
            (policies.left_to_right(1), 9, 2, 19),
            1.0,
            FILTERS[2],
            marks=pytest.mark.slow,
        ),
        ((policies.threshold(0.3), 5, 8, 40), 0.7, FILTERS[3]),
    ],
    ids=["static(1)", "static(2)", "left_to_right", "threshold"],
)
@settings(max_examples=6)
@given(batches(20))
def test_noise_is_the_policys_own(shape, temperature, filters, batch):
    with_noise(*shape, {"temperature": temperature, **filters}, [batch])


@pytest.mark.slow
@settings(max_examples=150)
@given(shapes(), st.integers(1, 70), st.lists(batches(), min_size=8, max_size=8))
def test_any_drafts_give_the_oracles_text_at_length(shape, room, cases):
    for batch in cases:
        against_the_oracle(*shape, room, batch)


@pytest.mark.slow
@settings(max_examples=80)
@given(
    shapes(),
    st.integers(1, 70),
    st.sampled_from((0.7, 1.0)),
    st.sampled_from(FILTERS),
    st.lists(batches(), min_size=8, max_size=8),
)
def test_noise_is_the_policys_own_at_length(shape, room, temperature, filters, cases):
    with_noise(*shape, room, {"temperature": temperature, **filters}, cases)
