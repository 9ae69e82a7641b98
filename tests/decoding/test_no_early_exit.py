# pyright: reportCallIssue=false
"""Decoding the whole room: the same text in more calls, with drafts and without."""

import pytest
from helpers import fake_full_model
from helpers.fake_model import STOP, VARIANTS, build, capped, prompts_of, texts, weights

from jaxdave import policies
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import stream

ROOM = 24


def answer(row):
    return row.token_ids, row.finish_reason, row.valid_tokens


@pytest.mark.parametrize(
    ("policy", "cache"),
    [
        (policies.static(1), None),
        (policies.threshold(0.3), None),
        (policies.static(1), "dual"),
        pytest.param(policies.static(2), "none", marks=pytest.mark.slow),
        pytest.param(policies.left_to_right(1), "prefix", marks=pytest.mark.slow),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_the_text_is_that_of_an_early_exit(policy, cache):
    def made(**more):
        if cache is None:
            return build(policy, 4, 4, ROOM, **more)
        return fake_full_model.build(policy, 4, 4, ROOM, cache, False, **more)

    usual, whole = made(), made(no_early_exit=True)
    prompts, num_stopped = prompts_of([5, 8, 3]), 0
    for salt in range(6):
        net = weights(salt, **VARIANTS["stops"])
        early = generate(usual, net, prompts).completions
        late = generate(whole, net, prompts)
        plain = generate(capped(whole, 1), net, prompts)
        assert texts(late) == texts(plain)
        for a, b, c in zip(early, late.completions, plain.completions, strict=True):
            assert answer(a) == answer(b) and STOP not in b.token_ids
            assert b.nfe.total >= a.nfe.total and b.steps >= a.steps
            assert b.reference_nfe >= a.reference_nfe
            # The room is full, whatever the answer is.
            assert b.decoded_tokens == ROOM
            assert c.steps == c.nfe.total >= b.nfe.total
            assert b.steps == b.nfe.total + b.accepted_drafts
            num_stopped += a.finish_reason == "stop" and b.steps > a.steps
    assert num_stopped


def test_a_stream_yields_the_answer_and_ends_with_the_room():
    decoder = build(policies.static(1), 4, 4, ROOM, no_early_exit=True)
    prompts, net = prompts_of([5, 8, 3]), weights(1, **VARIANTS["stops"])
    rows = generate(decoder, net, prompts).completions
    ids: dict[int, tuple[int, ...]] = dict.fromkeys(range(3), ())
    last = {}
    for update in stream(decoder, net, prompts):
        ids[update.row] += update.token_ids
        last[update.row] = update
    for at, row in enumerate(rows):
        assert ids[at] == row.token_ids
        assert last[at].finish_reason == row.finish_reason
        assert last[at].call == row.nfe.total - 1


def test_it_is_a_setting_like_any_other():
    assert not DecodeConfig().no_early_exit
    assert DecodeConfig.from_dict({"no_early_exit": True}).no_early_exit
