"""The converter and the Hub, .bin files, meshes, base models, other families."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import numpy as np
import pytest
import sources
from folders import assert_equal
from jaxdave_convert import bins, convert, export, families, vocabulary
from safetensors.numpy import load_file

import jaxdave
from jaxdave.tokenizer import open_tokenizer


@pytest.fixture
def source(tmp_path) -> Path:
    return sources.make(tmp_path)


@pytest.fixture
def binary(source) -> tuple[Path, dict]:
    """The source as two .bin files, and its tensors as torch's."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    tensors = load_torch(source / sources.ONE_FILE)
    (source / sources.ONE_FILE).unlink()
    names = sorted(tensors)
    homes = {
        n: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, n in enumerate(names)
    }
    for file in set(homes.values()):
        torch.save({n: tensors[n] for n in names if homes[n] == file}, source / file)
    (source / bins.INDEX).write_text(json.dumps({"weight_map": homes}))
    return source, tensors


def test_bin_files(tmp_path, binary):
    source, tensors = binary
    expected = jaxdave.load(sources.make(tmp_path / "twin"), dtype="bfloat16").params
    convert(source, tmp_path / "ours", verify_count=99)
    assert_equal(jaxdave.load(tmp_path / "ours", dtype="bfloat16").params, expected)
    export(tmp_path / "ours", tmp_path / "back")
    index = json.loads((tmp_path / "back" / sources.INDEX).read_text())["weight_map"]
    assert set(index.values()) == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    }  # fmt: skip
    found = {n: load_file(tmp_path / "back" / index[n])[n] for n in index}
    assert found.keys() == tensors.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(
            value.astype(np.float32), tensors[name].float().numpy()
        )


class Trap:
    """What a malicious file holds: unpickled with all rights, it leaves a mark."""

    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


def test_bin_files_never_run_code(tmp_path, source, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    (source / sources.ONE_FILE).unlink()
    torch.save({"model.norm.weight": Trap()}, source / bins.ONE_FILE)
    assert sources.run(source, tmp_path / "ours") == 2
    err = capsys.readouterr().err
    assert "more than tensors" in err and err.count("\n") == 1
    assert sources.names_in(tmp_path) == ["source"]


def test_bin_files_need_torch(source, binary, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert sources.run(source, tmp_path / "ours") == 2
    assert "install jaxdave[torch]" in capsys.readouterr().err


def test_safetensors_go_before_bin_and_need_no_torch(source, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    (source / bins.ONE_FILE).write_bytes(b"no zip")
    convert(source, tmp_path / "ours")
    assert_equal(
        jaxdave.load(tmp_path / "ours").params, jaxdave.load(source).params
    )  # fmt: skip


def test_hub_id(tmp_path, source, monkeypatch):
    revision = "89abcdef01" * 4
    snapshot = tmp_path / "models--o--n" / "snapshots" / revision
    shutil.copytree(source, snapshot)
    asked = []

    def fetch(name, **options):
        asked.append((name, *options["allow_patterns"]))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    convert("owner/name", tmp_path / "ours")
    assert asked == [("owner/name", "*.safetensors", "*.json", "*.jinja", "*.txt")]
    record = json.loads((tmp_path / "ours" / "manifest.json").read_text())
    assert (record["source"], record["revision"]) == ("owner/name", revision)


def test_a_chunk_that_is_gone_is_noticed(tmp_path, source):
    convert(source, tmp_path / "ours")
    weights = tmp_path / "ours" / "weights"
    (weights / "embedding" / "3.0").unlink()
    cut = weights / "blocks.mlp.up.kernel" / "1.0.2"
    cut.write_bytes(cut.read_bytes()[:-1])
    shutil.rmtree(weights / "norm.scale")
    with pytest.raises(ValueError) as caught:
        jaxdave.load(tmp_path / "ours")
    message = str(caught.value)
    assert "embedding/3.0 is missing or cut short" in message
    assert "blocks.mlp.up.kernel/1.0.2 is missing or cut short" in message
    assert "parameter norm/scale is missing" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version=2 in config.json must be 1"),
        ({"model": {"name": "x"}}, "does not describe a model"),
        ({"model": ...}, "does not describe a model"),
    ],
)
def test_config_of_ours_that_is_broken(tmp_path, source, changes, words):
    convert(source, tmp_path / "ours")
    sources.change_json(tmp_path / "ours" / "config.json", **changes)
    with pytest.raises(ValueError, match=words):
        jaxdave.load(tmp_path / "ours")
    with pytest.raises(ValueError, match="converted already"):
        convert(tmp_path / "ours", tmp_path / "again")


def test_a_base_model_loads_without_a_chat_template(tmp_path, source):
    sources.change_json(source / "tokenizer_config.json", chat_template=...)
    with pytest.raises(ValueError, match="no chat template"):
        jaxdave.load(source)
    convert(source, tmp_path / "ours")
    codec = jaxdave.load(tmp_path / "ours").codec
    assert codec.decode([1, 2])
    with pytest.raises(ValueError, match="no chat template"):
        codec.encode_prompt("hi")


def test_the_tokenizer_s_files_say_what_it_says():
    opened = open_tokenizer(folders.TOKENIZER)
    read = vocabulary.read(folders.TOKENIZER)
    assert read.size == opened.size
    for token in ("a", "<|MASK|>", "<|im_end|>", "no such token", None):
        assert read.id_of(token) == opened.id_of(token)


MESH = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
import jaxdave
from jaxdave.model.whole import whole
def leaves(tree):
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x
            for p, x in jax.tree_util.tree_leaves_with_path(tree)}
auto = (AxisType.Auto,) * 2
for folder in sys.argv[1:]:
    alone = jaxdave.load(folder)
    tokens = jnp.arange(32, dtype=jnp.int32)[None] * 20
    whole_logits = whole(alone.config)(alone.params, tokens)
    for shape in ((1, 8), (2, 4)):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=auto)
        split = jaxdave.load(folder, mesh=mesh)
        found = leaves(split.params)
        for name, leaf in leaves(alone.params).items():
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(found[name]))
            assert len(found[name].sharding.device_set) == 8, name
        parts = shape[1]
        def part(name):
            return found[name].addressable_shards[0].data.shape
        assert part("blocks/attn/q/kernel") == (2, 16, 64 // parts)
        assert part("blocks/attn/o/kernel") == (2, 64 // parts, 16)
        assert part("blocks/mlp/down/kernel") == (2, 24 // parts, 16)
        assert part("embedding") == (784 // parts, 16)
        assert part("head/kernel") == (16, 784 // parts)
        assert part("norm/scale") == (16,)
        # Two heads of keys: whole where there are more devices than heads.
        assert part("blocks/attn/k/kernel") == (2, 16, 16)
        logits = whole(split.config)(split.params, tokens)
        assert np.abs(np.asarray(whole_logits) - np.asarray(logits)).max() < 1e-4
try:
    jaxdave.load(folder, mesh=jax.make_mesh((8,), ("x",), axis_types=auto[:1]))
except ValueError as error:
    assert "must include 'model'" in str(error)
else:
    raise AssertionError
"""


def test_loading_onto_a_mesh(tmp_path):
    """On 8 virtual devices: each holds its part, and the logits are the same."""
    config = dataclasses.replace(folders.CONFIG, heads=8)
    source = sources.make(tmp_path, config)
    convert(source, tmp_path / "ours")
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path), "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", MESH, str(source), str(tmp_path / "ours")]
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


LLADA = {
    "model_type": "llada", "d_model": 64, "n_layers": 2, "n_heads": 4,
    "n_kv_heads": None, "mlp_hidden_size": 96, "embedding_size": None,
    "vocab_size": 128, "max_sequence_length": 4096, "rope_theta": 5e5,
    "rms_norm_eps": 1e-5, "rope_full_precision": True, "rope": True,
}  # fmt: skip


def test_llada_config_with_nulls():
    found = families.fields_of(families.LLADA, LLADA)
    assert (found["kv_heads"], found["vocab_rows"], found["head_dim"]) == (4, 128, 16)
    assert found["rope_fp32"] and found["attention"] == "full"
    wrong = {**LLADA, "block_group_size": 2, "attention_layer_norm": True}
    with pytest.raises(ValueError) as caught:
        families.fields_of(families.LLADA, wrong)
    assert "block_group_size=2 must be 1" in str(caught.value)
    assert "attention_layer_norm=True must be False" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "tensors", "expected"),
    [
        ({"model_type": "Dream"}, ["model.layers.0.self_attn.q_proj.bias"], "dream"),
        (
            {"architectures": ["Fast_dLLM_QwenForCausalLM"]},
            ["model.layers.0.self_attn.q_proj.bias"],
            "fast-dllm-v2",
        ),
        ({"model_type": "llada"}, ["model.transformer.wte.weight"], "llada"),
        ({"model_type": "sdar"}, ["m.layers.1.self_attn.q_norm.weight"], "sdar"),
        ({"model_type": "llada"}, ["model.layers.0.mlp.experts.0.up"], None),
        ({"model_type": "sdar"}, ["m.self_attn.q_norm.weight", "m.experts.1"], None),
        ({"model_type": "qwen2"}, ["m.self_attn.q_proj.bias"], None),
    ],
)
def test_detection(raw, tensors, expected):
    if expected is not None:
        assert families.detect(raw, tensors).name == expected
        return
    with pytest.raises(ValueError, match="unknown architecture"):
        families.detect(raw, tensors)
