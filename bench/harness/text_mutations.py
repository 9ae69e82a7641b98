"""Faults of the files beside the weights, and of files as such."""

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.harness.file_changes import (
    EITHER,
    OTHER,
    REFUSED,
    SAME,
    Change,
    edit,
    json_change,
    link,
    replace,
    write,
)
from jaxdave.drafting.tree_table import tables_digest
from jaxdave.io.safetensors_io import WEIGHTS_FILE


def tokenizer(rng: random.Random) -> Iterator[Change]:
    """Faults of the tokenizer's files."""
    file = "tokenizer.json"

    def on(change: Callable[[dict[str, Any]], Any], name: str = file):
        def changed(data: bytes) -> bytes:
            raw = json.loads(data)
            new = change(raw)
            return json.dumps(raw if new is None else new).encode()

        return edit(name, changed)

    for key in (
        "model",
        "added_tokens",
        "pre_tokenizer",
        "decoder",
        "version",
        "normalizer",
    ):
        for value in (None, 3, "x", [], {}, [None], {"type": "Odd"}, ...):
            yield (
                f"{file} {key}={'missing' if value is ... else json.dumps(value)}",
                OTHER,
                json_change(key, value, file),
            )
    for key in ("vocab", "merges", "type", "unk_token", "byte_fallback", "dropout"):
        for value in (
            None,
            3,
            "x",
            [],
            {},
            [["a", 0.5]],
            {"a": "b"},
            {"a": -1},
            {"a": 10**12},
            0.5,
        ):

            def set_model(raw, key=key, value=value):
                raw["model"][key] = value

            yield f"{file} model.{key}={json.dumps(value)}", OTHER, on(set_model)
    for new in (-1, 2**31, 2**63, "772", None, 1.5, True):

        def set_id(raw, new=new):
            raw["added_tokens"][0]["id"] = new

        yield f"{file}: an added token of id {new}", OTHER, on(set_id)
    for new in (None, 3, "", "a" * 10**5, "\ud800"):

        def set_content(raw, new=new):
            raw["added_tokens"][1]["content"] = new

        yield f"{file}: an added token {str(new)[:9]!a}", OTHER, on(set_content)
    yield "no mask token", EITHER, on(lambda raw: raw["added_tokens"].pop() and None)
    yield (
        "no content",
        OTHER,
        on(lambda raw: raw["added_tokens"][0].pop("content") and None),
    )
    for name in (
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
    ):
        for content in (
            "{",
            "[]",
            "null",
            "3",
            '"x"',
            "",
            "[" * 10**5,
            "\ufeff{}",
            "\ud800",
            "{}",
        ):
            yield f"{name} is {content[:9]!a}", OTHER, write(name, content)
    for key in (
        "tokenizer_class",
        "mask_token",
        "eos_token",
        "pad_token",
        "chat_template",
        "added_tokens_decoder",
        "auto_map",
    ):
        for value in (
            None,
            3,
            "x",
            [],
            {},
            {"content": 3},
            {"content": "<|MASK|>"},
            {"x": {"content": "x"}},
            {"5": 3},
            True,
        ):
            yield (
                f"tokenizer_config.json {key}={json.dumps(value)}",
                OTHER,
                json_change(key, value, "tokenizer_config.json"),
            )
    yield (
        f"{file} in UTF-16",
        REFUSED,
        edit(file, lambda b: b.decode().encode("utf-16")),
    )
    yield (
        f"{file} in Latin-1",
        OTHER,
        edit(file, lambda b: b.replace(b"<|endoftext|>", b"\xe9")),
    )
    yield f"{file} in another order", SAME, on(lambda raw: dict(reversed(raw.items())))


_TEMPLATE = "chat_template.jinja"


def templates(rng: random.Random) -> Iterator[Change]:
    """Faults of chat templates."""
    broken = (
        "{{",
        "{% if %}",
        "{% for x in %}",
        "{{ messages[",
        "{% unknown %}",
        "{% raw %}",
        "{{ 1/0 }}",
        "{{ messages.nothing.nothing }}",
        "{{ raise_exception('no') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 10**12 }}",
        "{{ 9**9**9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'x'.center(10**10) }}",
        "{{ lipsum(n=10**6) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}",
        "{{ cycler(*range(10**8)) }}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}"
        "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ range(10**8) | list | length }}",
        "{{ 'x' | indent(10**9) }}",
        "(" * 3000,
        "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
        "{{ messages | map('x') | list }}",
        "{{ '\\ud800' }}",
        "{{ messages[0].content | wordwrap(0) }}",
        "{% extends 'a' %}",
        "{{ dict(a=1).update({}) }}",
        "{{ messages.append(1) }}",
        "{{ joiner() }}",
        "<|MASK|>{{ messages[0].content }}",
        "",
        "   ",
        "{{ none }}",
        "{{ tools }}",
        "{{ strftime_now('%Y' * 10**6) }}",
        "{{ [1] * 10**10 }}",
        "{{ x.y }}",
        "{% set x = [] %}{% for i in range(10**6) %}"
        "{{ x.append('a' * 10**5) }}{% endfor %}",
    )
    for source in broken:
        yield f"template {source[:50]!a}", OTHER, write(_TEMPLATE, source)
    for content in (b"\xff\xfe{\x00", b"\xe9", b"\0", b"\xef\xbb\xbfx", b"x" * 10**6):
        yield f"template file {content[:8]!r}", OTHER, write(_TEMPLATE, content)
    for kind in ("pipe", "folder", "loop", "device", "nowhere"):
        yield (
            f"template is a {kind}",
            REFUSED,
            lambda f, k=kind: replace(f / _TEMPLATE, k),
        )
    forms = (
        [],
        [{"name": "default"}],
        [{"template": "x"}],
        [3],
        {"default": 3},
        {"other": "x"},
        [{"name": ["x"], "template": "y"}],
        [{"name": "default", "template": "{{"}],
        3,
        True,
    )
    for form in forms:
        apply = json_change("chat_template", form, "tokenizer_config.json")
        yield f"templates {json.dumps(form)}", OTHER, apply


def generation(rng: random.Random) -> Iterator[Change]:
    """Faults of generation_config.json."""
    file = "generation_config.json"
    for key in ("eos_token_id", "pad_token_id", "max_new_tokens", "bos_token_id"):
        for value in (
            None,
            -1,
            10**9,
            2**70,
            1.5,
            "2",
            [],
            [None],
            [[774]],
            [774, 774],
            True,
            {},
            math.nan,
            0,
            ...,
        ):
            if value is ... and key in ("max_new_tokens", "bos_token_id"):
                continue
            apply = json_change(key, value, file)
            yield f"{file} {key}={'missing' if value is ... else value}", OTHER, apply
    for key, value in (
        ("temperature", -3),
        ("top_p", "x"),
        ("do_sample", {}),
        ("max_length", -1),
    ):
        yield f"{file} {key}={value}", SAME, json_change(key, value, file)


def drafts(rng: random.Random) -> Iterator[Change]:
    """Faults of the draft tables, which change no text."""
    file = "drafts.json"
    for content in (
        "",
        "{",
        "[]",
        "null",
        "3",
        "[" * 10**5,
        '{"version": 99}',
        '{"tables": 3}',
        '{"version": 3, "tables": []}',
        '{"version": "3", "tables": {}}',
        "\ud800",
        '{"version": 3, "tables": {"x": 3}}',
        '{"version": 3, "tables": {"x": {}}}',
    ):
        yield f"{file} is {content[:30]!a}", SAME, write(file, content)

    def on_table(change: Callable[[dict[str, Any]], Any]):
        def apply(folder: Path) -> None:
            path = folder / file
            if not path.exists():
                return
            raw = json.loads(path.read_text())
            for table in raw["tables"].values():
                change(table)
            # A fault that was there when the file was written.
            raw["digest"] = tables_digest(raw["tables"])
            path.write_text(json.dumps(raw))

        return apply

    for key in ("edge", "leaf_of", "leaves"):
        for value in (
            None,
            3,
            -1,
            "x",
            [],
            [[]],
            {},
            math.nan,
            1e30,
            [[[-1]]],
            [[99999]],
            [[[0.5, 10**9]]],
            [["x"]],
            ...,
        ):

            def set_key(table, key=key, value=value):
                table[key] = value
                if value is ...:
                    del table[key]

            yield (
                f"{file} {key}={'missing' if value is ... else value}",
                SAME,
                on_table(set_key),
            )
    for kind in ("pipe", "folder", "loop", "device", "nowhere", "empty", "missing"):
        yield f"{file} is {kind}", SAME, lambda f, k=kind: replace(f / file, k)


def files(rng: random.Random) -> Iterator[Change]:
    """Something else in the place of files, other encodings, files beside them."""
    needed = ("config.json", WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json")
    for name in (*needed, "generation_config.json", "special_tokens_map.json"):
        for kind in ("pipe", "folder", "loop", "device", "nowhere", "empty", "missing"):
            is_spare = name not in needed and kind == "missing"
            effect = OTHER if is_spare else REFUSED
            yield (
                f"{name} is {kind}",
                effect,
                lambda f, n=name, k=kind: replace(f / n, k),
            )
    for name in needed:
        if name == WEIGHTS_FILE:
            continue
        yield (
            f"{name} in UTF-16",
            REFUSED,
            edit(name, lambda b: b.decode().encode("utf-16")),
        )
        yield (
            f"{name} in UTF-32",
            REFUSED,
            edit(name, lambda b: b.decode().encode("utf-32")),
        )
        yield f"{name} with a BOM", EITHER, edit(name, lambda b: b"\xef\xbb\xbf" + b)
        yield f"{name} with a NUL", REFUSED, edit(name, lambda b: b + b"\0")
        yield f"{name} twice", REFUSED, edit(name, lambda b: b + b)
        yield f"{name} cut", REFUSED, edit(name, lambda b: b[: len(b) // 2])
        yield f"{name} in CRLF", SAME, edit(name, lambda b: b.replace(b"\n", b"\r\n"))
        yield (
            f"{name} deep",
            REFUSED,
            write(name, '{"a":' + "[" * 10**5 + "]" * 10**5 + "}"),
        )
        yield f"{name} with a comment", REFUSED, edit(name, lambda b: b"// x\n" + b)
        yield (
            f"{name} of a long number",
            OTHER,
            edit(name, lambda b: b'{"n": ' + b"9" * 10**5 + b"," + b[1:]),
        )
        yield (
            f"{name} of a key twice",
            OTHER,
            edit(name, lambda b: b'{"model_type": "gpt2", "model": 3,' + b[1:]),
        )
    yield (
        "weights linked",
        SAME,
        lambda f: link(f / WEIGHTS_FILE, f.parent / f"{f.name}.blob"),
    )
    yield (
        "config linked",
        SAME,
        lambda f: link(f / "config.json", f.parent / f"{f.name}.blob"),
    )
    for name in (
        "README",
        ".git",
        "notes.bin",
        "pytorch_model.bin",
        "training_args.bin",
        "a.safetensors.tmp",
    ):
        yield f"{name} beside", SAME, write(name, "x")
    yield "a folder beside", SAME, lambda f: (f / "original" / "x").mkdir(parents=True)
    yield (
        "other weights beside",
        REFUSED,
        lambda f: shutil.copy(f / WEIGHTS_FILE, f / "other.safetensors") and None,
    )
    yield (
        "weights of no name beside",
        REFUSED,
        lambda f: (
            Path(os.fsdecode(os.fsencode(f) + b"/\xff.safetensors")).write_bytes(b"x")
            and None
        ),
    )
    yield (
        "a folder of odd name beside",
        SAME,
        lambda f: Path(os.fsdecode(os.fsencode(f) + b"/\xff")).mkdir(),
    )
    yield (
        "all files read-only",
        SAME,
        lambda f: [p.chmod(0o400) for p in f.iterdir()] and None,
    )
    yield (
        "everything is missing",
        REFUSED,
        lambda f: [p.unlink() for p in f.iterdir()] and None,
    )
