"""Mixtures of experts: PyTorch's logits and choices, and files as they were."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from helpers.checkpoint_folders import assert_equal
from helpers.conversion_sources import assert_same_files, change_json, refused, run

import jaxdave
from jaxdave.io import families
from jaxdave.models.experts import route, router_logits
from jaxdave.models.forward import forward
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


def first_expert(source) -> tuple[str, str]:
    """(name, file) of a tensor of an expert."""
    index = json.loads((source / "model.safetensors.index.json").read_text())
    names = sorted(n for n in index["weight_map"] if ".experts.0.up" in n)
    return names[0], index["weight_map"][names[0]]


@pytest.fixture
def source(tmp_path):
    """A folder of LLaDA2 that a test may break."""
    state = torch_mixtures.build("llada2")
    return torch_mixtures.save("llada2", state, tmp_path / "source")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score_function": "tanh"}, "score='tanh' must be one of softmax, sigmoid"),
        ({"score_function": 3}, "score_function=3 must be of type str"),
        ({"num_experts": 8}, "experts.8."),
        ({"num_experts": 32}, "missing tensor"),
        ({"num_experts": ...}, "num_experts is missing"),
        ({"n_group": 5}, "groups=5 must divide the 16 experts"),
        ({"router_dtype": "bf16"}, "router_dtype='bf16' must be 'fp32'"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor=0 must be above 0"),
        ({"rotary_dim": 8}, "rotary_dim=8 must be 4"),
        ({"moe_router_enable_expert_bias": False}, "unknown tensor"),
        ({"num_shared_experts": 2}, "has shape"),
        ({"first_k_dense_replace": 0}, "missing tensor"),
    ],
    ids=str,
)
def test_a_wrong_config_is_one_line(source, tmp_path, capsys, changes, words):
    change_json(source / "config.json", **changes)
    assert words in refused(tmp_path, capsys, source)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name: {name: None}, "missing tensor {name}"),
        (lambda name: {"twice": name}, "tensor {name} is twice"),
        (
            lambda name: {re.sub(r"mlp.*", "self_attn.q_proj.weight", name): name},
            "unknown tensor",
        ),
        (
            lambda name: {re.sub(r"experts\.0\.", "experts.", name): name, name: None},
            "missing tensor {name}",
        ),
    ],
    ids=["missing", "twice", "split and fused", "stacked"],
)
def test_wrong_experts_are_one_line(source, tmp_path, capsys, change, words):
    from safetensors.numpy import load_file, save_file

    name, file = first_expert(source)
    tensors = load_file(source / file)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    value = tensors[name]
    for new, old in change(name).items():
        if new == "twice":
            other = next(f for f in index["weight_map"].values() if f != file)
            more = load_file(source / other) | {name: value}
            save_file(more, source / other, {"format": "pt"})
        elif old is None:
            del tensors[new], index["weight_map"][new]
        else:
            tensors[new], index["weight_map"][new] = value, file
    save_file(tensors, source / file, {"format": "pt"})
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert words.format(name=name) in refused(tmp_path, capsys, source)
