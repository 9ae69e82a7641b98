"""Bad weight files for jaxdave-convert: one line, exit code 2, and no DST."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import conversion_sources
from helpers.conversion_sources import (
    INDEX_FILE,
    WEIGHTS_FILE,
    change_tensors,
    write_index,
)
from safetensors.numpy import load_file, save_file

import jaxdave

DOWN = "model.layers.1.mlp.down_proj.weight"


def index_of(folder: Path) -> dict:
    return json.loads((folder / INDEX_FILE).read_text())


def test_missing_shard(refused, shards):
    (shards / "b.safetensors").unlink()
    message = refused(shards)
    assert "b.safetensors: missing file" in message
    assert "missing tensor" not in message


def test_missing_weights(refused, source):
    (source / WEIGHTS_FILE).unlink()
    assert "model.safetensors: missing file" in refused(source)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_truncated_shard(refused, shards, length):
    path = shards / "a.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    message = refused(shards)
    assert "a.safetensors: truncated" in message and "missing tensor" not in message


def test_bytes_after_the_end(refused, source):
    with (source / WEIGHTS_FILE).open("ab") as file:
        file.write(b"\0")
    assert "its header asks" in refused(source)


def test_flipped_bit_in_a_file_of_the_hub_s_cache(refused, source, tmp_path, capsys):
    sha = subprocess.run(
        ["sha256sum", source / WEIGHTS_FILE], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / ("0123456789" * 4)
    shutil.copytree(source, snapshot)
    (cache / "blobs").mkdir()
    (snapshot / WEIGHTS_FILE).rename(cache / "blobs" / sha)
    (snapshot / WEIGHTS_FILE).symlink_to(Path("../../blobs") / sha)
    assert conversion_sources.run(snapshot, tmp_path / "good") == 0
    capsys.readouterr()
    record = json.loads((tmp_path / "good" / "manifest.json").read_text())
    assert record["revision"] == "0123456789" * 4
    assert record["sha256"][WEIGHTS_FILE] == sha
    conversion_sources.flip_last_bit(cache / "blobs" / sha)
    message = refused(snapshot)
    assert f"not {sha} as recorded" in message and "damaged" in message


def test_flipped_bit_in_a_download(refused, source):
    record = source / ".cache" / "huggingface" / "download"
    record.mkdir(parents=True)
    (record / f"{WEIGHTS_FILE}.metadata").write_text(f"{'a' * 40}\n{'b' * 64}\n1.5\n")
    assert f"not {'b' * 64} as recorded" in refused(source)


def test_flipped_bit_against_the_index(refused, shards, tmp_path):
    hashes = {"metadata": {"sha256": {"b.safetensors": "c" * 64}}}
    write_index(shards, {**index_of(shards), **hashes})
    assert conversion_sources.run(shards, tmp_path / "ours") == 2
    # Nothing is left of a conversion that was refused.
    assert conversion_sources.names_in(tmp_path) == ["source"]
    write_index(shards, {**index_of(shards), "metadata": {}})
    assert conversion_sources.run(shards, tmp_path / "ours") == 0
    assert conversion_sources.names_in(tmp_path) == ["ours", "source"]


def test_index_that_names_a_tensor_twice(refused, shards):
    text = (shards / INDEX_FILE).read_text()
    entry = f'"{DOWN}": "a.safetensors", '
    write_index(shards, text.replace('"weight_map": {', '"weight_map": {' + entry))
    assert f"{DOWN} is named twice" in refused(shards)


def test_tensor_in_two_files(refused, shards):
    shutil.copyfile(shards / "a.safetensors", shards / "c.safetensors")
    index = index_of(shards)
    index["weight_map"]["model.norm.weight"] = "c.safetensors"
    write_index(shards, index)
    assert "is twice, in a.safetensors and c.safetensors" in refused(shards)


def test_header_that_names_a_tensor_twice(refused, source):
    header = b'{"x":{},"x":{}}  '[:16]
    (source / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    assert "x is named twice" in refused(source)


@pytest.mark.parametrize("kind", ["parent", "absolute", "windows"])
def test_index_that_names_a_file_outside(refused, shards, tmp_path, kind):
    outside = tmp_path / "outside.safetensors"
    (shards / "b.safetensors").rename(outside)
    names = {"parent": f"../{outside.name}", "absolute": str(outside)}
    name = names.get(kind, f"..\\{outside.name}")
    index = index_of(shards)
    homes = index["weight_map"].items()
    index["weight_map"] = {n: name if f[0] == "b" else f for n, f in homes}
    write_index(shards, index)
    assert f"{name}: points outside the folder" in refused(shards)


@pytest.mark.parametrize("value", ["{", "[]", '{"weight_map": {"a": 1}}'])
def test_broken_index(refused, shards, value):
    write_index(shards, value)
    assert INDEX_FILE in refused(shards)


def test_everything_wrong_is_in_one_line(refused, source):
    change_tensors(
        source,
        {
            DOWN: np.zeros((24, 16), np.float32),
            "model.norm.weight": None,
            "model.layers.0.mlp.experts.bias": np.zeros(1, np.float32),
            "lm_head.weight": np.zeros((784, 16), np.int32),
        },
    )
    message = refused(source, "--family", "sdar")
    assert f"tensor {DOWN} has shape (24, 16), not (16, 24)" in message
    assert "missing tensor model.norm.weight" in message
    assert "unknown tensor model.layers.0.mlp.experts.bias" in message
    assert "tensor lm_head.weight has dtype I32, not F32/F16/BF16" in message


def test_file_beside_the_index(refused, shards):
    shutil.copyfile(shards / "a.safetensors", shards / "extra.safetensors")
    assert "extra.safetensors: extra file" in refused(shards)


def test_a_template_that_could_not_be_loaded(refused, source, tmp_path):
    conversion_sources.change_json(
        source / "tokenizer_config.json", chat_template="{% if"
    )
    (source / "chat_template.jinja").unlink(missing_ok=True)
    assert "the chat template is broken" in refused(source)
    assert conversion_sources.names_in(tmp_path) == ["source"]


def test_a_tokenizer_that_could_not_be_loaded(refused, source, tmp_path):
    conversion_sources.change_json(source / "tokenizer.json", pre_tokenizer={"type": 3})
    assert "unreadable tokenizer" in refused(source)
    assert conversion_sources.names_in(tmp_path) == ["source"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite(refused, source, tmp_path, value):
    tensor = load_file(source / WEIGHTS_FILE)[DOWN]
    tensor.reshape(-1)[7] = value
    change_tensors(source, {DOWN: tensor})
    assert f"tensor {DOWN} holds NaN or infinity" in refused(source)
    assert conversion_sources.names_in(tmp_path) == ["source"]


def test_linked_files_and_buffers_are_converted(source, tmp_path, capsys):
    (source / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (source / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    (source / WEIGHTS_FILE).rename(tmp_path / "elsewhere.safetensors")
    (source / WEIGHTS_FILE).symlink_to(tmp_path / "elsewhere.safetensors")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors = load_file(source / WEIGHTS_FILE)
    save_file({**tensors, buffer: np.ones(8, np.float32)}, source / WEIGHTS_FILE)
    assert conversion_sources.run(source, tmp_path / "ours") == 0
    assert f"{buffer} not used" in capsys.readouterr().err
    assert jaxdave.load(tmp_path / "ours").codec.encode_prompt("a")
    assert conversion_sources.run("--export", tmp_path / "ours", tmp_path / "back") == 0
    (written,) = (tmp_path / "back").glob("*.safetensors")
    back = load_file(written)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize("metadata", [{"a": 1}, 3, ["a"]])
def test_metadata_that_are_not_texts(refused, source, metadata):
    """As the reader of safetensors files, and so `load`, refuses them."""
    data = (source / WEIGHTS_FILE).read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8:size]), "__metadata__": metadata}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data[size:]
    (source / WEIGHTS_FILE).write_bytes(content)
    assert WEIGHTS_FILE in refused(source)


def test_weights_beside_the_single_file(refused, source):
    shutil.copyfile(source / WEIGHTS_FILE, source / "other.safetensors")
    assert "other.safetensors: extra file" in refused(source)


def test_an_index_of_another_form(refused, shards):
    write_index(shards, "[" * 100_000)
    assert "nested too deep" in refused(shards)
    write_index(shards, {"weight_map": {"a": "x" * 5000}})
    assert "missing file" in refused(shards)
