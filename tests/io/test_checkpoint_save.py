"""Saved folders: bit-equal when loaded, and complete or absent."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import checkpoint_folders
from helpers.checkpoint_folders import assert_equal
from safetensors.numpy import load_file

from jaxdave.io import checkpoint
from jaxdave.models.presets import preset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint_folders.make(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True},
        {"qkv_bias": True, "o_bias": True, "block_length": 8},
    ],
)
def test_round_trip_is_bit_equal(tmp_path, dtype, changes):
    config = dataclasses.replace(checkpoint_folders.CONFIG, name="model", **changes)
    params = checkpoint_folders.make(tmp_path / "model", config, dtype)
    model = checkpoint.load(tmp_path / "model", dtype=dtype)
    assert model.config == config
    assert_equal(model.params, jax.tree.map(lambda x: x.astype(dtype), params))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loading_float32_from_a_narrower_dtype_widens(tmp_path, dtype):
    params = checkpoint_folders.make(tmp_path / "model", dtype=dtype)
    wide = jax.tree.map(lambda x: x.astype(dtype).astype("float32"), params)
    assert_equal(checkpoint.load(tmp_path / "model").params, wide)


def with_weight(value: float):
    """Random parameters, one of which is a given number."""
    params = jax.tree.map(lambda x: x, checkpoint_folders.random())
    kernel = params["blocks"]["mlp"]["up"]["kernel"].at[1, 3, 5].set(value)
    params["blocks"]["mlp"]["up"]["kernel"] = kernel
    return params


def save(folder: Path, params, dtype: str) -> None:
    config, tokenizer = checkpoint_folders.CONFIG, checkpoint_folders.TOKENIZER
    checkpoint.save(folder, config, params, dtype=dtype, tokenizer=tokenizer)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_what_float16_cannot_hold_is_named(tmp_path, stored):
    params = with_weight(-70000.0)
    save(tmp_path / "model", params, stored)
    for call in (
        lambda: checkpoint.load(tmp_path / "model", dtype="float16"),
        lambda: save(tmp_path / "half", params, "float16"),
    ):
        with pytest.raises(ValueError, match="beyond 65504, the largest of") as caught:
            call()
        message = str(caught.value)
        assert "tensor model.layers.1.mlp.up_proj.weight holds" in message
        assert "\n" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_largest_number_of_float16_is_held(tmp_path):
    params = with_weight(65504.0)
    save(tmp_path / "model", params, "float32")
    found = checkpoint.load(tmp_path / "model", dtype="float16").params
    assert_equal(found, jax.tree.map(lambda x: x.astype("float16"), params))


def test_save_replaces_weights_and_keeps_the_rest(folder):
    (folder / "README.md").write_text("card")
    params = checkpoint_folders.random(seed=1)
    checkpoint.save(folder, checkpoint_folders.CONFIG, params, dtype="float32")
    assert_equal(checkpoint.load(folder).params, params)
    assert (folder / "README.md").read_text() == "card"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_save_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="thesis.txt"):
        checkpoint_folders.make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_failed_save_leaves_the_old_folder(folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fill_the_disk(tensors, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr("jaxdave.io.safetensors_io.save_file", fill_the_disk)
    with pytest.raises(OSError, match="disk is full"):
        checkpoint_folders.make(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_save_checks_parameters_and_family(tmp_path):
    params = checkpoint_folders.random()
    deeper = dataclasses.replace(checkpoint_folders.CONFIG, num_layers=3)
    with pytest.raises(ValueError, match="blocks/attn/k/kernel"):
        checkpoint.save(tmp_path / "m", deeper, params, dtype="float32")
    dream = dataclasses.replace(checkpoint_folders.CONFIG, family="dream")
    with pytest.raises(ValueError, match="qk_norm=True.*'dream' cannot be saved"):
        checkpoint.save(tmp_path / "m", dream, params, dtype="float32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["sdar-4b", "dream-7b", "llada-8b", "fast-dllm-v2-1.5b"]
)
def test_every_family_is_saved_in_its_own_layout(name, tmp_path):
    """A saved model loads again, and the published names are in the file."""
    shape = {
        field: getattr(checkpoint_folders.CONFIG, field)
        for field in (
            "num_layers",
            "hidden",
            "inter",
            "heads",
            "head_dim",
            "rotary_dim",
            "vocab_rows",
            "vocab_size",
            "mask_id",
            "pad_id",
            "stop_ids",
            "max_positions",
        )
    }
    config = preset(name, **shape, kv_heads=2)
    params = checkpoint_folders.random(config)
    folder = tmp_path / "model"
    checkpoint.save(
        folder, config, params, dtype="float32", tokenizer=checkpoint_folders.TOKENIZER
    )
    model = checkpoint.load(folder)
    assert model.config == dataclasses.replace(config, name="model")
    checkpoint_folders.assert_equal(model.params, params)
    tensors = load_file(folder / "model.safetensors")
    marks = {
        "llada-8b": "model.transformer.blocks.1.ff_proj.weight",
        "sdar-4b": "model.layers.1.self_attn.q_norm.weight",
    }
    assert marks.get(name, "model.layers.1.self_attn.q_proj.bias") in tensors


def test_file_is_what_torch_libraries_expect(tmp_path):
    checkpoint_folders.make(tmp_path / "model", dtype="bfloat16")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (raw["vocab_size"], raw["real_vocab_size"]) == (784, 776)
    assert raw["torch_dtype"] == "bfloat16"
