"""Synthetic checkpoints in the shape of published ones, written shard by shard."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxdave_convert import safetensors_header

from jaxdave.core.config import ModelConfig
from jaxdave.io import families, hf_config, orbax_io
from jaxdave.io.hub import find_model
from jaxdave.models.presets import preset

INDEX = "model.safetensors.index.json"
"""Name of the file that says which weight file holds a tensor."""
_RANDOM_BYTES = 64 << 20
_HEAD_BYTES = 4 << 10  # of a tensor of a sparse checkpoint: a block of the disk
_LAYER = re.compile(r"layers\.(\d+)\.")


def config_of_depth(shape: str, share: float) -> ModelConfig:
    """Build a preset's config with a share of its layers.

    Args:
        shape: name of the preset.
        share: share of the layers, in (0, 1]; the dense first ones of a mixture of
            experts and one after them are left.

    Returns:
        The config.
    """
    full = preset(shape)
    num_layers = max(full.dense_layers + 1, round(full.num_layers * share))
    return preset(shape, num_layers=num_layers)


def weight_map(
    config: ModelConfig, published: Path | None, shard_bytes: int
) -> dict[str, str]:
    """Assign every tensor to a shard.

    Args:
        config: the model.
        published: folder of the published index; None fills shards in the order of the
            layers, as transformers does.
        shard_bytes: size of a shard, which only a larger tensor exceeds.

    Returns:
        File name by tensor name: the published ones, less the layers left out.

    Raises:
        ValueError: if the published index has other tensors than the family.
    """
    family = families.FAMILIES[config.family]
    targets = families.checkpoint_tensors(family, config)
    if published is None:
        shapes = {name: target.shape for name, target in targets.items()}
        return _fill_shards(shapes, shard_bytes)
    index = published / INDEX
    listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shards = {
        name: file
        for name, file in listed.items()
        if not (m := _LAYER.search(name)) or int(m[1]) < config.num_layers
    }
    if shards.keys() != targets.keys():
        raise ValueError(f"{index} has other tensors than the table of {family.name}")
    return shards


def _fill_shards(
    shapes: Mapping[str, tuple[int, ...]], shard_bytes: int
) -> dict[str, str]:
    def place(name: str) -> tuple[int, int]:
        layer = _LAYER.search(name)
        # The embedding comes before the layers, the norm and the head after them.
        return (1, int(layer[1])) if layer else (0 if "embed" in name else 2, 0)

    files, size, number = dict[str, str](), 0, 1
    for name in sorted(shapes, key=place):  # stable: else in the order of the table
        num_bytes = 2 * int(np.prod(shapes[name]))
        if size and size + num_bytes > shard_bytes:
            size, number = 0, number + 1
        size += num_bytes
        files[name] = f"model-{number:05d}.safetensors"
    return files


def write_source(
    folder: Path,
    config: ModelConfig,
    published: Path | None,
    *,
    shard_bytes: int,
    is_sparse: bool = False,
) -> int:
    """Write a checkpoint of random weights in bfloat16.

    Args:
        folder: an empty folder.
        config: the model.
        published: folder of the published files, or None.
        shard_bytes: size of a shard where the index is not published.
        is_sparse: leave all but the beginning of each tensor a hole of its file, which
            takes no place on the disk and reads as zeros.

    Returns:
        Size of the largest weight file in bytes.
    """
    family = families.FAMILIES[config.family]
    targets = families.checkpoint_tensors(family, config)
    shards = weight_map(config, published, shard_bytes)
    noise = np.random.default_rng(0).normal(scale=0.02, size=_RANDOM_BYTES // 4)
    # The upper half of a float32 is a bfloat16.
    data = (noise.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    names: dict[str, list[str]] = {}
    for name, file in shards.items():
        names.setdefault(file, []).append(name)
    for file in sorted(names):
        kinds = {name: ("BF16", targets[name].shape) for name in names[file]}
        header = safetensors_header.build_header(kinds, {"format": "pt"})
        with (folder / file).open("wb") as opened:
            opened.write(header)
            end, turn = len(header), 0
            for tensor in safetensors_header.parse_tensors(header, file):
                end, turn = end + tensor.size, turn + 1
                if is_sparse:
                    # Other bytes in each, so that a tensor in another's place shows.
                    first = turn * _HEAD_BYTES % (len(data) - _HEAD_BYTES)
                    size = min(_HEAD_BYTES, tensor.size)
                    opened.write(data[first : first + size])
                    opened.seek(end)
                    continue
                for first in range(0, tensor.size, len(data)):
                    opened.write(data[: min(len(data), tensor.size - first)])
            opened.truncate(end)
            os.fsync(opened.fileno())
    write_sidecars(folder, config, shards, published)
    return max((folder / file).stat().st_size for file in names)


def write_sidecars(
    folder: Path, config: ModelConfig, shards: dict[str, str], published: Path | None
) -> None:
    """Write config, index and tokenizer.

    Args:
        folder: the checkpoint folder.
        config: the model.
        shards: file name by tensor name.
        published: folder of the published tokenizer; None takes the demo's.
    """
    for path in (published or find_model(None)[1]).iterdir():
        if "token" in path.name or path.name in ("vocab.json", "merges.txt"):
            shutil.copyfile(path, folder / path.name)
    raw = hf_config.to_json(config, "bfloat16")
    if published is None:
        # The special ids and vocabulary size of a published model do not fit the demo's
        # tokenizer; without these keys the converter asks the tokenizer for both.
        raw = {
            key: value
            for key, value in raw.items()
            if key not in ("mask_token_id", "pad_token_id", "real_vocab_size")
        }
        raw["eos_token_id"] = 0
    orbax_io.write_json(folder / "config.json", raw)
    orbax_io.write_json(folder / INDEX, {"weight_map": shards})
