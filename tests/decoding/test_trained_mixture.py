"""A trained mixture of experts (bench/models), whose routing is not random."""

from pathlib import Path

import jax
import pytest

from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.io import checkpoint

FOLDER = Path(__file__).parents[2] / "bench" / "models" / "llada2-1m"


@pytest.fixture(scope="module")
def model():
    return checkpoint.load(FOLDER)


CASES = [
    pytest.param("guarded", 0.0, "float32"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("guarded", 0.7, "bfloat16"),
            ("exact", 0.0, "bfloat16"),
            ("exact", 0.7, "float32"),
        )
    ),
]


@pytest.mark.parametrize(("numerics", "temperature", "dtype"), CASES)
def test_drafts_save_calls_and_change_no_text(model, numerics, temperature, dtype):
    problems = problem_sets.load("words_test")[:6]
    prompts = [model.codec.encode_prompt(problem.prompt) for problem in problems]
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)
    settings = {"max_new_tokens": 48, "temperature": temperature, "numerics": numerics}
    decoder = decoders.freedave(model.config, draft_steps=8, **settings)
    plain = decoders.freedave(model.config, draft_steps=1, **settings)
    plain = decoder.undrafted() if numerics == "exact" else plain
    drafted, static = (
        generate(one, params, prompts, seed=2).completions for one in (decoder, plain)
    )
    assert [a.token_ids for a in drafted] == [b.token_ids for b in static]
    calls, before = (sum(c.nfe.total for c in rows) for rows in (drafted, static))
    assert 2 * calls < before
    if not temperature:
        answers = [model.codec.decode(row.token_ids) for row in drafted]
        assert all(map(is_correct, problems, answers))
