"""The converter and the Hub, .bin files, broken conversions, base models."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import checkpoint_folders, conversion_sources
from helpers.checkpoint_folders import assert_equal
from jaxdave_convert import torch_bin
from jaxdave_convert.conversion import convert
from jaxdave_convert.exporting import export
from safetensors.numpy import load_file

import jaxdave
from jaxdave.io.tokenizer_backend import open_tokenizer
from jaxdave.io.vocabulary import read_vocabulary


@pytest.fixture
def binary(source) -> tuple[Path, dict]:
    """The source as two .bin files, and its tensors as torch tensors."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    tensors = load_torch(source / conversion_sources.WEIGHTS_FILE)
    (source / conversion_sources.WEIGHTS_FILE).unlink()
    names = sorted(tensors)
    homes = {
        n: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, n in enumerate(names)
    }
    for file in set(homes.values()):
        torch.save({n: tensors[n] for n in names if homes[n] == file}, source / file)
    (source / torch_bin.INDEX_FILE).write_text(json.dumps({"weight_map": homes}))
    return source, tensors


def test_bin_files(tmp_path, binary):
    source, tensors = binary
    expected = jaxdave.load(
        conversion_sources.make(tmp_path / "twin"), dtype="bfloat16"
    ).params
    convert(source, tmp_path / "ours", verify_count=99)
    assert_equal(jaxdave.load(tmp_path / "ours", dtype="bfloat16").params, expected)
    export(tmp_path / "ours", tmp_path / "back")
    index = json.loads((tmp_path / "back" / conversion_sources.INDEX_FILE).read_text())[
        "weight_map"
    ]
    assert set(index.values()) == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    exported = {n: load_file(tmp_path / "back" / index[n])[n] for n in index}
    assert exported.keys() == tensors.keys()
    for name, value in exported.items():
        np.testing.assert_array_equal(
            value.astype(np.float32), tensors[name].float().numpy()
        )


class Trap:
    """An object of a malicious file: unpickled without limits, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


def test_bin_files_never_run_code(tmp_path, source, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    (source / conversion_sources.WEIGHTS_FILE).unlink()
    torch.save({"model.norm.weight": Trap()}, source / torch_bin.WEIGHTS_FILE)
    assert conversion_sources.run(source, tmp_path / "ours") == 2
    err = capsys.readouterr().err
    assert "more than tensors" in err and err.count("\n") == 1
    assert conversion_sources.names_in(tmp_path) == ["source"]


def test_bin_files_need_torch(source, binary, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert conversion_sources.run(source, tmp_path / "ours") == 2
    assert "install jaxdave[torch]" in capsys.readouterr().err


def test_safetensors_go_before_bin_and_need_no_torch(source, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    (source / torch_bin.WEIGHTS_FILE).write_bytes(b"no zip")
    convert(source, tmp_path / "ours")
    assert_equal(jaxdave.load(tmp_path / "ours").params, jaxdave.load(source).params)


def test_hub_id(tmp_path, source, monkeypatch):
    revision = "89abcdef01" * 4
    snapshot = tmp_path / "models--o--n" / "snapshots" / revision
    shutil.copytree(source, snapshot)
    requests = []

    def fetch(name, **options):
        requests.append((name, *options["allow_patterns"]))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    convert("owner/name", tmp_path / "ours")
    assert requests == [("owner/name", "*.safetensors", "*.json", "*.jinja", "*.txt")]
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
        ({"version": 1}, "version=1 in config.json must be 2"),
        ({"model": {"name": "x"}}, "does not describe a model"),
        ({"model": ...}, "does not describe a model"),
    ],
)
def test_config_of_ours_that_is_broken(tmp_path, source, changes, words):
    convert(source, tmp_path / "ours")
    conversion_sources.change_json(tmp_path / "ours" / "config.json", **changes)
    with pytest.raises(ValueError, match=words):
        jaxdave.load(tmp_path / "ours")
    with pytest.raises(ValueError, match="converted already"):
        convert(tmp_path / "ours", tmp_path / "again")


def test_a_base_model_loads_without_a_chat_template(tmp_path, source):
    conversion_sources.change_json(source / "tokenizer_config.json", chat_template=...)
    convert(source, tmp_path / "ours")
    for folder in (source, tmp_path / "ours"):
        codec = jaxdave.load(folder).codec
        assert codec.decode([1, 2])
        with pytest.raises(ValueError, match="no chat template"):
            codec.encode_prompt("hi")


def test_the_tokenizer_s_files_say_what_it_says():
    opened = open_tokenizer(checkpoint_folders.TOKENIZER)
    read = read_vocabulary(checkpoint_folders.TOKENIZER)
    assert read.size == opened.size
    for token in ("a", "<|MASK|>", "<|im_end|>", "no such token", None):
        assert read.id_of(token) == opened.id_of(token)
