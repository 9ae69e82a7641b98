"""The packaged models, trained by other code, have hardly any loss as they decode."""

import dataclasses

import jax
import pytest
from helpers.checkpoint_folders import TOKENIZER
from tokenizers import Tokenizer

from jaxdave.demo_tasks.mixture import training_problem
from jaxdave.io import checkpoint
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.training.data.token_batch import TokenBatch, pack_samples
from jaxdave.training.demo.block_batches import encode_pair
from jaxdave.training.demo.recipes import CANVAS_LENGTH
from jaxdave.training.objective.objective_loss import (
    corrupt,
    corrupted_loss,
    make_objective_loss,
)
from jaxdave.training.objective.objectives import OBJECTIVES, Objective
from jaxdave.training.objective.sequence_model import transformer_nats

UNSEEN = 10**6
"""Index of a training problem far beyond those that the models have seen."""


def problems(pad_id: int, answer_length: int | None, length: int) -> TokenBatch:
    """Eight problems, two to a row, their answers padded to a length or not."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    samples = []
    for index in range(UNSEEN, UNSEEN + 8):
        problem = training_problem(0, index)
        prompt, answer = encode_pair(tokenizer, problem.prompt, problem.answer)
        if answer_length is not None:
            answer = answer + [pad_id] * (answer_length - len(answer))
        samples.append((prompt, answer))
    rows = [samples[i : i + 2] for i in range(0, len(samples), 2)]
    return pack_samples(rows, length=length, pad_id=pad_id)


@pytest.mark.parametrize(
    "name, objective, other",
    [
        ("sdar-1m", OBJECTIVES["sdar"](4), {"shift": True}),
        ("llada-1m", OBJECTIVES["llada-sft"](), {"shift": True}),
        ("dream-1m", OBJECTIVES["dream"](), {"shift": False}),
    ],
)
def test_a_demo_model_has_no_loss_as_it_decodes(name, objective: Objective, other):
    model = checkpoint.load(name)
    config, params = model.config, to_stacked(model.params)
    is_full = config.attention == "full"
    # Full attention has learnt canvases of one size, filled up with end tokens.
    batch = problems(config.pad_id, CANVAS_LENGTH if is_full else None, 256)
    loss = make_objective_loss(config, objective)
    key = jax.random.key(0)
    assert float(jax.jit(loss)(params, batch, key).mean()) < 0.001
    # With the shift of another family the same masks cost nats.
    ids = {"vocab_size": config.vocab_size, "mask_id": config.mask_id}
    masks = corrupt(objective, batch, key, **ids)
    wrong = dataclasses.replace(objective, **other)
    nats_fn = jax.jit(transformer_nats(config))
    assert float(corrupted_loss(wrong, nats_fn, params, batch, masks).mean()) > 0.5
