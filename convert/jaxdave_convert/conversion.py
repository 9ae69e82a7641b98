"""A conversion from beginning to end: planned, copied, recorded, put into place.

Everything is made in a hidden folder beside the destination and renamed at the end, so
the destination is complete or absent. A run that ends early leaves its finished weight
files in the hidden folder for the next run.
"""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxdave.io import orbax_io
from jaxdave.io.safetensors_io import describe_unused
from jaxdave.io.tokenizer import load_codec
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.files import check_path, read_json, replace_folder
from jaxdave.runtime.interrupts import removed_on_interrupt, unbroken
from jaxdave.runtime.locks import LOCK_FILE
from jaxdave_convert import manifest, resume_record, verify, zarr_layout
from jaxdave_convert.plan import ConversionOptions, ConversionPlan, plan_conversion
from jaxdave_convert.resume_record import FinishedShard
from jaxdave_convert.safetensors_header import Shard
from jaxdave_convert.shard_copy import OnProgress, copy_shard, ignore_progress

OnMessage = Callable[[str], None]
"""Called with a sentence that the user should read."""

# No space, no quota, or a file larger than the account may write.
_DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    family: str | None = None,
    dtype: str | None = None,
    block_length: int | None = None,
    mask_id: int | None = None,
    verify_count: int = 0,
    overwrite: bool = False,
) -> None:
    """Convert a PyTorch checkpoint to a folder that `jaxdave.load` reads.

    Args:
      src: a folder in a family's Hugging Face layout, or a Hub id "owner/name".
      dst: the folder to make.
      family: a name of `jaxdave.io.families.FAMILIES`; None: as the files say.
      dtype: "float32", "bfloat16" or "float16", what the result is stored as;
        None: the narrowest that keeps every stored bit.
      block_length: length of a block in tokens, where config.json does not name it.
      mask_id: id of the mask token, where no file names it.
      verify_count: number of tensors to read back and compare bit by bit.
      overwrite: replaces an older conversion at `dst`.

    Raises:
      ValueError: one line that names everything wrong with the source, the options, the
        destination or the space on the disk.
      OSError: a file cannot be read or written.

    Example:
      ::

        convert("JetLM/SDAR-4B-Chat", "sdar-4b", block_length=4, verify_count=8)
        model = jaxdave.load("sdar-4b", dtype="bfloat16")
    """
    options = ConversionOptions(
        family=family, dtype=dtype, block_length=block_length, mask_id=mask_id
    )
    plan = make_plan(os.fspath(src), Path(dst), options, overwrite)
    run_plan(plan, Path(dst), verify_count=verify_count, overwrite=overwrite)


def make_plan(
    src: str, dst: Path, options: ConversionOptions, overwrite: bool
) -> ConversionPlan:
    """Check the destination, then plan the conversion.

    Args:
      src: a folder or a Hub id, which is fetched.
      dst: the folder to make.
      options: what the caller overrides.
      overwrite: `dst` may be an older conversion.

    Returns:
      The plan.

    Raises:
      ValueError: the destination is in use, or the source cannot be converted.
    """
    check_destination(dst, overwrite)
    plan = plan_conversion(src, options)
    # What could not be loaded afterwards is refused before anything is copied.
    load_codec(plan.source.folder, config=plan.config)
    return plan


def run_plan(
    plan: ConversionPlan,
    dst: Path,
    *,
    overwrite: bool = False,
    verify_count: int = 0,
    on_progress: OnProgress = ignore_progress,
    on_message: OnMessage = lambda message: None,
) -> None:
    """Carry out a conversion; the destination appears complete or not at all.

    Args:
      plan: the conversion.
      dst: the folder to make.
      overwrite: `dst` may be an older conversion, which is replaced.
      verify_count: number of tensors to read back and compare bit by bit.
      on_progress: called with the bytes that have been read.
      on_message: called with what the user should know.

    Raises:
      ValueError: the source has changed or is damaged, the disk is full, or another
        process converts to the same destination, or has done so.
      OSError: a file cannot be read or written.
    """
    dst = dst.absolute()
    work = resume_record.work_folder(dst)
    with resume_record.lock_folder(work), removed_on_interrupt(work) as keep:
        # Looked at again, as another conversion may have ended since.
        check_destination(dst, overwrite)
        _check_space(plan, dst.parent, work)
        if resume_record.read_record(work, plan):
            keep()
        try:
            _fill_folder(plan, work, verify_count, on_progress, on_message, keep)
        except BaseException as error:
            # Finished files are worth keeping for the next run where this one was cut
            # off. A source that was refused leaves nothing behind.
            finished = resume_record.read_record(work, plan)
            if not finished or isinstance(error, ValueError):
                shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in _DISK_FULL_ERRORS:
                message = _disk_full_message(plan, dst, error, finished)
                raise ValueError(message) from error
            raise
        # Only a complete folder gets here. Renaming
        # it is the one step that others can see.
        with unbroken(f"{dst}"):
            resume_record.remove_record(work)
            replace_folder(work, dst)
            # It goes along: without it another process could begin in the old place.
            (dst / LOCK_FILE).unlink(missing_ok=True)


def check_destination(dst: Path, overwrite: bool) -> None:
    """Check that a destination is free, or a conversion that may be replaced.

    Args:
      dst: the folder to make.
      overwrite: `dst` may be an older conversion.

    Raises:
      ValueError: it is neither, or its name is not UTF-8.
    """
    check_path(dst.absolute())
    if not dst.exists() and not dst.is_symlink():
        return
    is_converted = dst.is_dir() and orbax_io.is_orbax_config(
        read_json(dst / "config.json", optional=True)
    )
    if not is_converted:
        raise ValueError(
            f"{dst} exists and is no checkpoint of jaxdave-convert; choose a new folder"
        )
    if not overwrite:
        raise ValueError(f"{dst} exists; replace it with --overwrite, or choose a new")


def _fill_folder(
    plan: ConversionPlan,
    work: Path,
    verify_count: int,
    on_progress: OnProgress,
    on_message: OnMessage,
    keep: Callable[[], None],
) -> None:
    """Make the whole checkpoint in the work folder, from where the last run ended.

    Calls `keep` once the folder holds something that the next run can use.
    """
    # 1. Take up the last run of this very conversion, or start with empty arrays.
    finished = resume_record.read_record(work, plan)
    if finished is None:
        if (work / resume_record.RECORD_FILE).exists():
            on_message(
                f"{work}: made from another source or other options; starting over"
            )
        resume_record.clear_folder(work)
        zarr_layout.make_empty_arrays(work, plan)
        finished = {}
        resume_record.write_record(work, plan, finished)
    # 2. Copy file by file. A file that has changed since it was recorded is read again.
    for shard in plan.source.shards:
        mark = resume_record.file_mark(plan.source.folder, shard)
        if shard.file in finished and finished[shard.file].mark == mark:
            on_progress(shard.size)
            continue
        if shard.file in finished:
            on_message(
                f"{shard.file} has changed since the run that was cut off; reading it"
            )
        finished[shard.file] = _convert_shard(plan, shard, work, mark, on_progress)
        # `copy_shard` has waited for the disk, so the record holds after a crash too.
        resume_record.write_record(work, plan, finished)
        keep()
    # 3. What can only be checked once all files
    # are there; then everything but the weights.
    _check_tied_head(plan, finished)
    if plan.unwritten:
        on_message(describe_unused(plan.source.folder, plan.unwritten))
    orbax_io.check_arrays(work, param_shapes(plan.config))
    hashes = {file: shard.sha256 for file, shard in finished.items()}
    manifest.write_metadata(work, plan, hashes)
    verify.verify_tensors(plan, work, verify_count)


def _convert_shard(
    plan: ConversionPlan,
    shard: Shard,
    work: Path,
    mark: dict,
    on_progress: OnProgress,
) -> FinishedShard:
    """Copy one weight file and check that it was what it is recorded to be."""
    tied_head = plan.tied_head
    embedding = plan.family.tensor_names["embedding"]
    folder = plan.source.folder
    hashes = copy_shard(
        folder / shard.file,
        shard,
        zarr_layout.tensor_grids(plan.family, plan.config, plan.targets),
        work / orbax_io.WEIGHTS,
        plan.dtype,
        unwritten=plan.unwritten,
        hashed=() if tied_head is None else (tied_head, embedding),
        on_progress=on_progress,
    )
    recorded = plan.source.recorded_hashes.get(shard.file)
    if recorded not in (None, hashes.sha256):
        raise ValueError(
            f"{shard.file}: its sha256 is {hashes.sha256}, not {recorded} as recorded "
            "with it, so it is damaged; fetch the file again"
        )
    if resume_record.file_mark(folder, shard) != mark:
        raise ValueError(f"{shard.file} has changed while it was read; run again")
    return FinishedShard(mark=mark, sha256=hashes.sha256, tensors=hashes.tensors)


def _check_tied_head(
    plan: ConversionPlan, finished: Mapping[str, FinishedShard]
) -> None:
    """Check by their hashes that a stored head equals the embedding."""
    # The two tensors may be in different weight files.
    hashes = {
        name: sha256
        for shard in finished.values()
        for name, sha256 in shard.tensors.items()
    }
    if plan.tied_head is not None and len(set(hashes.values())) != 1:
        raise ValueError(
            f"tensor {plan.tied_head} must equal the embedding, since config.json ties "
            "them; set tie_word_embeddings to false if the head is its own"
        )


def _check_space(plan: ConversionPlan, parent: Path, work: Path) -> None:
    """Refuse to begin where the disk has too little space for the weights."""
    # What an earlier run left in the work folder is used or replaced.
    present = sum(p.stat().st_size for p in work.rglob("*")) if work.exists() else 0
    needed, free = plan.bytes_written - present, shutil.disk_usage(parent).free
    if needed > free:
        raise ValueError(
            f"{parent}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are "
            "free; make room, or choose another disk"
        )


def _disk_full_message(
    plan: ConversionPlan,
    dst: Path,
    error: OSError,
    finished: Mapping[str, FinishedShard] | None,
) -> str:
    total = len(plan.source.shards)
    again = f"; {len(finished)} of {total} files are done and stay" if finished else ""
    return (
        f"{dst}: the disk takes no more ({error.strerror}) and "
        f"{plan.bytes_written / 1e9:.2f} GB are needed{again}; make room and run again"
    )
