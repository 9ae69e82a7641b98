# pyright: reportCallIssue=false
"""Losslessness on random transformers, under exact numerics, bit for bit.

Both kinds of attention, every cache rule, Dream's shift and Fast-dLLM v2's.
"""

import functools
from typing import Any, NamedTuple

import hypothesis
import pytest
from helpers import checkpoint_folders, official_loops
from helpers.fake_model import capped, prompts_of
from helpers.losslessness import (
    KINDS,
    LAYOUTS,
    MORE,
    NAMES,
    PROGRAMS,
    made,
    network,
    saved_calls,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave.engine.generation import generate
from jaxdave.models.presets import preset

SMALL = dict(
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
    stop_ids=(34, 33),
    max_positions=512,
)
FAMILIES = {
    "causal": ("sdar-1m", "fast-dllm-v2-7b"),
    **dict.fromkeys(("none", "prefix", "dual"), ("llada-1m", "dream-1m")),
}


class Shape(NamedTuple):
    """What a program is compiled for."""

    model: str
    length: int
    max_new_tokens: int
    drafts: int
    temperature: float
    steps: int


class Case(NamedTuple):
    """What a program is run on."""

    weights: int
    lengths: list[int]
    cap: int
    seed: int


@st.composite
def shapes(draw, kind: str):
    length = draw(st.sampled_from((4, 8)))
    return Shape(
        draw(st.sampled_from(FAMILIES[kind])),
        length,
        24,
        draw(st.integers(3, 16)),
        draw(st.sampled_from((0.0, 0.7))),
        draw(st.integers(2, 8)),
    )


def several(count: int):
    """Cases; hypothesis's first example, of one seed alone, is left out."""
    case = st.builds(
        Case,
        st.integers(0, 99),
        st.lists(st.integers(1, 20), min_size=3, max_size=3),
        st.integers(2, 16),
        st.integers(0, 99),
    )
    cases = st.lists(case, min_size=count, max_size=count)
    return cases.filter(lambda some: len({case.seed for case in some}) > 1)


def programs(kind: str, shape: Shape, names):
    """FreeDave over policies on a transformer, and its config."""
    config = preset(shape.model, **SMALL, block_length=shape.length)
    cache = None if kind == "causal" else kind
    policies = {name: made(name, shape.steps) for name in names}
    common: dict[str, Any] = {
        "block_length": shape.length,
        "max_new_tokens": shape.max_new_tokens,
        "temperature": shape.temperature,
        "cache": cache,
    }
    net = functools.partial(
        network, config, shape.length, cache, shape.drafts, shape.max_new_tokens
    )
    return config, official_loops.programs(
        config, net, policies, shape.drafts, **common
    )


def holds(kind: str, shape: Shape, names, cases, also_alone: bool) -> int:
    """The calls that drafts save; checks that the text stays the same.

    also_alone: every row is decoded without its neighbours, too, in another program.
    """
    config, built = programs(kind, shape, names)
    return sum(
        _saved(decoder, config, index, case, also_alone)
        for decoder, chosen in built
        for _, index in chosen
        for case in cases
    )


def _saved(decoder, config, index, case: Case, also_alone: bool) -> int:
    params = official_loops.Chosen(
        checkpoint_folders.random(config, case.weights), index
    )
    prompts = prompts_of(case.lengths, case.seed, 33)
    quick = capped(decoder, min(case.cap, decoder.max_num_drafts))
    if also_alone:
        rows = generate(quick, params, prompts, seed=case.seed).completions
        alone = [generate(quick, params, [p], seed=case.seed) for p in prompts]
        assert [result.completions[0] for result in alone] == list(rows)
    return saved_calls(quick, quick.max_num_drafts, params, prompts, case.seed)


SEEDS = {"causal": 6, "none": 8, "prefix": 2, "dual": 9}
"""For draws that are unlike: both families, two temperatures, 4 to 13 drafts."""


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_keep_the_text_of_transformers(kind):
    """Some policies, and compiled with less care, as compiling them takes long; one
    layout has rows alone. With all care: `test_demo_losslessness`, `bench.lossless`."""
    turn = LAYOUTS.index(kind)
    names = NAMES[turn :: 2 * len(LAYOUTS)]

    @hypothesis.seed(SEEDS[kind])
    @PROGRAMS
    @given(shapes(kind), several(3))
    def law(shape, cases):
        assert holds(kind, shape, names, cases, kind == "dual") > 0

    law()


@pytest.mark.as_shipped
@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYOUTS)
def test_drafts_keep_the_text_of_transformers_everywhere(kind):
    @settings(PROGRAMS, max_examples=4)
    @given(shapes(kind), several(6))
    def law(shape, cases):
        holds(kind, shape, [*NAMES, *MORE], cases, True)

    law()


def test_saber_keeps_its_text_on_a_shifted_block_causal_model():
    """What predicts a block's first token lies in the window or before it, depending
    on where the window stands; Saber would read it after the token is decided."""
    shape = Shape("fast-dllm-v2-7b", 8, 24, 6, 0.7, 5)
    cases = [Case(at, [9, 16, 18], 6, at) for at in range(33, 39)]
    holds("causal", shape, ["saber"], cases, False)
