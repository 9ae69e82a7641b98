# pyright: reportArgumentType=false, reportCallIssue=false
"""Draft texts and repetition: where they are put, how they merge, what they may do."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_full_model, fake_model
from helpers.fake_model import (
    MASK,
    PAD,
    SIZE,
    STOP,
    VARIANTS,
    capped,
    prompts_of,
    texts,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.core.draft_api import DraftSet
from jaxdave.drafting import text_drafts
from jaxdave.drafting.guesses import merge_drafts, with_guesses
from jaxdave.drafting.nested import nested
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import stream

ONE = policies.static(1)
ANY = st.lists(st.integers(0, SIZE - 1), max_size=40)
EMPTY = 99


def canvas(function, text, told, begin, size=6):
    """What a canvas function guesses for the last `size` places of a text."""
    text, told = (np.array(ids, np.int32) for ids in (text, told))
    told = np.pad(told, (0, max(0, len(text) - len(told))), constant_values=-1)
    found = guessed(function, size, text, told[: len(text)], np.int32(begin))
    token_L, odds = jax.device_get(found)
    return token_L.tolist(), int(odds)


@functools.partial(jax.jit, static_argnums=(0, 1))
def guessed(function, size, text_T, draft_text_T, begin):
    row = types.SimpleNamespace(
        tokens_T=text_T, draft_text_T=draft_text_T, begin=begin,
        start=jnp.int32(text_T.shape[0] - size),
    )  # fmt: skip
    open_L = text_T[-size:] == EMPTY
    return function(types.SimpleNamespace(row=row, open_L=open_L, mask_id=EMPTY))


def test_a_draft_text_stands_where_the_answer_begins():
    text = [1, 2, 3, 4, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY]
    assert canvas(text_drafts.user_text, text, [7, 8, 9], 4) == (
        [7, 8, 9, -1, -1, -1],
        1,
    )
    assert canvas(text_drafts.user_text, text, [], 4) == ([-1] * 6, 1)
    assert canvas(text_drafts.user_text, text, [7, EMPTY, 9], 4)[0][:3] == [7, -1, 9]


def test_a_draft_text_is_put_where_its_last_tokens_match():
    # The answer began with 5 5 and goes on like the draft text did after 7 8.
    text = [1, 2, 5, 5, 7, 8, EMPTY, EMPTY, EMPTY, EMPTY]
    assert canvas(text_drafts.user_text, text, [7, 8, 9, 3], 2) == (
        [-1, -1, 9, 3, -1, -1],
        3,
    )
    # Of two equal matches the one where the position says.
    told = [7, 8, 1, 0, 7, 8, 2]
    assert canvas(text_drafts.user_text, text, told, 2)[0][2] == 1
    assert canvas(text_drafts.user_text, text, told, 0)[0][2] == 2


def test_what_is_known_further_on_contradicts_a_chance_match():
    text = [1, 2, 7, 8, EMPTY, EMPTY, 4, EMPTY, EMPTY, EMPTY]
    assert canvas(text_drafts.user_text, text, [7, 8, 9, 3, 4, 6], 2)[1] == 3
    assert canvas(text_drafts.user_text, text, [7, 8, 9, 3, 5, 6], 2)[1] == 1


def repeated(text, at):
    """What followed the longest, then latest match of the end of `text[:at]`."""
    best = (0, -1)
    for end in range(at):
        size = 0
        while size < min(end, text_drafts.MAX_MATCH) and (
            text[end - 1 - size] == text[at - 1 - size]
        ):
            size += 1
        best = max(best, (size, end))
    if best[0] < text_drafts.MIN_MATCH:
        return [-1] * 6
    tail = [*text[best[1] : best[1] + 6], *[EMPTY] * 6][:6]
    return [-1 if token == EMPTY else token for token in tail]


@settings(max_examples=100)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=16))
def test_copies_follow_the_longest_match(known):
    text = [*known, *[EMPTY] * 6]
    assert canvas(text_drafts.prompt_lookup, text, [], 0)[0] == repeated(
        text, len(known)
    )


MERGED = jax.jit(merge_drafts, static_argnums=2)


@settings(max_examples=60)
@given(st.data())
def test_merging_keeps_the_likeliest_and_each_state_once(data):
    """Random trees of sets of places; a child is never worth more than its parent."""

    def tree(size):
        sets, worth = [0], [1.0]
        for _ in range(size - 1):
            parent = data.draw(st.integers(0, len(sets) - 1))
            sets.append(sets[parent] | 1 << data.draw(st.integers(0, 3)))
            worth.append(worth[parent] * data.draw(st.sampled_from((0.25, 0.5, 1.0))))
        bits = np.array([[(s >> i) & 1 for i in range(4)] for s in sets], np.int32)
        valid = np.array([True, *data.draw(st.lists(st.booleans(), min_size=size - 1,
                                                    max_size=size - 1))])  # fmt: skip
        return DraftSet(*map(jnp.asarray, (
            bits[:, None], bits.sum(axis=1), valid, np.array(worth, np.float32)
        )))  # fmt: skip

    one, other = tree(6), tree(6)
    found = jax.device_get(MERGED(one, other, 6))
    keep = [tuple(s) for s, v in zip(found.tokens_KNL[:, 0], found.valid_K, strict=True)
            if v]  # fmt: skip
    assert keep[0] == (0, 0, 0, 0) and len(set(keep)) == len(keep)
    known: dict[tuple[int, ...], float] = {}
    for part in jax.device_get((one, other)):
        for state, valid, worth in zip(part.tokens_KNL[:, 0], part.valid_K,
                                       part.worth_K, strict=True):  # fmt: skip
            if valid:
                key = tuple(int(x) for x in state)
                known[key] = max(known.get(key, 0.0), float(worth))
    assert len(keep) == min(6, len(known))
    left_out = [worth for state, worth in known.items() if state not in keep]
    assert min(known[state] for state in keep) >= max(left_out, default=0.0)


SHAPES = {
    "static": (ONE, {}),
    "threshold": (policies.threshold(0.3), {}),
    "left to right, sampled": (policies.left_to_right(1), {"temperature": 1.0}),
}


@pytest.mark.parametrize(
    "name",
    ["static", pytest.param("threshold", marks=pytest.mark.slow)]
    + ["left to right, sampled"],
)
@settings(max_examples=10)
@given(st.lists(ANY, min_size=3, max_size=3), st.integers(0, 99))
def test_no_draft_text_can_change_the_text(name, told, salt):
    policy, sampling = SHAPES[name]
    decoder = fake_model.build(
        policy,
        6,
        4,
        20,
        draft=with_guesses(
            nested, text_drafts.user_text_or_prompt_lookup, reads_text=True
        ),
        **sampling,
    )
    prompts, spoiled = prompts_of([5, 9, 30], salt), [*told[:2], [MASK, STOP, PAD] * 9]
    net = weights(salt, **VARIANTS[sorted(VARIANTS)[salt % len(VARIANTS)]])
    plain, canvases = fake_model.decode(capped(decoder, 1), net, prompts)
    for some in (told, spoiled):
        quick, others = fake_model.decode(decoder, net, prompts, draft_text=some)
        assert texts(quick) == texts(plain)
        np.testing.assert_array_equal(others, canvases)
        for a, b in zip(quick.completions, plain.completions, strict=True):
            assert a.nfe.total <= b.nfe.total == b.steps


@pytest.mark.parametrize("kind", ["causal", "dual"])
def test_a_right_draft_text_saves_calls(kind):
    policy, draft = (
        policies.left_to_right(1),
        with_guesses(nested, text_drafts.user_text, reads_text=True),
    )
    if kind == "causal":
        decoder = fake_model.build(policy, 8, 4, 32, draft=draft)
    else:
        decoder = fake_full_model.build(policy, 8, 16, 32, kind, False, draft=draft)
    prompts, net = prompts_of([5, 9, 30]), weights(3, fixed=2.0, context=6.0)
    own = generate(decoder, net, prompts)
    answer = [row.token_ids for row in own.completions]
    shifted = [(1, 2, 3, *ids) for ids in answer]
    calls = [
        sum(
            row.nfe.total
            for row in generate(decoder, net, prompts, draft_text=t).completions
        )
        for t in (None, answer, shifted)
    ]
    assert calls[1] < calls[0] and calls[2] < calls[0]
    said: list[list[int]] = [[], [], []]
    for update in stream(decoder, net, prompts, draft_text=answer):
        said[update.row] += update.token_ids
    assert [tuple(ids) for ids in said] == answer


@pytest.mark.parametrize(
    ("draft", "told", "says"),
    [
        (nested, [[1]], "does not read it"),
        (
            with_guesses(nested, text_drafts.user_text, reads_text=True),
            [[1], [2]],
            "2 draft texts for 1 prompts",
        ),
        (
            with_guesses(nested, text_drafts.user_text, reads_text=True),
            [[SIZE]],
            f"holds the id {SIZE}",
        ),
        (
            with_guesses(nested, text_drafts.user_text, reads_text=True),
            [[-1]],
            "holds the id -1",
        ),
    ],
)
def test_draft_texts_that_cannot_be_used_are_refused(draft, told, says):
    decoder = fake_model.build(ONE, 2, 4, 8, draft=draft)
    with pytest.raises(ValueError, match=says) as error:
        generate(decoder, weights(0), [[1, 2]], draft_text=told)
    assert "\n" not in str(error.value)
