"""Values of other types than files should have: one line, and no other error."""

import json
import shutil

import numpy as np
import pytest
from helpers import checkpoint_folders
from safetensors.numpy import load_file, save_file

from jaxdave.core.config import ModelConfig
from jaxdave.io import checkpoint, orbax_io

CONFIGS = [
    ("architectures", 3),
    ("architectures", {"a": 1}),
    ("layer_types", 3),
    ("head_dim", "8"),
    ("head_dim", 8.0),
    ("head_dim", [8]),
    ("num_attention_heads", 0),
    ("rope_theta", 10**400),
    ("rms_norm_eps", -(10**400)),
    ("mask_token_id", "775"),
    ("mask_token_id", [775]),
    ("mask_token_id", {}),
    ("mask_token_id", True),
]
TOKENS = [
    ("model", 3),
    ("model", []),
    ("model", {"type": "BPE", "vocab": {"a": "b"}, "merges": []}),
    ("model", {"type": "BPE", "vocab": {"a": -1}, "merges": []}),
    ("model", {"type": "BPE", "vocab": {"a": 0.5}, "merges": []}),
    ("model", {"type": "Unigram", "vocab": [3, 4]}),
    ("added_tokens", 3),
    ("added_tokens", [3]),
    ("added_tokens", [{"id": 3}]),
    ("added_tokens", [{"content": "a", "id": None}]),
]


@pytest.fixture
def folder(tmp_path, pristine):
    """Folders of two families: one names the size of its heads, one divides."""
    shutil.copytree(pristine, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("pristine") / "tiny"
    checkpoint_folders.make(path)
    return path


def load_error(folder, file: str, key: str, value) -> str:
    """The one line that a changed value of a file must lead to."""
    raw = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**raw, key: value}))
    with pytest.raises(ValueError) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("key", "value"), CONFIGS, ids=lambda x: str(x)[:12])
@pytest.mark.parametrize("family", ["SDAR", "Dream"])
def test_configs(folder, key, value, family):
    if family == "Dream":
        names = {"model_type": "Dream", "architectures": ["DreamModel"]}
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, **names}))
    if key == "architectures":  # the model type is enough
        (folder / "tokenizer.json").unlink()
    message = load_error(folder, "config.json", key, value)
    assert key in message or "heads" in message or "tokenizer" in message


@pytest.mark.parametrize(("key", "value"), TOKENS, ids=lambda x: str(x)[:20])
def test_tokens(folder, key, value):
    assert str(folder) in load_error(folder, "tokenizer.json", key, value)


@pytest.mark.parametrize("value", [3, [], ["x"], {"x": {"content": "a"}}, {"5": 3}])
def test_decoders_of_added_tokens(folder, value):
    load_error(folder, "tokenizer_config.json", "added_tokens_decoder", value or [1])


def test_an_index_that_leads_nowhere(folder):
    (folder / "model.safetensors.index.json").symlink_to("lost")
    with pytest.raises(ValueError, match="missing file"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", 16.0),
        ("hidden", "16"),
        ("qk_norm", "yes"),
        ("qk_norm", 1),
        ("attention", "some"),
        ("logits_shift", None),
        ("family", 3),
        ("rope_theta", "1"),
        ("stop_ids", "ab"),
        ("stop_ids", []),
        ("stop_ids", [1.5]),
        ("stop_ids", 3),
        ("mask_id", True),
        ("block_length", None),
    ],
)
def test_configs_of_converted_folders(tmp_path, name, value):
    raw = orbax_io.to_json(checkpoint_folders.CONFIG, "float32")
    raw = json.loads(json.dumps(raw))
    assert orbax_io.read_config(raw, tmp_path) == checkpoint_folders.CONFIG
    assert isinstance(orbax_io.read_config(raw, tmp_path), ModelConfig)
    raw["model"][name] = value
    with pytest.raises(ValueError, match="does not describe a model"):
        orbax_io.read_config(raw, tmp_path)


@pytest.mark.parametrize("name", ["a\nb\x1b[31mc", "\u2028x", "x" * 300])
def test_names_of_tensors_are_printed_and_not_obeyed(folder, name):
    tensors = {**load_file(folder / "model.safetensors"), name: np.ones(2, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="extra tensor") as caught:
        checkpoint.load(folder)
    assert str(caught.value).isprintable()


def test_an_index_with_a_name_too_long_for_a_file(folder):
    index = {"weight_map": {"a": "x" * 5000}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="missing file") as caught:
        checkpoint.load(folder)
    assert len(str(caught.value)) < 2000
