"""`jaxdave train --config` and bad input: one line, exit code 2, no model."""

import json
import re

import pytest
from helpers.doc_blocks import ROOT
from helpers.training_runs import settings, write_samples

from jaxdave.training.config_file import read_config_file
from jaxdave.training.train_config import read_train_config


def refused(run, *words: object) -> str:
    code, out, err = run("train", *words)
    assert (code, out) == (2, "") and err.count("\n") == 1, (code, out, err)
    assert err.startswith("jaxdave: ")
    return err


LINES = {
    "no JSON": ("{'prompt': 'a'}", "line 9"),
    "a list": ('["a", "b"]', "line 9"),
    "no response": ('{"prompt": "a"}', "line 9"),
    "a message without a role": ('{"messages": [{"content": "a"}]}', "role"),
    "an unknown role": (
        '{"messages": [{"role": "robot", "content": "a"}]}',
        "robot",
    ),
    "no assistant": ('{"messages": [{"role": "user", "content": "a"}]}', "assistant"),
    "a number for a text": ('{"prompt": "a", "response": 3}', "line 9"),
    "an empty answer": ('{"prompt": "a", "response": ""}', "line 9"),
    "an answer longer than the room": (
        json.dumps({"prompt": "a", "response": "1 2 3 " * 100}),
        "line 9",
    ),
}


@pytest.mark.parametrize("kind", LINES)
def test_bad_lines(run, tmp_path, kind):
    """Behind good ones, so that the line has to be counted."""
    line, named = LINES[kind]
    path = tmp_path / "train.jsonl"
    write_samples(path)
    with path.open("a") as file:
        file.write(line + "\n")
    config = settings(tmp_path, data="shuffle = false\nprefetch = 0")
    out = tmp_path / "out"
    err = refused(run, "--config", config, "--out", out)
    assert str(path) in err and named in err
    assert not (out / "model").exists()


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"prompt": "\xff"}\n'])
def test_files_without_samples(run, tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    err = refused(run, "--config", settings(tmp_path), "--out", tmp_path / "out")
    assert str(path) in err


def test_files_that_are_not_there(run, tmp_path):
    out = tmp_path / "out"
    err = refused(run, "--config", settings(tmp_path), "--out", out)
    assert str(tmp_path / "train.jsonl") in err
    missing = tmp_path / "none.toml"
    assert str(missing) in refused(run, "--config", missing, "--out", out)


def test_words_that_exclude_each_other(run, tmp_path):
    config, out = settings(tmp_path), tmp_path / "out"
    refused(run, "--config", config, "--recipe", "demo", "--out", out)
    refused(run, "--recipe", "demo", "--out", out, "--distributed")
    refused(run, "--config", config, "--out", out, "--num-processes", 2)
    refused(run, "--config", config, "--out", out, "--steps", 0)
    assert not (out / "model").exists()


def test_a_folder_that_is_a_file(run, tmp_path):
    write_samples(tmp_path / "train.jsonl")
    out = tmp_path / "out"
    out.write_text("notes")
    refused(run, "--config", settings(tmp_path), "--out", out)
    assert out.read_text() == "notes"


def toml_blocks() -> list[str]:
    page = (ROOT / "docs/how_to/train.md").read_text()
    return re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)


def test_the_documents_settings_are_read(tmp_path):
    blocks = toml_blocks()
    assert len(blocks) == 3
    whole = tmp_path / "train.toml"
    whole.write_text(blocks[0])
    config = read_train_config(whole)
    assert config.train.accumulate == 2 and config.lora is None
    sections: dict = dict(read_config_file(whole).sections)
    for block in blocks[1:]:
        part = tmp_path / "part.toml"
        part.write_text(block)
        own = read_config_file(part).sections
        text = _to_toml({**sections, **own})
        whole.write_text(text)
        read_train_config(whole)


def _to_toml(sections: dict) -> str:
    lines = []
    for name, table in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"
