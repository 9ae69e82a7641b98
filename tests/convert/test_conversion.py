"""Converting and exporting: the same bits, and a folder that is complete or absent."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import checkpoint_folders, conversion_sources
from helpers.checkpoint_folders import assert_equal
from jaxdave_convert.conversion import convert
from jaxdave_convert.exporting import export
from safetensors.numpy import load_file

import jaxdave
from jaxdave.cli import main
from jaxdave.numerics.weight_layout import to_stacked

TIED = dataclasses.replace(checkpoint_folders.CONFIG, tie_embeddings=True)
# Sizes that eight parts do not divide, and biases, which the family does not forbid.
ODD = dataclasses.replace(
    checkpoint_folders.CONFIG,
    hidden=20,
    inter=12,
    heads=3,
    kv_heads=1,
    qkv_bias=True,
    o_bias=True,
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("config", [checkpoint_folders.CONFIG, TIED, ODD])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_parameters_are_the_source_s(tmp_path, config, dtype):
    source = conversion_sources.make(tmp_path, config, dtype)
    expected = jaxdave.load(source, dtype=dtype)
    convert(conversion_sources.split(source), tmp_path / "ours", verify_count=99)
    model = jaxdave.load(tmp_path / "ours", dtype=dtype)
    assert_equal(model.params, expected.params)
    assert model.config == dataclasses.replace(expected.config, name="source")
    assert model.codec.stop_ids == expected.codec.stop_ids


def test_the_weights_are_plain_orbax(tmp_path, shards):
    convert(shards, tmp_path / "ours")
    expected = to_stacked(jaxdave.load(shards, dtype="bfloat16").params)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=place), expected
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "ours" / "weights", like)
        bare = checkpointer.restore(tmp_path / "ours" / "weights")
    assert_equal(restored, jax.tree.map(lambda x: x.astype(jnp.float32), expected))
    assert jax.tree.leaves(bare)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_narrower_and_wider_dtypes(tmp_path, stored):
    source = conversion_sources.make(tmp_path, dtype="float32")
    exact = load_file(source / conversion_sources.WEIGHTS_FILE)
    exact = {name: value.astype(stored) for name, value in exact.items()}
    conversion_sources.write_unusual(source / conversion_sources.WEIGHTS_FILE, exact)
    convert(source, tmp_path / "half", dtype="bfloat16", verify_count=9)
    convert(source, tmp_path / "whole", verify_count=9)
    for name, dtype in (("half", "bfloat16"), ("whole", stored)):
        params = to_stacked(jaxdave.load(tmp_path / name, dtype=dtype).params)
        expected = exact[EMBEDDING].astype(np.float32).astype(dtype)
        np.testing.assert_array_equal(np.asarray(params["embedding"]), expected)
        up = exact["model.layers.1.mlp.up_proj.weight"].astype(np.float32).astype(dtype)
        kernel = params["blocks"]["mlp"]["up"]["kernel"][1]
        np.testing.assert_array_equal(np.asarray(kernel), up.T)
    # What was kept comes back as it was; what was narrowed is bfloat16.
    export(tmp_path / "whole", tmp_path / "back")
    conversion_sources.assert_same_files(source, tmp_path / "back")
    export(tmp_path / "half", tmp_path / "back2")
    back = load_file(tmp_path / "back2" / conversion_sources.WEIGHTS_FILE)
    assert back.keys() == exact.keys()
    half = exact[HEAD].astype(np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(back[HEAD], half)
    config = json.loads((tmp_path / "back2" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_float32_narrowed_to_float16_comes_back_as_float16(tmp_path):
    source = conversion_sources.make(tmp_path, dtype="float32")
    exact = load_file(source / conversion_sources.WEIGHTS_FILE)
    convert(source, tmp_path / "half", dtype="float16", verify_count=9)
    export(tmp_path / "half", tmp_path / "back")
    back = load_file(tmp_path / "back" / conversion_sources.WEIGHTS_FILE)
    np.testing.assert_array_equal(back[HEAD], exact[HEAD].astype(np.float16))
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"


def test_what_float16_cannot_hold_is_named(tmp_path):
    """By the converter, which leaves nothing, and by the loader of what it converts."""
    source = conversion_sources.make(tmp_path, dtype="float32")
    large = load_file(source / conversion_sources.WEIGHTS_FILE)[HEAD].copy()
    large[3, 5] = 1e5
    conversion_sources.change_tensors(source, {HEAD: large})
    with pytest.raises(ValueError, match=f"tensor {HEAD} holds numbers beyond 65504"):
        convert(source, tmp_path / "no", dtype="float16")
    convert(source, tmp_path / "ours")
    with pytest.raises(ValueError, match="tensor head holds numbers beyond 65504"):
        jaxdave.load(tmp_path / "ours", dtype="float16")
    assert conversion_sources.names_in(tmp_path) == ["ours", "source"]


@pytest.mark.parametrize("config", [checkpoint_folders.CONFIG, ODD])
def test_export_is_byte_identical(tmp_path, config):
    source = conversion_sources.split(conversion_sources.make(tmp_path, config))
    (source / "trainer.json").write_text("{}")
    (source / "LICENSE").write_text("mine")
    convert(source, tmp_path / "ours")
    assert conversion_sources.run("--export", tmp_path / "ours", tmp_path / "back") == 0
    conversion_sources.assert_same_files(source, tmp_path / "back")
    assert (tmp_path / "ours" / "LICENSE").read_text() == "mine"


def test_export_of_changed_weights_is_refused(tmp_path, shards):
    convert(shards, tmp_path / "ours")
    chunk = tmp_path / "ours" / "weights" / "blocks.mlp.down.kernel" / "1.3.0"
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    with pytest.raises(ValueError, match="not those that"):
        export(tmp_path / "ours", tmp_path / "back")
    assert conversion_sources.names_in(tmp_path) == ["ours", "source"]


def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path):
    source = conversion_sources.make(tmp_path, TIED)
    embedding = load_file(source / conversion_sources.WEIGHTS_FILE)[EMBEDDING]
    conversion_sources.change_tensors(source, {HEAD: embedding})
    conversion_sources.split(source)
    convert(source, tmp_path / "ours", verify_count=99)
    export(tmp_path / "ours", tmp_path / "back")
    conversion_sources.assert_same_files(source, tmp_path / "back")
    other = conversion_sources.make(tmp_path / "other", TIED)
    conversion_sources.change_tensors(other, {HEAD: embedding[::-1]})
    with pytest.raises(ValueError, match="lm_head.weight must equal the embedding"):
        convert(other, tmp_path / "no")
    assert "no" not in conversion_sources.names_in(tmp_path)


def test_manifest_says_where_it_came_from(tmp_path, shards):
    convert(shards, tmp_path / "ours")
    record = json.loads((tmp_path / "ours" / "manifest.json").read_text())
    assert record["sha256"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in shards.iterdir()
    }
    assert (record["family"], record["dtype"]) == ("sdar", "bfloat16")
    params = jax.tree.leaves(jaxdave.load(shards).params)
    assert record["parameters"] == sum(leaf.size for leaf in params)
    assert record["tensors"] == 25
    assert record["tool"].startswith("jaxdave-convert ")
    assert record["source"] == "source" and record["revision"] is None


def test_generate_reads_it(tmp_path, shards, capsys, monkeypatch):
    monkeypatch.setenv("JAXDAVE_NO_CACHE", "1")
    assert conversion_sources.run(shards, tmp_path / "ours") == 0
    out, err = capsys.readouterr()
    assert "sdar, 25 tensors, 30,576 parameters, bfloat16" in out and not err
    small = ["--max-new-tokens", "8", "--draft-steps", "1", "--numerics", "fast"]
    texts = []
    for folder in (shards, tmp_path / "ours"):
        with pytest.raises(SystemExit) as end:
            main.main(["generate", "hi", "--model", str(folder), *small])
        assert end.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_dry_run_writes_nothing(tmp_path, shards, capsys):
    assert conversion_sources.run(shards, tmp_path / "ours", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "block_causal attention, block length 4" in out and "mask 775" in out
    assert conversion_sources.names_in(tmp_path) == ["source"]


def test_options_go_before_the_files(tmp_path, shards):
    convert(shards, tmp_path / "ours", block_length=16, dtype="float32")
    assert jaxdave.load(tmp_path / "ours").config.block_length == 16
    assert jaxdave.load(tmp_path / "ours", block_length=8).config.block_length == 8


def test_overwrite(tmp_path, shards, capsys):
    ours = tmp_path / "ours"
    convert(shards, ours)
    assert conversion_sources.run(shards, ours) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert conversion_sources.run(shards, ours, "--overwrite", "--block-length", 8) == 0
    assert jaxdave.load(ours).config.block_length == 8
    assert conversion_sources.names_in(tmp_path) == ["ours", "source"]
    shutil.rmtree(ours)
    ours.mkdir()
    (ours / "thesis.txt").write_text("mine")
    assert conversion_sources.run(shards, ours, "--overwrite") == 2
    assert conversion_sources.names_in(ours) == ["thesis.txt"]
