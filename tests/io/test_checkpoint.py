"""Loading folders, and the one line that names everything wrong with one."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import checkpoint_folders
from helpers.checkpoint_folders import assert_equal
from safetensors.numpy import load_file, save_file

from jaxdave.io import checkpoint
from jaxdave.numerics.weight_layout import to_stacked


@pytest.fixture
def folder(tmp_path: Path, pristine: Path) -> Path:
    """A checkpoint folder of the test's own."""
    shutil.copytree(pristine, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A checkpoint folder that no test changes."""
    path = tmp_path_factory.mktemp("pristine") / "tiny"
    checkpoint_folders.make(path)
    return path


def load_error(folder: Path | str, **options) -> str:
    """The one line of an error that loading must raise."""
    with pytest.raises(ValueError) as caught:
        checkpoint.load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_json(path: Path, **changes) -> None:
    """Sets keys of a JSON file, or with ... drops them."""
    value = {**json.loads(path.read_text()), **changes}
    value = {key: part for key, part in value.items() if part is not ...}
    path.write_text(json.dumps(value))


def change_tensors(folder: Path, **changes) -> None:
    """Sets tensors, or with None drops them."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    remaining = {name: value for name, value in tensors.items() if value is not None}
    save_file(remaining, folder / "model.safetensors")


def split_in_two(folder: Path) -> dict[str, str]:
    """Makes two weight files and their index of the one; returns tensor -> file."""
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


def test_torch_layout_is_out_in(folder):
    tensors = load_file(folder / "model.safetensors")
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    assert down.shape == (
        checkpoint_folders.CONFIG.hidden,
        checkpoint_folders.CONFIG.inter,
    )
    params = to_stacked(checkpoint.load(folder).params)
    kernel = params["blocks"]["mlp"]["down"]["kernel"][1]
    np.testing.assert_array_equal(np.asarray(kernel), down.T)


def test_shards_load_like_one_file(folder, pristine):
    split_in_two(folder)
    assert_equal(checkpoint.load(folder).params, checkpoint.load(pristine).params)


def test_links_of_the_hub_cache_are_followed(folder, tmp_path, pristine):
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    blobs.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (snapshot / "model.safetensors").rename(blobs / "123")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/123"))
    assert_equal(checkpoint.load(snapshot).params, checkpoint.load(pristine).params)


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
    message = load_error(folder)
    assert "missing tensor model.norm.weight" in message
    assert "extra tensor model.layers.7.mlp.up_proj.weight" in message
    assert "lm_head.weight has shape (3, 4), not (784, 16)" in message
    assert "model.embed_tokens.weight has dtype I32" in message
    assert "other.safetensors: extra file" in message


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_truncated_file(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    message = load_error(folder)
    assert "model.safetensors: truncated or unreadable file" in message
    assert "missing tensor" not in message


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: missing file" in load_error(folder)


def test_missing_shard_is_one_problem(folder):
    split_in_two(folder)
    (folder / "b.safetensors").unlink()
    message = load_error(folder)
    assert "b.safetensors: missing file" in message
    assert "missing tensor" not in message


def test_index_that_names_a_tensor_nobody_has(folder):
    index = split_in_two(folder)
    write_index(folder, {**index, "ghost": "a.safetensors"})
    assert "a.safetensors: tensor ghost of the index is missing" in load_error(folder)


def test_tensor_beside_the_index(folder):
    index = split_in_two(folder)
    index.pop("lm_head.weight")
    write_index(folder, index)
    assert "tensor lm_head.weight is there against the index" in load_error(folder)


@pytest.mark.parametrize("kind", ["parent", "absolute", "windows"])
def test_index_must_stay_inside_the_folder(folder, tmp_path, kind):
    outside = tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    names = {"parent": "../outside.safetensors", "absolute": str(outside)}
    name = names.get(kind, "..\\outside.safetensors")
    write_index(folder, dict.fromkeys(load_file(outside), name))
    assert f"{name}: points outside the folder" in load_error(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}])
def test_index_without_a_map(folder, weight_map):
    write_index(folder, weight_map)
    assert "weight_map must map" in load_error(folder)


def test_config_that_is_missing_or_broken(folder):
    (folder / "config.json").write_text("{")
    assert "config.json: cannot be read as JSON" in load_error(folder)
    (folder / "config.json").write_text("[]")
    assert "config.json: must hold a JSON object" in load_error(folder)
    (folder / "config.json").unlink()
    assert "config.json: missing file" in load_error(folder)


def test_config_reports_every_bad_key(folder):
    change_json(
        folder / "config.json", hidden_size=..., head_dim="8", rope_scaling={"f": 2}
    )
    message = load_error(folder)
    assert "hidden_size is missing" in message
    assert "head_dim='8' must be of type int" in message
    assert "rope_scaling={'f': 2} must be None" in message


def test_unknown_and_mixed_up_architectures_do_not_load(folder):
    change_json(folder / "config.json", model_type="gpt2", architectures=["GPT2"])
    assert "unknown architecture" in load_error(folder)
    change_json(folder / "config.json", model_type="Dream", architectures=["SDARFor"])
    assert "q_proj.bias" in load_error(folder)


def test_block_length_comes_from_arguments_first(folder):
    assert checkpoint.load(folder, block_length=16).config.block_length == 16


def test_a_mask_id_settles_what_the_files_leave_open(folder):
    assert "mask_id=5 contradicts the files" in load_error(folder, mask_id=5)
    change_json(folder / "config.json", mask_token_id=5)
    model = checkpoint.load(folder, mask_id=5)
    assert (model.config.mask_id, model.codec.mask_id) == (5, 5)


def test_config_of_the_hub_without_block_length_and_mask(folder):
    change_json(folder / "config.json", block_size=..., mask_token_id=...)
    assert "give it with --block-length or block_length" in load_error(folder)
    model = checkpoint.load(folder, block_length=4)
    assert model.config.mask_id == checkpoint_folders.CONFIG.mask_id
    assert "block_length=3" in load_error(folder, block_length=3)


def test_mask_ids_must_agree(folder):
    change_json(folder / "config.json", mask_token_id=3)
    assert "mask_token_id=3" in load_error(folder)


def test_without_real_vocab_size_the_tokenizer_says(folder):
    change_json(folder / "config.json", real_vocab_size=...)
    assert checkpoint.load(folder).config.vocab_size == 776
    change_json(folder / "config.json", real_vocab_size=780)
    assert "real_vocab_size=780" in load_error(folder)


@pytest.mark.parametrize("source", ["nope", "a/b/c", "../x", ""])
def test_unknown_source(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is unknown" in load_error(source)


def test_hub_failure_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert "cannot be fetched from the Hub (no network)" in load_error("owner/name")


def test_unknown_dtype(folder):
    assert "dtype 'float64' is unknown" in load_error(folder, dtype="float64")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_is_named(folder, value):
    name = "model.layers.1.mlp.down_proj.weight"
    tensor = load_file(folder / "model.safetensors")[name]
    tensor[3, 5] = value
    change_tensors(folder, **{name: tensor})
    assert f"tensor {name} holds NaN or infinity" in load_error(folder)


@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "folder", "nowhere"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"],
)
def test_what_is_no_file_is_refused_at_once(folder, kind, name):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        target = {"loop": name, "device": "/dev/zero", "nowhere": "lost"}[kind]
        path.symlink_to(target)
    load_error(folder)


def test_linked_folders_load(folder, tmp_path, pristine):
    """A link to a folder, own files beside linked weights, and links to links."""
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    own = tmp_path / "own"
    own.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".json":
            shutil.copyfile(path, own / path.name)
        else:
            (own / path.name).symlink_to(tmp_path / "link" / path.name)
    want = to_stacked(checkpoint.load(pristine).params)
    for path in (tmp_path / "link", own):
        assert_equal(to_stacked(checkpoint.load(path).params), want)


def test_buffers_that_the_model_computes_are_passed_over(folder, pristine, caplog):
    frequencies = np.ones(4, np.float32)
    change_tensors(
        folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": frequencies}
    )
    want = to_stacked(checkpoint.load(pristine).params)
    assert_equal(to_stacked(checkpoint.load(folder).params), want)
    assert "rotary_emb.inv_freq not used" in caplog.text


def test_a_tied_head_that_is_stored_must_be_the_embedding(folder, caplog):
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_json(folder / "config.json", tie_word_embeddings=True)
    change_tensors(folder, **{"lm_head.weight": embedding})
    checkpoint.load(folder)
    assert "lm_head.weight not used" in caplog.text
    embedding[7, 3] += 1
    change_tensors(folder, **{"lm_head.weight": embedding})
    assert "lm_head.weight differs from model.embed_tokens" in load_error(folder)


def test_a_null_hides_no_other_id(folder):
    change_json(folder / "config.json", eos_token_id=5)
    change_json(folder / "generation_config.json", eos_token_id=None)
    assert checkpoint.load(folder).config.stop_ids[0] == 5


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"tables": 3}', "\ud800"])
def test_a_broken_draft_table_costs_speed_and_no_answer(folder, content, caplog):
    (folder / "drafts.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert checkpoint.load(folder).tables == {}
    assert "drafts are nested" in caplog.text


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_deep_json_and_byte_order_marks(folder, name):
    text = (folder / name).read_text()
    (folder / name).write_text("\ufeff" + text)
    checkpoint.load(folder)
    (folder / name).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "nested too deep" in load_error(folder)


def test_absurd_sizes(folder):
    change_json(folder / "config.json", max_position_embeddings=10**9)
    checkpoint.load(folder)
    change_json(folder / "config.json", num_hidden_layers=10**9)
    assert "num_layers=1000000000 must be in 1..4096" in load_error(folder)
