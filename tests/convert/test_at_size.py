"""Mixtures of experts of many tensors: converted and exported as a stream."""

import dataclasses
import sys

import pytest
from helpers.conversion_sources import assert_same_files, run

from bench import convert
from bench.harness.synthetic_checkpoint import config_of_depth, weight_map, write_source
from jaxdave.io import families
from jaxdave.models.presets import preset

FULL = preset("llada2-mini")
assert FULL.experts is not None
SMALL = preset(
    "llada2-mini",
    num_layers=5,
    hidden=64,
    inter=160,
    heads=4,
    kv_heads=1,
    head_dim=16,
    rotary_dim=8,
    vocab_rows=784,
    vocab_size=776,
    mask_id=775,
    pad_id=772,
    stop_ids=(772,),
    experts=dataclasses.replace(FULL.experts, count=32, inter=16, shared_inter=16),
)


def test_the_shape_is_the_published_one():
    targets = families.checkpoint_tensors(families.LLADA2, FULL)
    assert len(targets) == 14_813
    layer = "model.layers.19."
    assert targets["model.word_embeddings.weight"].shape == (157184, 2048)
    assert targets[f"{layer}attention.query_key_value.weight"].shape == (3072, 2048)
    assert targets[f"{layer}mlp.gate.weight"].shape == (256, 2048)
    assert targets[f"{layer}mlp.experts.255.down_proj.weight"].shape == (2048, 512)
    assert targets["model.layers.0.mlp.down_proj.weight"].shape == (2048, 5120)
    # Shards of 4 GB, each with a run of layers.
    assert len(set(weight_map(FULL, None, int(4e9)).values())) == 9
    assert config_of_depth("llada2-mini", 0.1).num_layers == 2


@pytest.mark.parametrize("is_sparse", [False, True])
def test_hundreds_of_tensors_come_back_byte_for_byte(tmp_path, is_sparse):
    source = tmp_path / "source"
    source.mkdir()
    largest = write_source(
        source, SMALL, None, shard_bytes=200_000, is_sparse=is_sparse
    )
    assert largest < 300_000
    assert len(weight_map(SMALL, None, 200_000)) > 400
    assert len(list(source.glob("*.safetensors"))) > 5
    assert run(source, tmp_path / "ours", "--verify", "1000") == 0
    assert run("--export", tmp_path / "ours", tmp_path / "back") == 0
    (tmp_path / "back" / "generation_config.json").unlink()  # the source has none
    assert_same_files(source, tmp_path / "back")


@pytest.mark.slow
def test_full_width_needs_a_shard_and_2_gib(tmp_path, capsys):
    """Two of LLaDA2-mini's layers, 3 GB, in processes of their own."""
    arguments = ["--shape", "llada2-mini", "--depth-share", "0.1", "--round-trip"]
    arguments += ["--sparse", "--shard-gb", "1", "--folder", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench.convert", *arguments])
        convert.main()
    out = capsys.readouterr().out
    assert "holds: peak memory" in out and "byte for byte" in out
