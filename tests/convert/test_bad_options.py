"""Bad configs and options for jaxdave-convert: one line, exit code 2, and no DST."""

import json

import pytest
from helpers import conversion_sources
from helpers.conversion_sources import change_json


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2"]}, "model_type='gpt2'"),
        ({"model_type": "gpt2", "architectures": ["GPT2"]}, "look like sdar"),
        ({"model_type": ..., "architectures": ...}, "unknown architecture"),
        ({"model_type": "Dream", "architectures": ["DreamModel"]}, "not those of"),
        ({"num_hidden_layers": ...}, "num_hidden_layers is missing"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling={'factor': 2} must be None"),
        ({"hidden_size": "16"}, "hidden_size='16' must be of type int"),
        ({"block_size": ...}, "give it with --block-length"),
        ({"block_size": 3}, "block_length=3 must divide 64"),
        ({"mask_token_id": 3}, "give the right one with --mask-id"),
        ({"num_key_value_heads": 3}, "heads=4 must be a multiple"),
    ],
)
def test_config(refused, source, changes, words):
    change_json(source / "config.json", **changes)
    assert words in refused(source)


def test_mask_that_nobody_knows(refused, source, tmp_path):
    change_json(source / "config.json", mask_token_id=...)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("MASK", "GAP")
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "give it with --mask-id" in refused(source)
    assert conversion_sources.run(source, tmp_path / "ours", "--mask-id", 775) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--family", "bert"), "family 'bert' is unknown"),
        (("--family", "llada"), "n_layers is missing"),
        (("--dtype", "int8"), "dtype 'int8' is unknown"),
        (("--block-length", 3), "block_length=3 must divide 64"),
        (("--mask-id", 784), "mask_id=784 contradicts the files"),
        (("--verify", -1), "verify=-1 must be"),
        (("--colour", "red"), "No such option"),
        (("--export", "--dry-run"), "takes no other option"),
        (("--export",), "is no checkpoint of jaxdave-convert"),
    ],
)
def test_options(refused, source, options, words):
    assert words in refused(source, *options)


def test_no_tokenizer(refused, source):
    (source / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(source)


def test_no_such_source(refused, tmp_path):
    assert "is unknown" in refused(tmp_path / "nowhere")


def test_no_destination(capsys):
    assert conversion_sources.run("only") == 2
    assert "Missing argument 'dst'" in capsys.readouterr().err


def test_no_network(refused, tmp_path, monkeypatch):
    """The Hub's own client, at an address where nobody listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "c"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    assert "cannot be fetched from the Hub" in refused("owner/name")


def test_a_destination_that_is_not_utf8(source, tmp_path, capsys):
    assert conversion_sources.run(source, tmp_path / "ours\udcff") == 2
    err = capsys.readouterr().err
    assert "is not UTF-8" in err and err.count("\n") == 1
    assert conversion_sources.names_in(tmp_path) == ["source"]
