"""A conversion from beginning to end: planned, copied, recorded, put into place."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from jaxdave.io import orbax_io
from jaxdave.models.param_shapes import param_shapes
from jaxdave.runtime.files import read_json, replace_folder
from jaxdave_convert import manifest, plan, progress, verify, zarr_layout
from jaxdave_convert.plan import Options, Plan
from jaxdave_convert.progress import Done
from jaxdave_convert.safetensors_header import Shard
from jaxdave_convert.shard_copy import Tick, copy_shard
from jaxdave_convert.zarr_layout import Grid

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    """Convert a folder or Hub id into a new folder that `jaxdave.load` reads.

    family, dtype, block_length, mask_id: see `plan.Options`. verify_count: tensors to
        read back and compare. overwrite: replace an older conversion.
    Raises ValueError or OSError, one line each; see `carry_out` for what stays then.
    """
    options = Options(family, dtype, block_length, mask_id)
    made = make_plan(os.fspath(src), Path(dst), options, overwrite)
    carry_out(made, Path(dst), verify_count=verify_count)


def make_plan(src: str, dst: Path, options: Options, overwrite: bool) -> Plan:
    """A plan for a destination that it may be carried out into."""
    check_destination(dst, overwrite)
    return plan.make(src, options)


def carry_out(
    made: Plan,
    dst: Path,
    *,
    verify_count: int = 0,
    tick: Tick = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Carry out a plan; DST appears complete or not at all.

    What is finished when a run ends early lies in a hidden folder beside DST, and the
    next run goes on from there. tick: is told of bytes done; say: of what the user
    should know.
    """
    dst = dst.absolute()
    dst.parent.mkdir(parents=True, exist_ok=True)
    work = progress.work_folder(dst)
    _check_space(made, dst.parent, work)
    with progress.locked(work):
        try:
            _make(made, work, verify_count, tick, say)
        except BaseException as error:
            kept = progress.read(work, made)
            if not kept:
                shutil.rmtree(work)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise ValueError(_full(made, dst, error, kept)) from error
            raise
        progress.close(work)
    replace_folder(work, dst)


def check_destination(dst: Path, overwrite: bool) -> None:
    """Raise ValueError unless DST is free, or a checkpoint that may be replaced."""
    if not dst.exists() and not dst.is_symlink():
        return
    is_ours = dst.is_dir() and orbax_io.is_orbax_folder(
        read_json(dst / "config.json", optional=True)
    )
    if not is_ours:
        raise ValueError(
            f"{dst} exists and is no checkpoint of jaxdave-convert; choose a new folder"
        )
    if not overwrite:
        raise ValueError(f"{dst} exists; replace it with --overwrite, or choose a new")


def _make(made: Plan, work: Path, count: int, tick: Tick, say) -> None:
    done = progress.read(work, made)
    if done is None:
        if (work / progress.RECORD).exists():
            say(f"{work}: made from another source or other options; starting over")
        progress.clear(work)
        zarr_layout.make_weights(work, made)
        done = {}
        progress.write(work, made, done)
    for shard in made.source.shards:
        mark = progress.mark(made.source.folder, shard)
        if shard.file in done and done[shard.file].mark == mark:
            tick(shard.size)
            continue
        if shard.file in done:
            say(f"{shard.file} has changed since the run that was cut off; reading it")
        done[shard.file] = _copy(made, shard, work, mark, tick)
        progress.write(work, made, done)
    _check_alias(made, done)
    orbax_io.check_arrays(work, param_shapes(made.config))
    manifest.write(work, made, {file: one.sha256 for file, one in done.items()})
    try:
        verify.verify(made, work, count)
    except ValueError:
        (work / progress.RECORD).unlink()  # nothing here can be gone on with
        raise


def _copy(made: Plan, shard: Shard, work: Path, mark: dict, tick: Tick) -> Done:
    head = made.alias
    pair = () if head is None else (head, made.family.tensors["embedding"])
    folder = made.source.folder
    copied = copy_shard(
        folder / shard.file,
        shard,
        grids(made),
        work / orbax_io.WEIGHTS,
        made.dtype,
        unwritten=head,
        hashed=pair,
        tick=tick,
    )
    known = made.source.known.get(shard.file)
    if known not in (None, copied.sha256):
        raise ValueError(
            f"{shard.file}: its sha256 is {copied.sha256}, not {known} as recorded "
            "with it, so it is damaged; fetch the file again"
        )
    if progress.mark(folder, shard) != mark:
        raise ValueError(f"{shard.file} has changed while it was read; run again")
    return Done(mark, copied.sha256, copied.tensors)


def grids(made: Plan) -> dict[str, Grid]:
    """The grid of every tensor of the source; a tied head has the embedding's."""
    found = {name: zarr_layout.grid(target) for name, target in made.targets.items()}
    if made.alias is not None:
        found[made.alias] = found[made.family.tensors["embedding"]]
    return found


def _check_alias(made: Plan, done: dict[str, Done]) -> None:
    hashes = {name: sha for one in done.values() for name, sha in one.tensors.items()}
    if made.alias is not None and len(set(hashes.values())) != 1:
        raise ValueError(
            f"tensor {made.alias} must equal the embedding, since config.json ties "
            "them; set tie_word_embeddings to false if the head is its own"
        )


def _check_space(made: Plan, parent: Path, work: Path) -> None:
    present = sum(p.stat().st_size for p in work.rglob("*")) if work.exists() else 0
    asked, free = made.bytes_written - present, shutil.disk_usage(parent).free
    if asked > free:
        raise ValueError(
            f"{parent}: {asked / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are "
            "free; make room, or choose another disk"
        )


def _full(made: Plan, dst: Path, error: OSError, kept) -> str:
    total = len(made.source.shards)
    again = f"; {len(kept)} of {total} files are done and stay" if kept else ""
    return (
        f"{dst}: the disk takes no more ({error.strerror}) and "
        f"{made.bytes_written / 1e9:.2f} GB are needed{again}; make room and run again"
    )
