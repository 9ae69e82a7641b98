"""Faults of weight files, of their headers and of their index."""

import json
import math
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from bench.harness.file_changes import (
    EITHER,
    OTHER,
    REFUSED,
    SAME,
    Change,
    edit,
    link,
    replace,
)
from jaxdave.io.safetensors_io import INDEX_FILE, WEIGHTS_FILE


def _on_header(change: Callable[[dict[str, Any]], Any]):
    """Change the header of a safetensors file, and leave its body."""

    def apply(folder: Path) -> None:
        path = folder / WEIGHTS_FILE
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header = change(header) or header
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return apply


def _on_tensor(kind: str, change: Callable[[np.ndarray], np.ndarray | None]):
    """Change the first tensor whose name holds a word; None drops it."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        name = next((n for n in sorted(tensors) if kind in n), sorted(tensors)[0])
        value = change(tensors[name])
        del tensors[name]
        if value is not None:
            tensors[name] = np.ascontiguousarray(value)
        save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})

    return apply


def _with_value(value: float):
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[array.size // 3] = value
        return array

    return change


def _first(header: dict[str, Any], word: str) -> dict[str, Any]:
    return next(
        (v for k, v in sorted(header.items()) if word in k), header[max(header)]
    )


def weights(rng: random.Random) -> Iterator[Change]:
    """Faults of a safetensors file."""
    for kind in ("norm", "proj", "wte", "embed", "mlp", "layers.1"):
        for value in (math.nan, math.inf, -math.inf):
            yield f"{kind} holds {value}", REFUSED, _on_tensor(kind, _with_value(value))
        for value in (0.0, 3e38, -3e38, 1e-40):
            yield f"{kind} holds {value}", OTHER, _on_tensor(kind, _with_value(value))
        yield f"{kind} is missing", REFUSED, _on_tensor(kind, lambda _: None)
        yield f"{kind} has a row less", REFUSED, _on_tensor(kind, lambda a: a[:-1])
        yield f"{kind} is flat", EITHER, _on_tensor(kind, np.ravel)
        yield f"{kind} as int", REFUSED, _on_tensor(kind, lambda a: a.astype(np.int32))
        yield f"{kind} as float64", REFUSED, _on_tensor(kind, lambda a: a.astype("f8"))
        yield f"{kind} as float32", SAME, _on_tensor(kind, lambda a: a.astype("f4"))
    yield "all zero", OTHER, _on_all(np.zeros_like)
    yield "all in float32", SAME, _on_all(lambda a: a.astype(np.float32))
    yield "all transposed", REFUSED, _on_all(lambda a: a.T)
    yield "all huge", OTHER, _on_all(lambda a: (a.astype("f4") * 1e30).astype(a.dtype))
    for length in (-1, -8, 0, 1, 7, 8, 9, 100, 10**5):
        yield (
            f"cut at {length}",
            REFUSED,
            edit(WEIGHTS_FILE, lambda b, n=length: b[:n]),
        )
    yield "a byte more", REFUSED, edit(WEIGHTS_FILE, lambda b: b + b"\0")
    yield "a MB more", REFUSED, edit(WEIGHTS_FILE, lambda b: b + bytes(1 << 20))
    for size in (0, 1, 2**31, 2**62, 2**64 - 1):
        prefix = struct.pack("<Q", size)
        yield (
            f"header of {size}",
            REFUSED,
            edit(WEIGHTS_FILE, lambda b, p=prefix: p + b[8:]),
        )
    headers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "header is a list": lambda h: b"[]",
        "header is empty": lambda h: b"{}",
        "header is deep": lambda h: b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "header is no JSON": lambda h: b"{" + b"x" * 100,
        "header is UTF-16": lambda h: json.dumps(h).encode("utf-16"),
        "header names a tensor twice": lambda h: (
            b'{"lm_head.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
            + json.dumps(h).encode()[1:]
        ),
    }
    for name, change in headers.items():
        yield name, EITHER if "twice" in name else REFUSED, _on_header(change)

    def on_first(word: str, **changes: Any):
        def change(header: dict[str, Any]) -> None:
            entry = _first(header, word)
            entry.update(
                {k: v(entry) if callable(v) else v for k, v in changes.items()}
            )

        return _on_header(change)

    for word in ("k_proj", "down_proj", "ff_proj", "norm"):
        swapped = on_first(word, shape=lambda e: e["shape"][::-1])
        yield f"{word} of swapped shape", EITHER, swapped
        for dtype in ("F64", "I8", "BOOL", "X9", "F8_E4M3", None, 3, "bf16"):
            yield f"{word} called {dtype}", REFUSED, on_first(word, dtype=dtype)
        yield f"{word} called F16", OTHER, on_first(word, dtype="F16")
        for shape in ([], [-1], [0], [2**63], ["8"], None, [2**40, 2**40], [1.5]):
            yield f"{word} of shape {shape}", REFUSED, on_first(word, shape=shape)
        for offsets in ([0, 0], [-8, 8], [8, 0], [0, 2**60], [0], "x", None):
            apply = on_first(word, data_offsets=offsets)
            yield f"{word} at {offsets}", REFUSED, apply
    metadata = {"text": "x", "list": [], "numbers": {"a": 1}, "null": None}
    for name, value in metadata.items():

        def set_metadata(header, value=value):
            header["__metadata__"] = value

        yield f"metadata: {name}", EITHER, _on_header(set_metadata)
    yield "a buffer", SAME, _added("model.layers.0.self_attn.rotary_emb.inv_freq")
    yield "a position buffer", EITHER, _added("model.position_ids")
    for name in (
        "x",
        "",
        "model.layers.99.mlp.up_proj.weight",
        "é\n\x1b[31m",
        "a" * 999,
    ):
        yield f"an extra tensor {name[:40]!r}", REFUSED, _added(name)
    for _ in range(12):
        bit = rng.random()
        yield f"a bit of the body flipped at {bit:.3f}", OTHER, _flipped(bit)
    for _ in range(8):
        bit = rng.random()
        yield f"a bit of the header flipped at {bit:.3f}", OTHER, _flipped(bit, True)


def _on_all(change: Callable[[np.ndarray], np.ndarray]):
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        tensors = {k: np.ascontiguousarray(change(v)) for k, v in tensors.items()}
        save_file(tensors, folder / WEIGHTS_FILE)

    return apply


def _added(name: str):
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        save_file({**tensors, name: np.ones(4, np.float32)}, folder / WEIGHTS_FILE)

    return apply


def _flipped(at: float, in_header: bool = False):
    def change(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little") + 8
        low, high = (0, size) if in_header else (size, len(data))
        bit = int(8 * (low + at * (high - low)))
        content = bytearray(data)
        content[bit // 8] ^= 1 << bit % 8
        return bytes(content)

    return edit(WEIGHTS_FILE, change)


def shards(rng: random.Random) -> Iterator[Change]:
    """Faults of two weight files and their index."""

    def split(folder: Path) -> dict[str, str]:
        tensors, files = (
            load_file(folder / WEIGHTS_FILE),
            ("a.safetensors", "b.safetensors"),
        )
        names = sorted(tensors)
        for file, part in zip(files, (names[::2], names[1::2]), strict=True):
            save_file({n: tensors[n] for n in part}, folder / file)
        (folder / WEIGHTS_FILE).unlink()
        return {name: files[i % 2] for i, name in enumerate(names)}

    def indexed(change: Callable[[Path, dict[str, str]], Any]):
        def apply(folder: Path) -> None:
            index = split(folder)
            text = change(folder, index)
            if not isinstance(text, str | bytes):
                text = json.dumps({"metadata": {}, "weight_map": index})
            (folder / INDEX_FILE).write_bytes(
                text if isinstance(text, bytes) else text.encode()
            )

        return apply

    def renamed(to: str):
        def change(folder: Path, index: dict[str, str]) -> None:
            index.update({k: to for k, v in index.items() if v[0] == "b"})

        return change

    yield "two shards", SAME, indexed(lambda f, i: None)
    yield "no index", REFUSED, lambda folder: split(folder) and None
    yield (
        "a shard is missing",
        REFUSED,
        indexed(lambda f, i: (f / "b.safetensors").unlink()),
    )
    yield (
        "a shard is empty",
        REFUSED,
        indexed(lambda f, i: (f / "b.safetensors").write_bytes(b"") and None),
    )
    yield (
        "shards swapped",
        REFUSED,
        indexed(
            lambda f, i: json.dumps(
                {"weight_map": {k: "ab"[v[0] == "a"] + v[1:] for k, v in i.items()}}
            )
        ),
    )
    yield (
        "a tensor of the index is nowhere",
        REFUSED,
        indexed(lambda f, i: i.update(ghost="a.safetensors")),
    )
    yield (
        "a tensor is not in the index",
        REFUSED,
        indexed(lambda f, i: i.pop(min(i)) and None),
    )
    yield (
        "a copy of a shard",
        REFUSED,
        indexed(
            lambda f, i: shutil.copy(f / "a.safetensors", f / "c.safetensors") and None
        ),
    )
    for to in (
        "../b.safetensors",
        "/etc/passwd",
        "..\\b.safetensors",
        "C:\\b.safetensors",
        "\\\\host\\b",
        "a/../../b.safetensors",
        "",
        ".",
        "/",
        "b.safetensors\0",
        "/dev/zero",
        "/proc/self/mem",
        "~/b.safetensors",
        "file:///b.safetensors",
        "b\n.safetensors",
        "con",
        "x" * 5000,
    ):
        yield f"index leads to {to[:30]!r}", REFUSED, indexed(renamed(to))
    for to in (
        "./b.safetensors",
        "b.safetensors/",
        "B.SAFETENSORS",
        "./././b.safetensors",
    ):
        yield f"index leads to {to!r}", EITHER, indexed(renamed(to))
    for value in (
        "{",
        "[]",
        "null",
        "",
        '{"weight_map": null}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": 3}',
        "[" * 100_000,
        '{"weight_map": {"a": ["a.safetensors"]}}',
        "\x00",
        "NaN",
    ):
        yield f"index is {value[:40]!r}", REFUSED, indexed(lambda f, i, v=value: v)
    yield (
        "index in UTF-16",
        REFUSED,
        indexed(lambda f, i: json.dumps({"weight_map": i}).encode("utf-16")),
    )
    yield (
        "index with a BOM",
        SAME,
        indexed(lambda f, i: b"\xef\xbb\xbf" + json.dumps({"weight_map": i}).encode()),
    )
    yield (
        "index of odd metadata",
        EITHER,
        indexed(lambda f, i: json.dumps({"metadata": 3, "weight_map": i})),
    )
    yield (
        "index of another total",
        SAME,
        indexed(
            lambda f, i: json.dumps({"metadata": {"total_size": -1}, "weight_map": i})
        ),
    )
    yield (
        "a linked shard",
        SAME,
        indexed(lambda f, i: link(f / "b.safetensors", f.parent / f"{f.name}.blob")),
    )
    yield (
        "a shard that is a pipe",
        REFUSED,
        indexed(lambda f, i: replace(f / "b.safetensors", "pipe")),
    )
    yield (
        "an index that is a pipe",
        REFUSED,
        lambda folder: split(folder) and os.mkfifo(folder / INDEX_FILE),
    )
    yield (
        "an index that is a folder",
        REFUSED,
        lambda folder: split(folder) and (folder / INDEX_FILE).mkdir(),
    )
    yield (
        "an index that leads nowhere",
        REFUSED,
        lambda folder: split(folder) and (folder / INDEX_FILE).symlink_to("lost"),
    )
