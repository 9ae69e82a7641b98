"""The example that trains a draft model, end to end on a tiny random model."""

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import fake_model
from safetensors import numpy as safetensors

from jaxdave import DecodeConfig, Sampler
from jaxdave.demo_tasks import problem_sets
from jaxdave.drafting.draft_model import DraftModelConfig

PATH = Path(__file__).parents[2] / "examples" / "train_draft_model.py"
CONFIG = fake_model.TINY
SHAPE = DraftModelConfig(CONFIG.vocab_rows, CONFIG.mask_id, features=16)
ROOM = {"max_new_tokens": 12, "draft_steps": 4}


class Codec:
    """Ids are their own text."""

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """What a sampler needs of a model, with random weights."""

    config = CONFIG
    name = "tiny"
    quantize = None
    params = fake_model.tiny_params(0)
    codec = Codec()
    tables = {}
    max_new_tokens = 12


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_draft_model", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BATCH_SIZE = 4  # type: ignore[attr-defined]
    return module


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_trained_draft_model_keeps_every_text(example, temperature, tmp_path):
    model: Any = TinyModel()
    settings = {**ROOM, "temperature": temperature}
    prompts = fake_model.prompts_of([5, 6, 7, 5, 6, 7, 5, 6], most=30)
    sampler = Sampler(model, DecodeConfig(**settings))
    texts = example.make_texts(sampler, prompts)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        params, losses = example.train(SHAPE, texts, steps=60)
    assert np.mean(losses[-5:]) < 0.85 * losses[0]

    example.save(tmp_path / "draft.safetensors", params)
    loaded = safetensors.load_file(tmp_path / "draft.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)

    # Prompts that it has learnt and others, in batches that are not full.
    others = prompts[:2] + fake_model.prompts_of([5, 6, 7], seed=1, most=30)
    ways = example.samplers(model, SHAPE, loaded, **settings)
    lines = example.compare(ways, others)
    assert [line.split(" | ")[-1] for line in lines[2:6]] == ["5 of 5 |"] * 4


def test_a_failed_save_leaves_the_file_that_was_there(example, tmp_path, monkeypatch):
    path = tmp_path / "draft.safetensors"
    example.save(path, {"bias": np.zeros(3, np.float32)})

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        example.save(path, {"bias": np.ones(3, np.float32)})
    assert not safetensors.load_file(path)["bias"].any()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("problems", ["names", "usual"])
def test_no_training_prompt_is_in_a_test_set(example, problems):
    tests = {p.prompt for name in problem_sets.SETS for p in problem_sets.load(name)}
    prompts = example.training_prompts(problems, 300)
    assert len(prompts) == 300 and not tests & set(prompts)
