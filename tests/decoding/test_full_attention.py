# pyright: reportCallIssue=false
"""Full attention: the laws of decoding under every cache rule, with a shift or not."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from helpers import fake_full_model, fake_model
from helpers.fake_full_model import build
from helpers.fake_model import (
    MASK,
    ROWS,
    SIZE,
    STOP,
    VARIANTS,
    capped,
    prompts_of,
    texts,
    weights,
)
from helpers.oracle import llada_order
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import stream

POLICIES = (
    policies.static(1),
    policies.static(2),
    policies.left_to_right(1),
    policies.threshold(0.3),
    policies.threshold(0.0),
)
CACHES = ("none", "prefix", "dual")


@st.composite
def shapes(draw):
    """(policy, draft steps, block length, room, cache rule, shift)."""
    length = draw(st.sampled_from((1, 2, 3, 4, 8, 32)))
    blocks = draw(st.integers(1, max(1, 24 // length)))
    return (
        draw(st.sampled_from(POLICIES)),
        draw(st.sampled_from((1, 2, 3, 4, 8, 16))),
        length,
        length * blocks,
        draw(st.sampled_from(CACHES)),
        draw(st.booleans()),
    )


@st.composite
def batches(draw, most: int = 40):
    """Three prompts of mixed lengths (20: a shape below is one program), a network."""
    lengths = draw(st.lists(st.integers(1, most), min_size=3, max_size=3))
    salt = draw(st.integers(0, 999))
    variant = draw(st.sampled_from(sorted(VARIANTS)))
    return prompts_of(lengths, salt, STOP), weights(salt, **VARIANTS[variant])


def against_the_oracle(shape, batch):
    """Tokens, steps and calls by kind, of every cap, at temperature 0."""
    policy, drafts, length, room, cache, shift = shape
    prompts, net = batch
    decoder = build(policy, drafts, length, room, cache, shift)
    asked = length, cache, shift, policy.name
    truth = [fake_full_model.oracle(net, p, room, *asked) for p in prompts]
    for cap in sorted({1, drafts}):
        result, canvases = fake_model.decode(capped(decoder, cap), net, prompts)
        rows = zip(prompts, truth, result.completions, canvases, strict=True)
        for prompt, want, row, canvas in rows:
            assert canvas[: len(prompt) + room].tolist() == want.states[-1]
            assert row.finish_reason == want.reason
            assert row.steps == len(want.states) - 1 == sum(row.accepted) + 1
            assert MASK not in row.token_ids
            primes = 1 if cache == "none" else want.refreshes
            assert (row.nfe.prefill, row.nfe.refresh) == (1, primes - 1)
            calls = fake_full_model.freedave_calls(net, prompt, room, *asked, cap)
            assert row.nfe.total == calls <= row.steps <= row.reference_nfe
            if cap == 1:
                assert row.nfe.total == row.steps


@pytest.mark.parametrize(
    "shape",
    [
        (policies.static(1), 4, 4, 24, "dual", True),
        (policies.static(2), 8, 8, 16, "none", False),
        (policies.left_to_right(1), 3, 3, 24, "prefix", True),
        (policies.threshold(0.3), 16, 8, 24, "dual", False),
        pytest.param(
            (policies.threshold(0.0), 2, 8, 16, "none", True), marks=pytest.mark.slow
        ),
    ],
    ids=lambda shape: f"{shape[0].name}-{shape[4]}",
)
@given(batches(20))
def test_any_drafts_give_the_oracles_text(shape, batch):
    against_the_oracle(shape, batch)


@pytest.mark.slow
@settings(max_examples=150)
@given(shapes(), st.lists(batches(), min_size=6, max_size=6))
def test_any_drafts_give_the_oracles_text_at_length(shape, cases):
    for batch in cases:
        against_the_oracle(shape, batch)


END_IDS = (7, 4)
"""The end of a text, which pads, and that of a turn."""
LLADA = dataclasses.replace(fake_full_model.CONFIG, stop_ids=END_IDS, pad_id=7)


def llada_answer(net, prompt, room: int, banned, unscored, sinks) -> list[int]:
    """LLaDA's loop over one block, one token a step, up to an end token.

    banned: ids whose logits are -inf; unscored: ids whose logits are -inf once tokens
    are chosen, before the softmax; sinks: tokens whose positions come last.
    """
    canvas = list(prompt) + [MASK] * room
    rule = fake_full_model.Rule(len(prompt), len(canvas), room, "none", False)
    while MASK in canvas:
        places = [p for p, token in enumerate(canvas) if token == MASK]
        said = fake_full_model.logits(net, rule, canvas, canvas, len(prompt), places)
        said = said.astype(np.float64)
        said[:, [MASK, *range(SIZE, ROWS), *banned]] = -np.inf
        tokens = said.argmax(axis=1)
        confidence = llada_order(said, tokens, list(unscored))
        confidence = np.where(np.isin(tokens, sinks), -np.inf, confidence)
        # The first of equals: the leftmost.
        at = int(np.argmax(confidence))
        canvas[places[at]] = int(tokens[at])
    answer = canvas[len(prompt) :]
    ends = [i for i, token in enumerate(answer) if token in END_IDS]
    return answer[: ends[0]] if ends else answer


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("no_stop", {"banned": END_IDS}),
        ("logits_eos_inf", {"banned": END_IDS[:1]}),
        ("stop_last", {"sinks": END_IDS}),
        ("confidence_eos_eot_inf", {"unscored": END_IDS}),
    ],
)
def test_an_option_for_end_tokens_is_what_it_names(option, rule):
    extra: dict[str, Any] = {option: True}
    decoder = decoders.freedave(
        LLADA,
        draft_steps=4,
        block_length=12,
        max_new_tokens=12,
        cache="none",
        network=fake_full_model.network(False),
        **extra,
    )
    prompts = prompts_of([5, 8, 11, 3], seed=2)
    rules = {"banned": (), "unscored": (), "sinks": (), **rule}
    differ = 0
    for salt in range(12):
        # Small logits: confidences are close, so that leaving ids out changes orders.
        net = weights(salt, fixed=1.0, context=2.0, stop=0.0)
        result = generate(decoder, net, prompts)
        for prompt, row in zip(prompts, result.completions, strict=True):
            want = llada_answer(net, prompt, 12, **rules)
            assert list(row.token_ids) == want
            plain = llada_answer(net, prompt, 12, banned=(), unscored=(), sinks=())
            differ += want != plain
    assert differ > 10


@pytest.mark.parametrize(
    ("shape", "temperature"),
    [
        ((policies.static(1), 8, 8, 16, "none", False), 1.0),
        pytest.param(
            (policies.left_to_right(1), 4, 4, 24, "prefix", False),
            0.7,
            marks=pytest.mark.slow,
        ),
        ((policies.threshold(0.3), 3, 8, 24, "dual", True), 0.7),
    ],
    ids=["none", "prefix", "dual"],
)
@given(batches(20))
def test_noise_is_the_policys_own(shape, temperature, batch):
    decoder = build(*shape, temperature=temperature, top_k=5)
    prompts, net = batch
    plain = generate(capped(decoder, 1), net, prompts, seed=3)
    quick = generate(decoder, net, prompts, seed=3)
    assert texts(quick) == texts(plain)
    turned = generate(decoder, net, prompts[::-1], seed=3)
    assert texts(turned) == texts(plain)[::-1]
    for a, b in zip(quick.completions, plain.completions, strict=True):
        assert a.nfe.total <= b.nfe.total == b.steps


@pytest.mark.parametrize(
    ("cache", "shift"),
    [
        ("dual", True),
        ("none", False),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in (("dual", False), ("none", True))
            + (("prefix", False), ("prefix", True))
        ),
    ],
)
def test_streams_say_what_generate_says_and_a_batch_what_a_row_says(cache, shift):
    decoder = build(policies.static(1), 4, 4, 16, cache, shift)
    net, prompts = weights(3, **VARIANTS["stops"]), prompts_of([5, 30, 11], 3, STOP)
    whole = generate(decoder, net, prompts)
    said: list[list[int]] = [[], [], []]
    for update in stream(decoder, net, prompts):
        said[update.row].extend(update.token_ids)
    assert said == [list(row.token_ids) for row in whole.completions]
    for prompt, row in zip(prompts, whole.completions, strict=True):
        assert generate(decoder, net, [prompt]).completions[0] == row


@pytest.mark.parametrize(
    "policy",
    [pytest.param(policies.saber(), marks=pytest.mark.slow), policies.wino()],
    ids=["saber", "wino"],
)
def test_what_has_been_streamed_is_never_taken_back(policy):
    for decoder in (
        build(policy, 4, 8, 16, "dual"),
        fake_model.build(policy, 4, 8, 16),
    ):
        net, prompts = weights(2, **VARIANTS["saturated"]), prompts_of([5, 12, 3], 2)
        said: list[list[int]] = [[], [], []]
        places: list[list[int]] = [[], [], []]
        for update in stream(decoder, net, prompts):
            said[update.row].extend(update.token_ids)
            places[update.row].extend(update.positions)
        rows = generate(decoder, net, prompts).completions
        assert said == [list(row.token_ids) for row in rows]
        assert all(found == sorted(set(found)) for found in places)


@pytest.mark.parametrize(
    ("drafts", "length"), [pytest.param(4, 8, marks=pytest.mark.slow), (8, 16)]
)
@pytest.mark.parametrize(
    "cache", ["none", pytest.param("prefix", marks=pytest.mark.slow), "dual"]
)
def test_calls_have_a_formula(drafts, length, cache):
    """Perfect drafts: the refresh takes a block's first step, a call d of the rest."""
    decoder = build(policies.static(1), drafts, length, 32, cache)
    for row in generate(
        decoder, weights(5, **VARIANTS["fixed"]), prompts_of([3])
    ).completions:
        inner = -(-(length - 1) // drafts)
        per_block = (1 + inner) * (32 // length)
        assert row.nfe.total == (per_block if cache != "none" else 1 + -(-31 // drafts))
