# pyright: reportCallIssue=false
"""Losslessness of every policy: drafts change the number of calls and nothing else.

Here on hash networks, which cost little; test_policy_laws_real.py has transformers.
"""

import dataclasses
from typing import Any, NamedTuple

import hypothesis
import pytest
from helpers import fake_full_model, fake_model, official_loops
from helpers.fake_model import VARIANTS, capped, prompts_of, texts, weights
from helpers.losslessness import (
    KINDS,
    LAYOUTS,
    MORE,
    NAMES,
    PROGRAMS,
    made,
    saved_calls,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.models.presets import preset


class Shape(NamedTuple):
    """What a program is compiled for; `steps` is for policies with a schedule."""

    length: int
    max_new_tokens: int
    drafts: int
    is_shifted: bool
    temperature: float
    steps: int


class Case(NamedTuple):
    """What a program is run on; `cap` is how many drafts it may use."""

    salt: int
    variant: str
    lengths: list[int]
    cap: int
    seed: int


@st.composite
def shapes(draw):
    length = draw(st.sampled_from((8, 4, 8, 4, 32, 2, 1)))
    return Shape(
        length,
        length * draw(st.integers(1, max(1, 24 // length))),
        draw(st.integers(2, 16)),
        draw(st.booleans()),
        draw(st.sampled_from((0.0, 0.7, 1.0))),
        draw(st.integers(2, 8)),
    )


CASES = st.builds(
    Case,
    st.integers(0, 999),
    st.sampled_from(sorted(VARIANTS)),
    # Short enough for one bucket of prompt lengths, that is for one program.
    st.lists(st.integers(1, 24), min_size=3, max_size=3),
    st.integers(2, 16),
    st.integers(0, 9),
)


def several(count: int):
    """Cases on networks of several kinds; hypothesis's first example has only one."""
    cases = st.lists(CASES, min_size=count, max_size=count, unique_by=lambda c: c.salt)
    return cases.filter(lambda some: len({case.variant for case in some}) > 2)


def programs(kind: str, shape: Shape, names):
    """FreeDave over policies on a hash network."""
    chosen = {name: made(name, shape.steps) for name in names}
    common: dict[str, Any] = {
        "block_length": shape.length,
        "max_new_tokens": shape.max_new_tokens,
        "temperature": shape.temperature,
    }
    if kind == "causal":
        shift = "block" if shape.is_shifted else "none"
        config = dataclasses.replace(fake_model.CONFIG, logits_shift=shift)
        network = fake_model.network(shape.length)
    else:
        config = fake_full_model.SHIFTED if shape.is_shifted else fake_full_model.CONFIG
        network = fake_full_model.network(shape.is_shifted)
        common["cache"] = kind
    return official_loops.programs(
        config, lambda _: network, chosen, shape.drafts, **common
    )


def holds(kind: str, shape: Shape, names, cases) -> dict[str, int]:
    """The calls that drafts save each policy; checks that the text stays the same."""
    saved = dict.fromkeys(names, 0)
    for decoder, chosen in programs(kind, shape, names):
        for name, index in chosen:
            for case in cases:
                net = weights(case.salt, **VARIANTS[case.variant])
                prompts = prompts_of(case.lengths, case.salt, fake_model.MASK)
                cap = min(case.cap, shape.drafts)
                params = official_loops.Chosen(net, index)
                saved[name] += saved_calls(decoder, cap, params, prompts, case.seed)
    return saved


def some_of(kind: str) -> list[str]:
    """Half of the policies: every one on one of the layouts that are not slow."""
    return [*NAMES, *MORE][LAYOUTS.index(kind) % 2 :: 2]


SEEDS = {"causal": 11, "none": 14, "prefix": 39, "dual": 46}
"""For draws that are unlike: blocks of 4, 8 and 32, with a shift, at a temperature."""


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_keep_the_text_of_every_policy(kind):
    names = some_of(kind)

    @hypothesis.seed(SEEDS[kind])
    @PROGRAMS
    @given(shapes(), several(5))
    def law(shape, cases):
        saved = holds(kind, shape, names, cases)
        # Policies that fill a block at once leave drafts nothing to save.
        assert sum(calls > 0 for calls in saved.values()) > len(names) / 2

    law()


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYOUTS)
def test_drafts_keep_the_text_of_every_policy_everywhere(kind):
    @settings(PROGRAMS, max_examples=12)
    @given(shapes(), several(16))
    def law(shape, cases):
        holds(kind, shape, [*NAMES, *MORE], cases)

    law()


def test_a_shifted_block_causal_model_decides_first_tokens_alone():
    """Fast-dLLM v2: at a prompt of whole blocks, too, and with small blocks inside."""
    config = preset(
        "fast-dllm-v2-7b",
        num_layers=2,
        hidden=32,
        inter=40,
        heads=4,
        kv_heads=2,
        head_dim=8,
        rotary_dim=8,
        vocab_rows=40,
        vocab_size=37,
        mask_id=36,
        pad_id=35,
        stop_ids=(34,),
        block_length=8,
        max_positions=512,
    )
    params = fake_model.scaled(config, 0)
    policy = policies.small_blocks(policies.threshold(0.3), 4)
    decoder = decoders.freedave(
        config, policy, draft_steps=5, max_new_tokens=24, numerics="exact"
    )
    prompts = prompts_of([8, 5, 16], 2, 30)
    plain = generate(capped(decoder, 1), params, prompts)
    quick = generate(decoder, params, prompts)
    assert texts(quick) == texts(plain)
    for prompt, row in zip(prompts, plain.completions, strict=True):
        call_of = dict(zip(range(len(prompt), 512), row.committed_at, strict=False))
        for place in range(-(-len(prompt) // 8) * 8, len(prompt) + 24, 8):
            if place in call_of:
                assert list(call_of.values()).count(call_of[place]) == 1


def test_a_policy_in_a_merged_program_is_itself():
    """KLASS, which reads all of the view, and has vectors in its memory."""
    shape = Shape(8, 8, 4, False, 0.0, 5)
    ((decoder, chosen),) = programs("dual", shape, ["entropy_bounded", "klass"])
    own = fake_full_model.build(made("klass", 5), 4, 8, 8, "dual")
    for salt in range(4):
        net, prompts = weights(salt), prompts_of([5, 12, 3], salt)
        both = generate(decoder, official_loops.Chosen(net, chosen[1][1]), prompts)
        assert texts(both) == texts(generate(own, net, prompts))


def test_policies_that_say_an_order_are_merged_apart():
    shape = Shape(8, 8, 4, False, 0.0, 5)
    merged = list(programs("dual", shape, ["static", "klass", "threshold"]))
    names = [[name for name, _ in chosen] for _, chosen in merged]
    assert names == [["static", "threshold"], ["klass"]]
    assert [bool(d.spec.policy.commit_order) for d, _ in merged] == [True, False]


@pytest.mark.parametrize(
    "share", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_text_is_a_prefix_of_longer_ones(share):
    """Blocks are decoded whole and cut: a limit does not reach into a block."""
    prompts = prompts_of([1, 2, 6, 7], 3, fake_model.MASK)
    shape = Shape(4, 9, 3, False, 0.7, 3)
    for decoder, chosen in programs("causal", shape, [*NAMES, *MORE][::share]):
        for name, index in chosen:
            net = weights(1, **VARIANTS["chaotic"])
            params = official_loops.Chosen(net, index)
            answers = {}
            for room in (9, 1, 2, 3, 4, 6):
                limited = dataclasses.replace(decoder, max_new_tokens=room)
                result = generate(limited, params, prompts, seed=2)
                answers[room] = [row.token_ids for row in result.completions]
            for room, ids in answers.items():
                assert ids == [longest[:room] for longest in answers[9]], name
