"""Old .bin checkpoints, only with torch and only as plain tensors."""

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdave_convert import safetensors_header
from jaxdave_convert.safetensors_header import Shard

ONE_FILE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
_DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


def read(path: Path, file: str) -> Shard:
    """The tensors of a .bin file, as the safetensors file that would hold them.

    Raises ValueError without torch, and for a file that is more than tensors.
    """
    tensors = load(path, file)
    kinds = {
        name: (_DTYPES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    if odd := [name for name, (dtype, _) in kinds.items() if dtype[:5] == "torch"]:
        raise ValueError(
            f"{file}: tensor {odd[0]} has dtype {kinds[odd[0]][0]}, not "
            f"{'/'.join(safetensors_header.ITEM_SIZES)}"
        )
    header = safetensors_header.build(kinds, {"format": "pt"})
    found, end = [], len(header)
    for name, (dtype, shape) in kinds.items():
        size = math.prod(shape) * safetensors_header.ITEM_SIZES[dtype]
        found.append(safetensors_header.Tensor(name, dtype, shape, end, size))
        end += size
    return Shard(file, path.stat().st_size, header, tuple(found))


def load(path: Path, file: str) -> dict[str, Any]:
    """Name -> torch tensor, mapped where the file allows; no pickled code is run."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file}: .bin files need torch; install jaxdave[torch], or fetch the "
            "safetensors files of the model"
        ) from error
    mapped = zipfile.is_zipfile(path)  # the oldest files cannot be
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # unpickling has many kinds of failure
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{file}: unreadable, or more than tensors ({reason})"
        ) from error
    if not isinstance(found, dict) or not all(map(torch.is_tensor, found.values())):
        raise ValueError(f"{file}: must hold a dictionary of tensors and nothing else")
    return found


def buffers(
    path: Path, file: str, sizes: Mapping[str, Sequence[int]]
) -> Iterator[memoryview]:
    """The bytes of every tensor in turn, in pieces of the sizes asked for."""
    for name, tensor in load(path, file).items():
        raw = tensor.contiguous().view(_bits(tensor)).numpy()
        flat = np.ascontiguousarray(raw).reshape(-1).view(np.uint8).data
        at = 0
        for size in sizes[name]:
            yield flat[at : at + size]
            at += size


def safetensors_name(file: str) -> str:
    """What a .bin file is called once it is written as safetensors."""
    stem = file.removesuffix(".bin")
    return f"{stem.replace('pytorch_model', 'model', 1)}.safetensors"


def _bits(tensor: Any) -> Any:
    import torch

    return torch.int32 if tensor.element_size() == 4 else torch.int16
