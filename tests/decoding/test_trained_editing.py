"""A trained model that edits (bench/models): drafts change the number of calls only."""

from pathlib import Path

import numpy as np
import pytest

from jaxdave import policies
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import snapshots
from jaxdave.io import checkpoint

FOLDER = Path(__file__).parents[2] / "bench" / "models" / "sdar-edit-1m"


@pytest.fixture(scope="module")
def model():
    return checkpoint.load(FOLDER)


@pytest.mark.parametrize(
    "maker",
    [policies.llada2_s, pytest.param(policies.llada2_q, marks=pytest.mark.slow)],
)
def test_drafts_save_calls_and_change_no_text(model, maker):
    problems = problem_sets.load("words_test")[:16]
    prompts = [model.codec.encode_prompt(problem.prompt) for problem in problems]
    drafted, plain = (
        decoders.freedave(model.config, maker(), draft_steps=d, max_new_tokens=48)
        for d in (8, 1)
    )
    results = [
        generate(decoder, model.params, prompts).completions
        for decoder in (drafted, plain)
    ]
    after, before = results
    assert [row.token_ids for row in after] == [row.token_ids for row in before]
    calls = [sum(row.nfe.total for row in rows) for rows in results]
    assert 1.4 * calls[0] < calls[1]

    # Undrafted, a call is a step: some step replaces a token.
    seen = [one.tokens_BT for one in snapshots(plain, model.params, prompts)]
    before_XT, after_XT = np.concatenate(seen[:-1]), np.concatenate(seen[1:])
    assert ((before_XT != model.config.mask_id) & (after_XT != before_XT)).any()
