"""Checkpoints in PyTorch's older .bin files.

They are pickles, so they are read by torch and with `weights_only`: tensors are
accepted, code never runs.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdave.runtime.messages import one_line
from jaxdave_convert import safetensors_header
from jaxdave_convert.safetensors_header import Shard, TensorEntry

WEIGHTS_FILE = "pytorch_model.bin"
INDEX_FILE = "pytorch_model.bin.index.json"

_DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


def read_shard(path: Path, file: str) -> Shard:
    """Read the tensors of a .bin file.

    Args:
      path: the file.
      file: what error messages call it.

    Returns:
      The shard with the header of the safetensors file that would hold these tensors.

    Raises:
      ValueError: torch is not installed, or the file has more in it than tensors.
    """
    tensors = load_tensors(path, file)
    kinds = {
        name: (_DTYPES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    unknown = [name for name, (dtype, _) in kinds.items() if dtype[:5] == "torch"]
    if unknown:
        raise ValueError(
            f"{file}: tensor {unknown[0]} has dtype {kinds[unknown[0]][0]}, not "
            f"{'/'.join(safetensors_header.ITEM_SIZES)}"
        )
    # A .bin file is treated as the safetensors file of its tensors from here on.
    header = safetensors_header.build_header(kinds, {"format": "pt"})
    entries, end = [], len(header)
    for name, (dtype, shape) in kinds.items():
        size = math.prod(shape) * safetensors_header.ITEM_SIZES[dtype]
        entries.append(TensorEntry(name, dtype, shape, start=end, size=size))
        end += size
    return Shard(
        file=file, size=path.stat().st_size, header=header, tensors=tuple(entries)
    )


def load_tensors(path: Path, file: str) -> dict[str, Any]:
    """Load a .bin file, mapped into memory where the file allows it.

    Args:
      path: the file.
      file: what error messages call it.

    Returns:
      Tensor name -> torch tensor on the CPU.

    Raises:
      ValueError: torch is not installed, or the file has more in it than tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file}: .bin files need torch; install jaxdave[torch], or fetch the "
            "safetensors files of the model"
        ) from error
    can_map = zipfile.is_zipfile(path)  # files older than torch 1.6 are no zip files
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    except Exception as error:  # unpickling has many kinds of failure
        reason = one_line(error)[:160]
        raise ValueError(
            f"{file}: unreadable, or more than tensors ({reason})"
        ) from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"{file}: must hold a dictionary of tensors and nothing else")
    return tensors


def tensor_blocks(
    path: Path, file: str, byte_counts: Mapping[str, Sequence[int]]
) -> Iterator[memoryview]:
    """Yield the bytes of every tensor in turn.

    Args:
      path: the .bin file.
      file: what error messages call it.
      byte_counts: tensor name -> the sizes in bytes of the blocks that its data is
        divided into.

    Yields:
      The blocks.

    Raises:
      ValueError: as `load_tensors` does.
    """
    for name, tensor in load_tensors(path, file).items():
        # NumPy has no bfloat16, so the bits are passed on as integers.
        bits = tensor.contiguous().view(_integer_dtype(tensor)).numpy()
        data = np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data
        start = 0
        for size in byte_counts[name]:
            yield data[start : start + size]
            start += size


def safetensors_name(file: str) -> str:
    """Name the safetensors file that a .bin file is exported as.

    Args:
      file: name of the .bin file.

    Returns:
      The name in Hugging Face's style.

    Example:
      >>> safetensors_name("pytorch_model-00001-of-00002.bin")
      'model-00001-of-00002.safetensors'
    """
    stem = file.removesuffix(".bin")
    return f"{stem.replace('pytorch_model', 'model', 1)}.safetensors"


def _integer_dtype(tensor: Any) -> Any:
    """The torch integers of a tensor's width."""
    import torch

    return torch.int32 if tensor.element_size() == 4 else torch.int16
