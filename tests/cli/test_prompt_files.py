"""Files of prompts: what ends a line, unknown keys, template arguments, characters."""

import json
import os

import pytest

from jaxdave.cli.prompts import encode, read_requests
from jaxdave.io import checkpoint


def read(tmp_path, text, encoding="utf-8"):
    file = tmp_path / "p.jsonl"
    file.write_bytes(text.encode(encoding, "surrogatepass"))
    return read_requests(None, file)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_only_a_line_feed_ends_a_line(tmp_path, character):
    text = json.dumps({"prompt": f"a{character}b"}, ensure_ascii=False)
    first, second = read(tmp_path, f"{text}\r\n{text}\n")
    assert first.value == second.value == f"a{character}b"


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read(tmp_path, '\ufeff{"prompt": "a"}\n')[0].value == "a"


@pytest.mark.parametrize("key", ["tools", "temperature", "promt", "max_new_tokens"])
def test_unknown_keys_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match=f"line 2: '{key}' is no key of a prompt"):
        read(tmp_path, '{"prompt": "a"}\n' + json.dumps({"prompt": "b", key: 1}))


def test_deep_lines_and_pipes(tmp_path):
    with pytest.raises(ValueError, match="line 1: broken JSON .it is nested too deep"):
        read(tmp_path, "[" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_requests(None, path)


@pytest.mark.parametrize("text", ["a\ud800", "\udc80x"])
def test_half_a_character(text):
    model = checkpoint.load("sdar-1m")
    request = read_requests(text, None)[0]
    with pytest.raises(ValueError, match="half a character") as caught:
        encode(request, model, 16)
    caught.value.args[0].encode("utf-8")


def test_template_arguments_of_a_line(tmp_path):
    line = {"messages": [{"role": "user", "content": "a"}], "template_args": {"x": 1}}
    assert read(tmp_path, json.dumps(line))[0].template_args == {"x": 1}
    with pytest.raises(ValueError, match="template_args=3 must be an object"):
        read(tmp_path, json.dumps({**line, "template_args": 3}))


def test_stop_strings_of_a_line(tmp_path):
    lines = [
        {"prompt": "a", "stop": "\n"},
        {"prompt": "a", "stop": ["x", "y"]},
        {"prompt": "a"},
    ]
    requests = read(tmp_path, "\n".join(map(json.dumps, lines)))
    assert [request.stops for request in requests] == [("\n",), ("x", "y"), ()]
    for bad in ("", [""], 3, [3], {"a": 1}):
        with pytest.raises(ValueError, match="line 1: stop="):
            read(tmp_path, json.dumps({"prompt": "a", "stop": bad}))
