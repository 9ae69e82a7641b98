"""What a conversion has finished, recorded on disk, so that a killed one resumes.

A conversion writes into a hidden folder beside its destination. The record there lists
the weight files whose chunks are complete; the next run with the same source and
options skips those.
"""

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
from jaxdave.runtime.locks import LOCK_FILE, Busy, locked_folder
from jaxdave_convert.plan import ConversionPlan
from jaxdave_convert.safetensors_header import Shard

RECORD_FILE = "progress.json"


@dataclasses.dataclass(frozen=True)
class FinishedShard:
    """A weight file that has been converted. The fields are keys of the record.

    Attributes:
      mark: what the file was when it was read, see `file_mark`.
      sha256: hash of the whole file, in hexadecimal.
      tensors: tensor name -> hash of its bytes, for the tensors that are compared.
    """

    mark: dict[str, Any]
    sha256: str
    tensors: dict[str, str]


def work_folder(dst: Path) -> Path:
    """Name the hidden folder in which a destination is made.

    Args:
      dst: the destination.

    Returns:
      A folder on the same file system, so that it can be renamed.
    """
    return dst.with_name(f".{dst.name}.converting")


@contextlib.contextmanager
def lock_folder(work: Path) -> Iterator[None]:
    """Hold a work folder for this process; makes it where it does not exist.

    Args:
      work: the folder.

    Raises:
      ValueError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(work))
        except Busy:
            raise ValueError(
                f"{work} is in use by another conversion; wait for it to end"
            ) from None
        yield


def read_record(work: Path, plan: ConversionPlan) -> dict[str, FinishedShard] | None:
    """Read which weight files are finished.

    Args:
      work: the work folder.
      plan: the conversion that is to resume.

    Returns:
      File name -> what is known of it; None without a record of this very conversion.
    """
    try:
        record = json.loads((work / RECORD_FILE).read_text(encoding="utf-8"))
        if record["key"] != _record_key(plan):
            return None
        shards = record["shards"].items()
        return {file: FinishedShard(**fields) for file, fields in shards}
    # A record that is broken or of another version counts as none: the run starts over.
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(
    work: Path, plan: ConversionPlan, finished: dict[str, FinishedShard]
) -> None:
    """Record which weight files are finished.

    Args:
      work: the work folder.
      plan: the conversion.
      finished: file name -> what is known of it. Its chunks must be on disk by now, not
        in the memory of the kernel only.
    """
    shards = {file: dataclasses.asdict(shard) for file, shard in finished.items()}
    record = {"key": _record_key(plan), "shards": shards}
    replace_file(work / RECORD_FILE, json.dumps(record).encode())


def clear_folder(work: Path) -> None:
    """Empty a work folder except for its lock.

    Args:
      work: the folder, locked.
    """
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def remove_record(work: Path) -> None:
    """Remove from a complete checkpoint what only its making needed.

    Args:
      work: the folder.
    """
    (work / RECORD_FILE).unlink(missing_ok=True)


def file_mark(folder: Path, shard: Shard) -> dict[str, Any]:
    """Identify the present state of a weight file without reading it.

    Args:
      folder: the source's folder.
      shard: the weight file.

    Returns:
      Its size in bytes, time of change and hash of its header; equal marks mean that
      the file has not changed.
    """
    # Hashing a file of gigabytes to see that it is
    # unchanged would take as long as copying it.
    status = (folder / shard.file).stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "header": hashlib.sha256(shard.header).hexdigest(),
    }


def _record_key(plan: ConversionPlan) -> dict[str, Any]:
    """What two runs must have in common for one to use the other's files."""
    key = orbax_io.to_json(plan.config, plan.dtype)
    # Through JSON and back, as tuples come back from the record as lists.
    return json.loads(json.dumps({"folder": str(plan.source.folder), **key}))
