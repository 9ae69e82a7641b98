"""Headers of safetensors files, read and checked before any data is copied.

A file is 8 bytes with the header's length (little endian), the header in JSON, and the
tensors' bytes. The checks are stricter than safetensors' own: no key may come twice,
and the tensors must fill the file without a hole, so that copying them in order copies
all of it.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdave.runtime.messages import one_line

ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
"""Dtypes that can be converted -> bytes of one number."""

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One tensor of a weight file.

    Attributes:
      name: its name.
      dtype: its dtype as safetensors calls it, such as "BF16".
      shape: its shape.
      start: offset of its first byte from the beginning of the file.
      size: its size in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """One weight file.

    Attributes:
      file: its name.
      size: its size in bytes.
      header: the raw bytes of its header, the length in front included.
      tensors: its tensors in the order of their bytes, which follow each other without
        a hole.
    """

    file: str
    size: int
    header: bytes
    tensors: tuple[TensorEntry, ...]


def read_shard(path: Path, file: str) -> Shard:
    """Read the header of a safetensors file.

    Args:
      path: the file.
      file: what error messages call it.

    Returns:
      The header and the tensors that it lists.

    Raises:
      ValueError: the file is no safetensors file, is cut short, or has holes.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        # Checked before that many bytes are read:
        # a damaged length could ask for anything.
        max_length = min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES)
        if len(prefix) < _LENGTH_BYTES or not 2 <= length <= max_length:
            raise ValueError(f"{file}: truncated or unreadable file (no whole header)")
        header = prefix + stream.read(length)
    tensors = parse_tensors(header, file)
    end = tensors[-1].start + tensors[-1].size if tensors else len(header)
    if end != size:
        raise ValueError(
            f"{file}: truncated file ({size} bytes, its header asks {end})"
        )
    return Shard(file=file, size=size, header=header, tensors=tensors)


def parse_header(header: bytes) -> dict[str, Any]:
    """Parse the JSON object of a header.

    Args:
      header: the header's raw bytes, length included.

    Returns:
      Tensor name -> its entry, and "__metadata__" where the header has it.

    Raises:
      ValueError: the header is no JSON object, or a key comes twice in it.
    """
    return parse_strict_json(header[_LENGTH_BYTES:])


def parse_strict_json(content: bytes) -> dict[str, Any]:
    """Parse a JSON object in which no key may come twice, at any depth.

    JSON parsers take the last of two equal keys in silence; another program may take
    the first.

    Args:
      content: JSON in UTF-8.

    Returns:
      The object.

    Raises:
      ValueError: the content is no JSON object, or a key comes twice.

    Example:
      >>> parse_strict_json(b'{"a": 1, "a": 2}')
      Traceback (most recent call last):
      ...
      ValueError: a is named twice
    """

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            names = [name for name, _ in pairs]
            duplicate = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{duplicate} is named twice")
        return mapping

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Build the header of a file.

    Args:
      tensors: tensor name -> (dtype, shape), in the order of the file.
      metadata: what goes under "__metadata__"; nothing does if it is empty.

    Returns:
      The header's raw bytes, length included, padded as safetensors pads it.

    Example:
      >>> build_header({"w": ("F32", (2,))}, {})[8:]
      b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
    """
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
    # The data begins at a multiple of 8 bytes, so that arrays can be mapped in place.
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def parse_tensors(header: bytes, file: str) -> tuple[TensorEntry, ...]:
    """Parse the tensors of a header.

    Args:
      header: the header's raw bytes, length included.
      file: what error messages call the file.

    Returns:
      The tensors in the order of their bytes.

    Raises:
      ValueError: the header is broken, or the tensors overlap or leave holes.
    """
    try:
        entries = parse_header(header)
        metadata = entries.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not texts")
        tensors = [
            _parse_tensor(name, entry, len(header)) for name, entry in entries.items()
        ]
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        reason = one_line(error)
        raise ValueError(
            f"{file}: truncated or unreadable file (its header: {reason})"
        ) from error
    # Tensors without bytes sort before the one that starts at the same place.
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size))
    # Each tensor begins where the last one ends: neither overlaps nor holes.
    end = len(header)
    for tensor in tensors:
        if tensor.start != end:
            raise ValueError(f"{file}: tensor {tensor.name} does not follow the last")
        end += tensor.size
    return tuple(tensors)


def _parse_tensor(name: str, entry: Mapping[str, Any], data_start: int) -> TensorEntry:
    """Parse one entry, whose offsets count from the end of the header."""
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    first, last = entry["data_offsets"]
    counts = (*shape, first, last)
    if not all(type(n) is int and n >= 0 for n in counts) or first > last:
        raise ValueError(f"tensor {name} has a wrong shape or place")
    if dtype in ITEM_SIZES and math.prod(shape) * ITEM_SIZES[dtype] != last - first:
        raise ValueError(f"tensor {name} has another size than its shape")
    return TensorEntry(name, dtype, shape, data_start + first, last - first)
