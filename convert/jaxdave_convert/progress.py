"""What a conversion has done so far, on disk, so that a killed one goes on."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdave.io import orbax_io
from jaxdave.runtime.files import replace_file
from jaxdave_convert.plan import Plan
from jaxdave_convert.safetensors_header import Shard

try:
    import fcntl
except ImportError:  # Windows, where two conversions into one folder are not kept apart
    fcntl = None


RECORD = "progress.json"
_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished weight file: what it was, and the hashes found."""

    mark: dict[str, Any]
    sha256: str
    tensors: dict[str, str]


def work_folder(dst: Path) -> Path:
    """The hidden folder beside DST in which it is made."""
    return dst.with_name(f".{dst.name}.converting")


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold the work folder; raises ValueError while another process does."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{work} is in use by another conversion; wait for it to end"
            ) from error
        yield


def read(work: Path, plan: Plan) -> dict[str, Done] | None:
    """The finished weight files; None where nothing can be gone on with."""
    try:
        record = json.loads((work / RECORD).read_text(encoding="utf-8"))
        if record["key"] != _key(plan):
            return None
        return {file: Done(**done) for file, done in record["shards"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(work: Path, plan: Plan, done: dict[str, Done]) -> None:
    """Record the finished weight files, whose chunks must be on disk by now."""
    shards = {file: dataclasses.asdict(one) for file, one in done.items()}
    record = {"key": _key(plan), "shards": shards}
    replace_file(work / RECORD, json.dumps(record).encode())


def clear(work: Path) -> None:
    """Empty the work folder, but for its lock."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def close(work: Path) -> None:
    """Take out of a complete checkpoint what only its making needed."""
    (work / RECORD).unlink(missing_ok=True)
    (work / _LOCK).unlink(missing_ok=True)


def mark(folder: Path, shard: Shard) -> dict[str, Any]:
    """What tells whether a weight file is still the one that was read."""
    status = (folder / shard.file).stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "header": hashlib.sha256(shard.header).hexdigest(),
    }


def _key(plan: Plan) -> dict[str, Any]:
    """What must be the same for finished files to be of use."""
    described = orbax_io.to_json(plan.config, plan.dtype)
    return json.loads(json.dumps({"folder": str(plan.source.folder), **described}))
