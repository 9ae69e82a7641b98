"""Folders: bit-equal round trips, and one clear line for everything that is wrong."""

import dataclasses
import json
import shutil
from pathlib import Path

import folders
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdave import checkpoint
from jaxdave.model import denoiser


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "tiny"
    folders.make(path)
    return path


def failure(folder: Path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        checkpoint.load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_json(path: Path, **changes) -> None:
    value = {**json.loads(path.read_text()), **changes}
    value = {key: part for key, part in value.items() if part is not ...}
    path.write_text(json.dumps(value))


def change_tensors(folder: Path, **changes) -> None:
    """Set tensors, or with None drop them."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors")


def split_in_two(folder: Path) -> dict[str, str]:
    """Two shards and their index, as the Hub has them."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {name: file for file, part in halves.items() for name in part}
    write_index(folder, index)
    return index


def write_index(folder: Path, index) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))


def assert_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True}, {"qkv_bias": True, "block_length": 8}]
)
def test_round_trip_is_bit_equal(tmp_path, dtype, changes):
    config = dataclasses.replace(folders.CONFIG, name="model", **changes)
    params = folders.make(tmp_path / "model", config, dtype)
    found = checkpoint.load(tmp_path / "model", dtype=dtype)
    assert found.config == config
    assert_equal(found.params, jax.tree.map(lambda x: x.astype(dtype), params))


def test_loading_float32_from_bfloat16_widens(tmp_path):
    params = folders.make(tmp_path / "model", dtype="bfloat16")
    wide = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), params)
    assert_equal(checkpoint.load(tmp_path / "model").params, wide)


def test_torch_layout_is_out_in(folder):
    tensors = load_file(folder / "model.safetensors")
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    assert down.shape == (folders.CONFIG.hidden, folders.CONFIG.inter)
    params = checkpoint.load(folder).params
    kernel = params["blocks"]["mlp"]["down"]["kernel"][1]
    np.testing.assert_array_equal(np.asarray(kernel), down.T)


def test_shards_load_like_one_file(folder, made):
    split_in_two(folder)
    assert_equal(checkpoint.load(folder).params, checkpoint.load(made).params)


def test_links_of_the_hub_cache_are_followed(folder, tmp_path, made):
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    blobs.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (snapshot / "model.safetensors").rename(blobs / "123")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/123"))
    assert_equal(checkpoint.load(snapshot).params, checkpoint.load(made).params)


def test_everything_wrong_is_in_one_line(folder):
    change_tensors(
        folder,
        **{
            "model.norm.weight": None,
            "model.layers.7.mlp.up_proj.weight": np.zeros((1, 1), np.float32),
            "lm_head.weight": np.zeros((3, 4), np.float32),
            "model.embed_tokens.weight": np.zeros((784, 16), np.int32),
        },
    )
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    message = failure(folder)
    assert "missing tensor model.norm.weight" in message
    assert "extra tensor model.layers.7.mlp.up_proj.weight" in message
    assert "lm_head.weight has shape (3, 4), not (784, 16)" in message
    assert "model.embed_tokens.weight has dtype I32" in message
    assert "other.safetensors: extra file" in message


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_truncated_file(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    message = failure(folder)
    assert "model.safetensors: truncated or unreadable file" in message
    assert "missing tensor" not in message


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: missing file" in failure(folder)


def test_missing_shard_is_one_problem(folder):
    split_in_two(folder)
    (folder / "b.safetensors").unlink()
    message = failure(folder)
    assert "b.safetensors: missing file" in message
    assert "missing tensor" not in message


def test_index_that_names_a_tensor_nobody_has(folder):
    index = split_in_two(folder)
    write_index(folder, {**index, "ghost": "a.safetensors"})
    assert "a.safetensors: tensor ghost of the index is missing" in failure(folder)


def test_tensor_beside_the_index(folder):
    index = split_in_two(folder)
    index.pop("lm_head.weight")
    write_index(folder, index)
    assert "tensor lm_head.weight is there against the index" in failure(folder)


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_index_must_stay_inside_the_folder(folder, tmp_path, kind):
    outside = tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    name = {"parent": "../outside.safetensors", "absolute": str(outside)}.get(kind, "l")
    if kind == "link":
        (folder / name).symlink_to(outside)
    write_index(folder, dict.fromkeys(load_file(outside), name))
    assert f"{name}: points outside the folder" in failure(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}])
def test_index_without_a_map(folder, weight_map):
    write_index(folder, weight_map)
    assert "weight_map must map" in failure(folder)


def test_config_that_is_missing_or_broken(folder):
    (folder / "config.json").write_text("{")
    assert "config.json: cannot be read as JSON" in failure(folder)
    (folder / "config.json").write_text("[]")
    assert "config.json: must hold a JSON object" in failure(folder)
    (folder / "config.json").unlink()
    assert "config.json: missing file" in failure(folder)


def test_config_reports_every_bad_key(folder):
    change_json(
        folder / "config.json", hidden_size=..., head_dim="8", rope_scaling={"f": 2}
    )
    message = failure(folder)
    assert "hidden_size is missing" in message
    assert "head_dim='8' must be of type int" in message
    assert "rope_scaling={'f': 2} must be None" in message


def test_other_families_do_not_load(folder):
    change_json(folder / "config.json", model_type="Dream")
    assert "only SDAR-type folders load directly" in failure(folder)


def test_block_length_and_mask_come_from_arguments_first(folder):
    found = checkpoint.load(folder, block_length=16, mask_id=5)
    assert (found.config.block_length, found.config.mask_id) == (16, 5)
    assert found.codec.mask_id == 5


def test_config_of_the_hub_without_block_length_and_mask(folder):
    change_json(folder / "config.json", block_size=..., mask_token_id=...)
    assert "pass block_length" in failure(folder)
    found = checkpoint.load(folder, block_length=4)
    assert found.config.mask_id == folders.CONFIG.mask_id
    assert "block_length=3" in failure(folder, block_length=3)


def test_mask_ids_must_agree(folder):
    change_json(folder / "config.json", mask_token_id=3)
    assert "mask_token_id=3" in failure(folder)


def test_without_real_vocab_size_the_tokenizer_says(folder):
    change_json(folder / "config.json", real_vocab_size=...)
    assert checkpoint.load(folder).config.vocab_size == 776
    change_json(folder / "config.json", real_vocab_size=780)
    assert "real_vocab_size=780" in failure(folder)


@pytest.mark.parametrize("source", ["nope", "a/b/c", "../x", ""])
def test_unknown_source(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is unknown" in failure(source)


def test_hub_failure_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert "cannot be fetched from the Hub (no network)" in failure("owner/name")


def test_unknown_dtype(folder):
    assert "dtype 'float16' is unknown" in failure(folder, dtype="float16")


def test_save_replaces_weights_and_keeps_the_rest(folder):
    (folder / "README.md").write_text("card")
    params = denoiser.init(folders.CONFIG, 1)
    checkpoint.save(folder, folders.CONFIG, params, dtype="float32")
    assert_equal(checkpoint.load(folder).params, params)
    assert (folder / "README.md").read_text() == "card"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_save_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="thesis.txt"):
        folders.make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_failed_save_leaves_the_old_folder(folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fill_the_disk(tensors, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr("jaxdave.weights.save_file", fill_the_disk)
    with pytest.raises(OSError, match="disk is full"):
        folders.make(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_save_checks_parameters_and_family(tmp_path):
    params = denoiser.init(folders.CONFIG, 0)
    deeper = dataclasses.replace(folders.CONFIG, num_layers=3)
    with pytest.raises(ValueError, match="blocks/attn/k/kernel"):
        checkpoint.save(tmp_path / "m", deeper, params, dtype="float32")
    dream = dataclasses.replace(folders.CONFIG, family="dream")
    with pytest.raises(ValueError, match="family='dream'"):
        checkpoint.save(tmp_path / "m", dream, params, dtype="float32")
    assert not list(tmp_path.iterdir())


def test_file_is_what_torch_libraries_expect(tmp_path):
    folders.make(tmp_path / "model", dtype="bfloat16")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (raw["vocab_size"], raw["real_vocab_size"]) == (784, 776)
    assert raw["torch_dtype"] == "bfloat16"
