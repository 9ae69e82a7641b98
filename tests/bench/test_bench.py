"""The benchmark command: what is scripted, what is counted, what a failure leaves."""

import dataclasses

import numpy as np
import pytest
from helpers import fake_model

from bench import __main__ as command
from bench.harness import machine, scripted_drafts
from bench.harness.measure import Book, Plan
from bench.harness.models import Subject, config_of
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate

pytestmark = pytest.mark.usefixtures("quick_compiles")

ROOM = 16
PROMPT = [1, 2, 3, 4, 5]
BIG = dict(vocab_rows=96, vocab_size=96, mask_id=90, pad_id=91, stop_ids=(92,))


def rows(acceptance: float, *caps: int):
    """Decodes of one compiled program, under several caps on its drafts."""
    config = dataclasses.replace(fake_model.TINY, **BIG)
    decoder = decoders.freedave(
        config, draft_steps=4, max_new_tokens=ROOM,
        network=scripted_drafts.scripted(config, acceptance, "exact"),
    )  # fmt: skip
    params = fake_model.scaled(config, 0)
    return [
        generate(fake_model.capped(decoder, c), params, [PROMPT]).completions[0]
        for c in caps
    ]


def calls(acceptance: float, draft_steps: int) -> int:
    return scripted_drafts.fewest_calls(len(PROMPT), ROOM, draft_steps, acceptance)


def test_a_script_decides_the_text_whatever_the_drafts():
    text = tuple(
        int(t) for t in scripted_drafts.token(np.arange(5, 5 + ROOM, dtype=np.int32))
    )
    for acceptance in (0.0, 1.0):
        for row in rows(acceptance, 1, 4):
            assert row.token_ids == text


def test_a_script_decides_how_many_calls_there_are():
    plain, quick = rows(1.0, 1, 4)
    assert plain.nfe.total == ROOM == calls(1.0, 1)
    assert quick.nfe.total == 1 + -(-(ROOM - 1) // 4) == calls(1.0, 4)
    # What never holds leaves one token a call, or two where a deeper draft has told.
    assert ROOM // 2 <= rows(0.0, 4)[0].nfe.total <= calls(0.0, 4) == ROOM


def test_steady_positions_have_their_share():
    place = np.arange(20_000, dtype=np.int32)
    for share in (0.0, 0.3, 0.8, 1.0):
        assert abs(np.mean(scripted_drafts.steady(place, share)) - share) < 0.02


def test_floors_are_of_what_binds():
    rates = machine.Rates(np.array([1e9, 2e9]), np.array([1e6, 1e6]))
    np.testing.assert_allclose(rates.floor(machine.Work(1e9, 1.0)), [1.0, 0.5])
    np.testing.assert_allclose(rates.floor(machine.Work(1.0, 3e6)), [3.0, 3.0])


@pytest.mark.parametrize(("size", "millions"), [("1M", 1), ("30M", 29), ("135M", 134)])
def test_random_models_have_their_size(size, millions):
    config = config_of(size)
    layers, head = machine.matrices(config)
    embedding = 0 if config.tie_embeddings else config.vocab_rows * config.hidden
    assert round((layers + head + embedding) / 1e6) == millions


def test_a_measure_that_fails_is_a_line_of_the_table(capsys):
    def broken(subject, plan, book):
        raise RuntimeError("no such\nthing")

    book = Book()
    subject = Subject("1M", fake_model.TINY, None, [], 1, 0.5)
    command.timed(command.Entry(("M9",), ("1M",), broken), subject, Plan(), book)
    (found,) = book.findings
    assert found.verdict == "missed" and found.found == "RuntimeError: no such"


def test_verdicts_follow_the_aims():
    book = Book()
    book.at_least("M4", "m", "x", 0.9, 0.8)
    book.at_most("M7", "m", "x", 0.9, 0.8)
    book.note("M5", "m", "x", 1.0, "-")
    assert [f.verdict for f in book.findings] == ["met", "missed", "-"]
