# pyright: reportCallIssue=false
"""Laws of the counts of drafts: proposed, accepted, and the calls that they save."""

import pytest
from helpers import fake_full_model
from helpers.fake_model import VARIANTS, build, capped, prompts_of, weights

from jaxdave import policies
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import stream

DRAFTS = 4


def check_counts(row, cap: int) -> None:
    """Of a row whose every decision was certain."""
    assert 0 <= row.accepted_drafts <= row.proposed_drafts
    assert row.proposed_drafts <= row.nfe.verify * (cap - 1)
    assert row.steps == row.nfe.total + row.accepted_drafts
    # A call confirms the drafts that it accepts, and the policy's step from the last.
    hops = sum(length - 1 for length in row.accepted)
    assert row.accepted_drafts == hops
    if cap == 1:
        assert (row.proposed_drafts, row.hit_rate) == (0, None)
    else:
        assert row.hit_rate == row.accepted_drafts / row.proposed_drafts


@pytest.mark.parametrize("variant", ["table", "fixed", "stops"])
def test_calls_and_accepted_drafts_are_the_steps(variant):
    decoder = build(policies.static(1), DRAFTS, 4, 24)
    prompts, net = prompts_of([5, 9, 3]), weights(2, **VARIANTS[variant])
    for cap in (1, 2, DRAFTS):
        for row in generate(capped(decoder, cap), net, prompts).completions:
            check_counts(row, cap)


def test_right_drafts_are_all_accepted():
    """A network that ignores its input is foreseen as far as a call looks."""
    decoder = build(policies.static(1), DRAFTS, 4, 24)
    net = weights(2, **VARIANTS["fixed"])
    (row,) = generate(decoder, net, prompts_of([4])).completions
    assert row.hit_rate == 1.0 and row.proposed_drafts > row.nfe.verify


def test_rows_of_a_batch_count_as_they_do_alone():
    decoder = build(policies.static(1), DRAFTS, 4, 24)
    prompts, net = prompts_of([5, 9, 3]), weights(2)
    together = generate(decoder, net, prompts).completions
    alone = [generate(decoder, net, [prompt]).completions[0] for prompt in prompts]
    assert list(together) == alone


def test_refreshes_are_calls_without_drafts():
    decoder = fake_full_model.build(policies.static(1), DRAFTS, 4, 24, "dual", False)
    prompts, net = prompts_of([5, 9, 3]), weights(2)
    for row in generate(decoder, net, prompts).completions:
        assert row.nfe.refresh > 0
        check_counts(row, DRAFTS)


def test_what_is_too_close_to_call_confirms_no_step():
    decoder = build(policies.static(1), DRAFTS, 4, 30, numerics="guarded")
    net = weights(3, fuzz=1 / 64)
    rows = generate(decoder, net, prompts_of([3, 17, 9])).completions
    assert sum(row.nfe.recheck for row in rows) > 0
    for row in rows:
        assert row.accepted_drafts <= row.proposed_drafts
        # Each recheck stands for a step that a call before it left open.
        calls = row.nfe.total - row.nfe.recheck
        assert row.steps == calls + row.accepted_drafts


def test_a_stream_tells_what_its_rows_have_taken():
    decoder = build(policies.static(1), DRAFTS, 4, 24)
    prompts, net = prompts_of([5, 9, 3]), weights(2)
    whole = generate(decoder, net, prompts).completions
    updates = stream(decoder, net, prompts)
    seen = {}
    for update in updates:
        seen[update.row] = updates.completion(update.row)
        assert seen[update.row].nfe.total == update.call + 1
    assert [seen[row] for row in range(3)] == list(whole)
