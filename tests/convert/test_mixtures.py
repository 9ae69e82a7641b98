"""Mixtures of experts: PyTorch's logits and choices, and files as they were."""

import functools

import jax
import numpy as np
import pytest
from helpers.checkpoint_folders import assert_equal
from helpers.conversion_sources import assert_same_files, run

import jaxdave
from jaxdave.io import families
from jaxdave.models.forward import forward
from jaxdave.models.router import route, router_logits
from jaxdave.numerics.weight_layout import to_stacked

pytest.importorskip("torch")
from helpers import torch_mixtures  # noqa: E402

FAMILIES = [name for name, f in families.FAMILIES.items() if f.experts is not None]
EVERY = pytest.mark.parametrize("name", FAMILIES)
OPTIONS = {"llada2": ("--block-length", "4")}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(tensors, source, converted folder) of a family, made once."""

    @functools.cache
    def make(name: str):
        home = tmp_path_factory.mktemp(name)
        state = torch_mixtures.build(name)
        source = torch_mixtures.save(name, state, home / "source")
        options = ("--verify", "1000", *OPTIONS.get(name, ()))
        assert run(source, home / "ours", *options) == 0
        return state, source, home / "ours"

    return make


@EVERY
def test_logits_and_choices_are_pytorch_s(converted, name):
    state, _, folder = converted(name)
    model = jaxdave.load(folder)
    tokens = np.random.default_rng(0).integers(0, 777, 30).astype(np.int32)
    logits, seen = torch_mixtures.run(name, state, tokens)
    ours = np.asarray(jax.jit(forward(model.config))(model.params, tokens[None]))[0]
    if model.config.logits_shift == "full":
        logits = np.concatenate([logits[:1], logits[:-1]])
    assert np.abs(ours - logits).max() <= 2e-5
    assert (ours.argmax(-1) == logits.argmax(-1)).all()
    blocks, experts = to_stacked(model.params)["blocks"], model.config.experts
    assert experts is not None
    for layer, x_TE, chosen_TC in seen:
        router = jax.tree.map(
            lambda a, i=layer - experts.dense_layers: a[i], blocks["mlp"]["router"]
        )
        routing = route(
            router_logits(x_TE, router["kernel"]), router.get("bias"), experts
        )
        np.testing.assert_array_equal(routing.expert_SC, chosen_TC)


@EVERY
def test_files_load_as_they_are_and_come_back_byte_for_byte(converted, name, tmp_path):
    _, source, folder = converted(name)
    length = 4 if name == "llada2" else None  # else a family's default of 32
    as_it_is = jaxdave.load(source, block_length=length)
    model = jaxdave.load(folder)
    assert_equal(as_it_is.params, model.params)
    assert as_it_is.config.experts == model.config.experts
    assert run("--export", folder, tmp_path / "back") == 0
    assert_same_files(source, tmp_path / "back")
