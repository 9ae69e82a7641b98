"""`reference_nfe` against the public loop itself, row by row."""

import pytest
from helpers import fake_full_model, fake_model, public_loop
from helpers.fake_model import VARIANTS, prompts_of, weights

from jaxdave import policies
from jaxdave.engine.generation import generate

# Shorter than a block, whole blocks, and partly filled ones.
LENGTHS = (1, 3, 4, 5, 8, 11, 14, 15)


def rows(attention: str, policy, room: int):
    """(prompt, finished row, calls of the public loop) over several networks."""
    if attention == "full":
        decoder = fake_full_model.build(policy, 4, 8, room, "dual")
        length, count = 8, public_loop.full_attention_calls
    else:
        decoder = fake_model.build(policy, 4, 4, room)
        length, count = 4, public_loop.block_causal_calls
    for salt in range(8):
        net = weights(salt, **VARIANTS["stops" if salt % 4 else "table"])
        prompts = prompts_of(LENGTHS, salt)
        result = generate(decoder, net, prompts)
        for prompt, row in zip(prompts, result.completions, strict=True):
            yield row, count(net, prompt, room, length, policy.name)


@pytest.mark.parametrize(
    ("attention", "policy", "room"),
    [
        ("block_causal", policies.static(1), 12),
        # The room ends inside a block for most prompts.
        ("block_causal", policies.static(1), 10),
        ("block_causal", policies.static(2), 12),
        ("full", policies.static(1), 16),
        ("full", policies.static(3), 16),
        ("full", policies.static(8), 16),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_it_is_exact_where_steps_commit_a_fixed_number(attention, policy, room):
    reasons = set()
    for row, calls in rows(attention, policy, room):
        assert row.reference_nfe == calls
        reasons.add(row.finish_reason)
    assert reasons == {"stop", "length"}


@pytest.mark.parametrize("attention", ["block_causal", "full"])
def test_it_is_never_too_high_for_other_policies(attention):
    gaps = [
        calls - row.reference_nfe
        for row, calls in rows(attention, policies.threshold(0.3), 16)
    ]
    assert min(gaps) == 0 and max(gaps) <= 2
    assert sum(gap == 0 for gap in gaps) > 0.9 * len(gaps)
