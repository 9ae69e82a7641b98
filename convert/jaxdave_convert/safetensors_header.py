"""What a safetensors file says that it holds, checked before a byte is copied."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LENGTH = 8
_MOST_HEADER = 100_000_000  # the format's own limit
ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file; start counts from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """One weight file: its header's raw bytes (length included) and its tensors.

    tensors: in the order of the file, which they fill without a hole.
    """

    file: str
    size: int
    header: bytes
    tensors: tuple[Tensor, ...]


def read(path: Path, file: str) -> Shard:
    """The header of a safetensors file. Raises ValueError for a broken one."""
    size = path.stat().st_size
    with path.open("rb") as opened:
        start = opened.read(_LENGTH)
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH or not 2 <= length <= min(_MOST_HEADER, size - _LENGTH):
            raise ValueError(f"{file}: truncated or unreadable file (no whole header)")
        header = start + opened.read(length)
    found = tensors_of(header, file)
    end = found[-1].start + found[-1].size if found else len(header)
    if end != size:
        raise ValueError(
            f"{file}: truncated file ({size} bytes, its header asks {end})"
        )
    return Shard(file, size, header, found)


def parse(header: bytes) -> dict[str, Any]:
    """The JSON object of a header. Raises ValueError where a key comes twice."""
    return strict_json(header[_LENGTH:])


def strict_json(content: bytes) -> dict[str, Any]:
    """A JSON object in which no key, at any depth, comes twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice} is named twice")
        return made

    value = json.loads(content.decode("utf-8"), object_pairs_hook=once)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def build(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The header, length included, of a file with these (dtype, shape), in order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * ITEM_SIZES[dtype]
        entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text


def tensors_of(header: bytes, file: str) -> tuple[Tensor, ...]:
    """The tensors of a header, in the order of the file.

    Raises ValueError for a header that is broken, or that leaves holes.
    """
    try:
        entries = parse(header)
        entries.pop("__metadata__", None)
        found = [_tensor(name, entry, len(header)) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file}: truncated or unreadable file (its header: {reason})"
        ) from error
    found.sort(key=lambda tensor: (tensor.start, tensor.size))
    end = len(header)
    for tensor in found:
        if tensor.start != end:
            raise ValueError(f"{file}: tensor {tensor.name} does not follow the last")
        end += tensor.size
    return tuple(found)


def _tensor(name: str, entry: Mapping[str, Any], base: int) -> Tensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    first, last = entry["data_offsets"]
    counts = (*shape, first, last)
    if not all(type(n) is int and n >= 0 for n in counts) or first > last:
        raise ValueError(f"tensor {name} has a wrong shape or place")
    if dtype in ITEM_SIZES and math.prod(shape) * ITEM_SIZES[dtype] != last - first:
        raise ValueError(f"tensor {name} has another size than its shape")
    return Tensor(name, dtype, shape, base + first, last - first)
