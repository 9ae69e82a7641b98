"""Losslessness of every registered draft function: it saves calls, and changes no text.

A draft function that is registered is asked here without being listed. Whether it is
any good is for tests of its own.
"""

import functools

import numpy as np
import pytest
from helpers import fake_model
from helpers.fake_model import VARIANTS, capped, prompts_of, texts, weights
from helpers.losslessness import saved_calls

from jaxdave import policies
from jaxdave.drafting import registry
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import make_decoder
from jaxdave.engine.generation import generate

LENGTH, NEW_TOKENS, DRAFTS = 4, 20, 6
CASES = [(salt, kind) for salt, kind in enumerate(sorted(VARIANTS))]
every_draft = pytest.mark.parametrize("name", registry.names())


def decoder_of(name: str, policy, temperature: float, has_draft_text: bool):
    """FreeDave with a draft function on the hash network."""
    config = DecodeConfig(
        policy=policy,
        draft=name,
        draft_steps=DRAFTS,
        block_length=LENGTH,
        max_new_tokens=NEW_TOKENS,
        temperature=temperature,
        numerics="exact",
    )
    return make_decoder(
        fake_model.CONFIG,
        config,
        network=fake_model.network(LENGTH),
        has_draft_text=has_draft_text,
    )


@every_draft
@pytest.mark.parametrize(
    ("policy", "temperature"),
    [
        pytest.param(policies.static(1), 0.0, marks=pytest.mark.slow),
        (policies.threshold(0.3), 0.7),
    ],
    ids=["one token a step", "several, drawn"],
)
def test_any_draft_function_keeps_the_text(name, policy, temperature):
    decoder = decoder_of(name, policy, temperature, False)
    saved = 0
    for salt, kind in CASES:
        net, prompts = weights(salt, **VARIANTS[kind]), prompts_of([5, 9, 30], salt)
        saved += saved_calls(decoder, DRAFTS, net, prompts, seed=salt)
    assert saved > 0


@every_draft
def test_any_draft_function_keeps_the_text_beside_draft_texts(name):
    """Right ones, wrong ones and none."""
    decoder = decoder_of(name, policies.static(1), 0.0, True)
    for salt, kind in CASES:
        net, prompts = weights(salt, **VARIANTS[kind]), prompts_of([5, 9, 30], salt)
        answer = functools.partial(generate, decoder, net, prompts)
        plain = generate(capped(decoder, 1), net, prompts, draft_text=[(), (), ()])
        right = [row.token_ids for row in plain.completions]
        wrong = prompts_of([NEW_TOKENS] * 3, salt + 50)
        for given in (right, wrong, [right[0], wrong[1], ()]):
            drafted = answer(draft_text=given)
            assert texts(drafted) == texts(plain)
            calls = [
                [row.nfe.total for row in result.completions]
                for result in (drafted, plain)
            ]
            assert np.all(np.array(calls[0]) <= calls[1])
