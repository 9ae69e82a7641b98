"""A source folder: which files belong to it, where it came from, what they hold."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdave.io import hub
from jaxdave.io.safetensors_io import INDEX, ONE_FILE, is_inside
from jaxdave.runtime.files import read_json
from jaxdave_convert import safetensors_header, torch_bin
from jaxdave_convert.safetensors_header import Shard

# What goes along with the weights. Code never does.
_SIDECARS = ("*.json", "*.txt", "*.jinja", "tokenizer.model", "LICENSE*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint as it was found.

    shards: the weight files. sidecars: names of all other files that go along.
    known: sha256 of weight files, where the Hub's records or the index tell.
    """

    name: str
    folder: Path
    revision: str | None
    raw: Mapping[str, Any]
    shards: tuple[Shard, ...]
    sidecars: tuple[str, ...]
    known: Mapping[str, str]

    @property
    def tensor_names(self) -> list[str]:
        """Of all shards, a name that is in two of them twice."""
        return [tensor.name for shard in self.shards for tensor in shard.tensors]


def open_source(text: str) -> tuple[Source, list[str]]:
    """A folder or Hub id as a source, and everything wrong with its files.

    Raises ValueError where there is no folder or no config.json to judge by.
    """
    name, folder = hub.find_model(text)
    raw = read_json(folder / "config.json")
    if raw.get("format") == "jaxdave":
        raise ValueError(
            f"{folder} is converted already; load it with jaxdave, or give --export"
        )
    index_file, one_file = _layout(folder)
    listed, problems, hashes = _index(folder, index_file, one_file)
    shards = _shards(folder, listed, problems)
    _compare(folder, shards, listed, problems)
    found = {path.name for glob in _SIDECARS for path in folder.glob(glob)}
    sidecars = tuple(
        sorted(n for n in found if (folder / n).is_file() and is_inside(folder, n))
    )
    files = [shard.file for shard in shards]
    known = {file: sha for file in files if (sha := _known(folder, file))}
    revision = _revision(folder)
    made = Source(name, folder, revision, raw, shards, sidecars, {**known, **hashes})
    return made, problems


def _layout(folder: Path) -> tuple[str, str]:
    """The names of index and single file; .bin only where nothing else is."""
    if list(folder.glob("*.safetensors")) or (folder / INDEX).exists():
        return INDEX, ONE_FILE
    if (folder / torch_bin.INDEX).exists() or (folder / torch_bin.ONE_FILE).exists():
        return torch_bin.INDEX, torch_bin.ONE_FILE
    return INDEX, ONE_FILE


def _index(
    folder: Path, index_file: str, one_file: str
) -> tuple[dict[str, str] | None, list[str], dict[str, str]]:
    """Tensor -> file (None for a single file), problems, and hashes that it gives."""
    path = folder / index_file
    if not path.exists():
        return None, [], {}
    try:
        value = safetensors_header.strict_json(path.read_bytes())
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: {index_file} cannot be used ({reason}); fetch the file again"
        ) from error
    weight_map = value.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        return {}, [f"{index_file}: weight_map must map tensors to files"], {}
    if not all(isinstance(file, str) for file in weight_map.values()):
        return {}, [f"{index_file}: weight_map must map tensors to files"], {}
    said = (value.get("metadata") or {}).get("sha256")
    hashes = said if isinstance(said, dict) else {}
    return weight_map, [], hashes


def _shards(
    folder: Path, listed: Mapping[str, str] | None, problems: list[str]
) -> tuple[Shard, ...]:
    """The header of every file that the folder should have."""
    one_file = _layout(folder)[1]
    wanted = [one_file] if listed is None else sorted(set(listed.values()))
    found = []
    for file in wanted:
        if not is_inside(folder, file):
            problems.append(f"{file}: points outside the folder")
        elif not (folder / file).is_file():
            problems.append(f"{file}: missing file")
        else:
            read = torch_bin.read if file.endswith(".bin") else safetensors_header.read
            try:
                found.append(read(folder / file, file))
            except (ValueError, OSError) as error:
                problems.append(" ".join(str(error).split()))
    return tuple(found)


def _compare(
    folder: Path, shards, listed: Mapping[str, str] | None, problems: list[str]
) -> None:
    """Report files and tensors that are there against the index, or twice."""
    known = {shard.file for shard in shards} | set((listed or {}).values())
    suffix = Path(_layout(folder)[1]).suffix
    if listed is not None:
        for path in sorted(folder.glob(f"*{suffix}")):
            if path.name not in known:
                problems.append(f"{path.name}: extra file, no part of the checkpoint")
    homes: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in homes:
                both = f"{homes[tensor.name]} and {shard.file}"
                problems.append(f"tensor {tensor.name} is twice, in {both}")
            elif listed is not None and listed.get(tensor.name) != shard.file:
                problems.append(
                    f"{shard.file}: tensor {tensor.name} is there against the index"
                )
            homes[tensor.name] = shard.file
    opened = {shard.file for shard in shards}
    for name, file in (listed or {}).items():
        if file in opened and name not in homes:
            problems.append(f"{file}: tensor {name} of the index is missing")


def _known(folder: Path, file: str) -> str | None:
    """The sha256 that the Hub gave for a file: the name of its blob, or its record."""
    path = folder / file
    if path.is_symlink() and _SHA256.fullmatch(path.resolve().name):
        return path.resolve().name
    lines = _record(folder, file)
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


def _revision(folder: Path) -> str | None:
    """The commit of a folder that the Hub's client made."""
    if folder.parent.name == "snapshots" and _REVISION.fullmatch(folder.name):
        return folder.name
    lines = _record(folder, "config.json")
    return lines[0] if lines and _REVISION.fullmatch(lines[0]) else None


def _record(folder: Path, file: str) -> list[str]:
    """What the Hub's client notes beside a download: commit, hash, time."""
    path = folder / ".cache" / "huggingface" / "download" / f"{file}.metadata"
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
