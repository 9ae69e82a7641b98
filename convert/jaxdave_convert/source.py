"""The folder to convert: which files belong to it, their origin and their tensors.

Nothing here stops at the first problem; all are collected, so that one run names
everything that is wrong with a folder.
"""

import codecs
import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdave.io import hub, orbax_io
from jaxdave.io.safetensors_io import INDEX_FILE, WEIGHTS_FILE, is_inside
from jaxdave.runtime.files import read_json, read_regular
from jaxdave.runtime.messages import one_line
from jaxdave_convert import safetensors_header, torch_bin
from jaxdave_convert.safetensors_header import Shard

# Files that are converted along with the weights. Code never is.
_SIDECARS = ("*.json", "*.txt", "*.jinja", "tokenizer.model", "LICENSE*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint as its folder has it.

    Attributes:
      name: the folder's name or the Hub id.
      folder: the folder.
      revision: commit of a folder that the Hub's client made, where it is recorded.
      raw_config: the content of config.json.
      shards: the weight files that can be read.
      sidecars: names of all other files that go along, sorted.
      recorded_hashes: file name -> sha256 of a weight file, where the Hub's records or
        the index have it.
    """

    name: str
    folder: Path
    revision: str | None
    raw_config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    sidecars: tuple[str, ...]
    recorded_hashes: Mapping[str, str]

    @property
    def tensor_names(self) -> list[str]:
        """Names of all tensors; one that two weight files have is there twice."""
        return [tensor.name for shard in self.shards for tensor in shard.tensors]


def open_source(src: str) -> tuple[CheckpointSource, list[str]]:
    """Open a folder or Hub id for conversion.

    Args:
      src: a folder, or a Hub id "owner/name", which is fetched.

    Returns:
      The source, and everything that is wrong with its files.

    Raises:
      ValueError: there is no folder, no usable config.json or index to judge it by, or
        the folder is converted already.
    """
    name, folder = hub.find_model(src)
    raw = read_json(folder / "config.json")
    if orbax_io.is_orbax_config(raw):
        raise ValueError(
            f"{folder} is converted already; load it with jaxdave, or give --export"
        )
    index_file, weights_file = _weight_file_names(folder)
    index, problems, index_hashes = _read_index(folder, index_file)
    files = [weights_file] if index is None else sorted(set(index.values()))
    shards = _read_shards(folder, files, problems)
    suffix = Path(weights_file).suffix
    _check_against_index(folder, shards, index, suffix, problems)
    names = {path.name for glob in _SIDECARS for path in folder.glob(glob)}
    hub_hashes = {
        shard.file: sha256
        for shard in shards
        if (sha256 := _hub_hash(folder, shard.file))
    }
    source = CheckpointSource(
        name=name,
        folder=folder,
        revision=_hub_revision(folder),
        raw_config=raw,
        shards=shards,
        sidecars=tuple(sorted(name for name in names if (folder / name).is_file())),
        recorded_hashes={**hub_hashes, **index_hashes},
    )
    return source, problems


def _weight_file_names(folder: Path) -> tuple[str, str]:
    """The names of index and single file; those of .bin only without safetensors."""
    if list(folder.glob("*.safetensors")) or (folder / INDEX_FILE).exists():
        return INDEX_FILE, WEIGHTS_FILE
    names = (torch_bin.INDEX_FILE, torch_bin.WEIGHTS_FILE)
    if any((folder / name).exists() for name in names):
        return names
    return INDEX_FILE, WEIGHTS_FILE


def _read_index(
    folder: Path, index_file: str
) -> tuple[dict[str, str] | None, list[str], dict[str, str]]:
    """Read tensor -> file (None without an index), problems, and recorded hashes."""
    path = folder / index_file
    # A link that leads nowhere is no missing file, but one that was lost.
    if not os.path.lexists(path):
        return None, [], {}
    try:
        # With or without a byte-order mark, as all JSON files of a folder.
        content = read_regular(path).removeprefix(codecs.BOM_UTF8)
        value = safetensors_header.parse_strict_json(content)
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise ValueError(
            f"{folder}: {index_file} cannot be used ({reason}); fetch the file again"
        ) from error
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    is_map = (
        isinstance(weight_map, dict)
        and len(weight_map) > 0
        and all(isinstance(file, str) for file in weight_map.values())
    )
    if not is_map:
        return {}, [f"{index_file}: weight_map must map tensors to files"], {}
    metadata = value.get("metadata")
    hashes = metadata.get("sha256") if isinstance(metadata, dict) else None
    return weight_map, [], hashes if isinstance(hashes, dict) else {}


def _read_shards(
    folder: Path, files: list[str], problems: list[str]
) -> tuple[Shard, ...]:
    """Read the header of every weight file; adds to `problems`."""
    shards = []
    for file in files:
        if not is_inside(file):
            problems.append(f"{file}: points outside the folder")
        elif not os.path.isfile(folder / file):  # a name may be too long for pathlib
            problems.append(f"{file}: missing file")
        else:
            is_bin = file.endswith(".bin")
            read = torch_bin.read_shard if is_bin else safetensors_header.read_shard
            try:
                shards.append(read(folder / file, file))
            except (ValueError, OSError) as error:
                problems.append(one_line(error))
    return tuple(shards)


def _check_against_index(
    folder: Path,
    shards: tuple[Shard, ...],
    index: Mapping[str, str] | None,
    suffix: str,
    problems: list[str],
) -> None:
    """Add files and tensors that contradict the index, or come twice, to `problems`.

    `suffix` is that of weight files.
    """
    # Beside a single file of PyTorch's there may be others, such as training_args.bin.
    if index is not None or suffix == ".safetensors":
        # A weight file that the index leaves out
        # may be what is left of another download.
        known = {shard.file for shard in shards} | set((index or {}).values())
        known |= {WEIGHTS_FILE} if index is None else set()
        for path in sorted(folder.glob(f"*{suffix}")):
            if path.name not in known:
                problems.append(f"{path.name}: extra file, no part of the checkpoint")
    file_of: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in file_of:
                both = f"{file_of[tensor.name]} and {shard.file}"
                problems.append(f"tensor {tensor.name} is twice, in {both}")
            elif index is not None and index.get(tensor.name) != shard.file:
                problems.append(
                    f"{shard.file}: tensor {tensor.name} is there against the index"
                )
            file_of[tensor.name] = shard.file
    readable = {shard.file for shard in shards}
    for name, file in (index or {}).items():
        if file in readable and name not in file_of:
            problems.append(f"{file}: tensor {name} of the index is missing")


def _hub_hash(folder: Path, file: str) -> str | None:
    """The sha256 that the Hub gave for a file: the name of its blob, or its record."""
    path = folder / file
    if path.is_symlink() and _SHA256.fullmatch(path.resolve().name):
        return path.resolve().name
    lines = _download_record(folder, file)
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


def _hub_revision(folder: Path) -> str | None:
    """The commit of a folder that the Hub's client made."""
    if folder.parent.name == "snapshots" and _REVISION.fullmatch(folder.name):
        return folder.name
    lines = _download_record(folder, "config.json")
    return lines[0] if lines and _REVISION.fullmatch(lines[0]) else None


def _download_record(folder: Path, file: str) -> list[str]:
    """The lines that the Hub's client writes beside a download: commit, hash, time."""
    path = folder / ".cache" / "huggingface" / "download" / f"{file}.metadata"
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
