"""Scores without a finite number end a row with their reason, drafts or not."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import fake_model
from helpers.fake_model import prompts_of

from jaxdave.core.prediction import NO_TOKEN
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.results import check_finite
from jaxdave.engine.streaming import stream


def broken_params(value: float):
    """A tiny model whose last norm, and so every score, is not a number."""
    params = fake_model.tiny_params(1)
    scale = params["norm"]["scale"]
    return {**params, "norm": {"scale": np.full_like(np.asarray(scale), value)}}


@pytest.mark.parametrize(
    ("numerics", "temperature"),
    [
        ("guarded", 0.0),
        pytest.param("exact", 0.0, marks=pytest.mark.slow),
        pytest.param("guarded", 0.7, marks=pytest.mark.slow),
        pytest.param("exact", 0.7, marks=pytest.mark.slow),
    ],
)
def test_a_row_without_a_finite_score_ends(numerics, temperature):
    prompts = prompts_of([3, 6], 1, 30)
    decoder = decoders.freedave(
        fake_model.TINY,
        draft_steps=4,
        max_new_tokens=12,
        numerics=numerics,
        temperature=temperature,
    )
    for value in (np.nan, np.inf):
        params = broken_params(value)
        rows = generate(decoder, params, prompts).completions
        assert [row.finish_reason for row in rows] == ["nonfinite"] * 2
        assert [row.token_ids for row in rows] == [()] * 2
    updates = list(stream(decoder, params, prompts[:1]))
    assert [(u.token_ids, u.finish_reason) for u in updates] == [((), "nonfinite")]
    sound = generate(decoder, fake_model.tiny_params(1), prompts).completions
    assert {row.finish_reason for row in sound} <= {"stop", "length"}
    assert all(NO_TOKEN not in row.token_ids for row in sound)


def test_a_command_line_refuses_such_an_answer():
    check_finite({0: "stop", 1: "length", 2: None})
    with pytest.raises(ValueError, match="prompt 1: the model's scores are not finite"):
        check_finite({0: "stop", 1: "nonfinite"})


def test_x64_decodes_the_same_text():
    prompts, params = prompts_of([3, 6], 1, 30), fake_model.tiny_params(1)

    def texts():
        # Another draft length than elsewhere, so that programs are traced here.
        decoder = decoders.freedave(fake_model.TINY, draft_steps=3, max_new_tokens=9)
        rows = generate(decoder, params, prompts).completions
        streamed = [u.token_ids for u in stream(decoder, params, prompts[:1])]
        return [row.token_ids for row in rows], sum(streamed, ())

    with jax.enable_x64(True):
        wide = texts()
    assert wide == texts()


def test_no_table_is_as_long_as_what_a_model_allows():
    config = fake_model.TINY
    ids = prompts_of([5], 1, 30)

    def text(max_positions):
        changed = dataclasses.replace(config, max_positions=max_positions)
        decoder = decoders.static(changed, max_new_tokens=6)
        return generate(decoder, fake_model.tiny_params(1), ids).completions[0]

    # A table of 2**30 positions would take tens of gigabytes.
    assert text(2**30).token_ids == text(512).token_ids
