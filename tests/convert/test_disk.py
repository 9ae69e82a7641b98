"""Disks that fill up, and files that change: no DST, and one line that says why."""

import contextlib
import dataclasses
import errno
import resource
import subprocess
from pathlib import Path

import pytest
from helpers import checkpoint_folders, conversion_sources
from helpers.conversion_sources import WEIGHTS_FILE
from jaxdave_convert import conversion, manifest, resume_record
from safetensors.numpy import load_file

DOWN = "model.layers.1.mlp.down_proj.weight"


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A real file system of a given size, mounted on a new folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this account may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def wide(tmp_path) -> Path:
    """A source of half a megabyte, more than the records that orbax makes."""
    return conversion_sources.make(
        tmp_path, dataclasses.replace(checkpoint_folders.CONFIG, hidden=128)
    )


def test_disk_that_is_too_small(wide, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "400k"):
        assert conversion_sources.run(wide, tmp_path / "disk" / "ours") == 2
        assert "GB are needed and" in capsys.readouterr().err
        assert conversion_sources.names_in(tmp_path / "disk") == []


@pytest.mark.parametrize("size", ["60k", "400k"])
def test_disk_that_fills_up(wide, tmp_path, monkeypatch, capsys, size):
    """The disk fills up after the check of free space, in Orbax's part or in ours."""
    monkeypatch.setattr(conversion, "_check_space", lambda *_: None)
    with small_disk(tmp_path / "disk", size):
        assert conversion_sources.run(wide, tmp_path / "disk" / "ours") == 2
        err = capsys.readouterr().err
        assert "the disk takes no more (No space left on device)" in err
        assert err.count("\n") == 1
        assert conversion_sources.names_in(tmp_path / "disk") == []


@contextlib.contextmanager
def file_limit(size: int):
    """Limits the size of this process's files in bytes, as a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_quota(wide, tmp_path, capsys):
    with file_limit(20_000):
        assert conversion_sources.run(wide, tmp_path / "ours") == 2
    assert "the disk takes no more (File too large)" in capsys.readouterr().err
    assert conversion_sources.names_in(tmp_path) == ["source"]


def test_full_disk_keeps_finished_files(shards, tmp_path, capsys, monkeypatch):
    copy = conversion.copy_shard

    def full(path, *arguments, **options):
        if path.name == "b.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(path, *arguments, **options)

    monkeypatch.setattr(conversion, "copy_shard", full)
    assert conversion_sources.run(shards, tmp_path / "ours") == 2
    assert "1 of 2 files are done and stay" in capsys.readouterr().err
    monkeypatch.undo()
    assert conversion_sources.run(shards, tmp_path / "ours") == 0


def test_wrong_bits_are_found_and_nothing_is_kept(
    source, tmp_path, capsys, monkeypatch
):
    """--verify, with a converter that mixes up the rows of one tensor."""
    write_metadata = manifest.write_metadata

    def spoil(work, *arguments):
        chunk = work / "weights" / "blocks.mlp.down.kernel" / "1.0.0"
        chunk.write_bytes(chunk.read_bytes()[::-1])
        write_metadata(work, *arguments)

    monkeypatch.setattr(manifest, "write_metadata", spoil)
    assert conversion_sources.run(source, tmp_path / "ours", "--verify", 99) == 2
    assert f"tensor {DOWN} of {WEIGHTS_FILE} reads back" in capsys.readouterr().err
    assert conversion_sources.names_in(tmp_path) == ["source"]


def test_file_that_changes_while_it_is_read(source, tmp_path, capsys, monkeypatch):
    copy = conversion.copy_shard

    def change(path, *arguments, **options):
        hashes = copy(path, *arguments, **options)
        conversion_sources.flip_last_bit(path)
        return hashes

    monkeypatch.setattr(conversion, "copy_shard", change)
    assert conversion_sources.run(source, tmp_path / "ours") == 2
    assert "has changed while it was read" in capsys.readouterr().err
    assert conversion_sources.names_in(tmp_path) == ["source"]
    assert load_file(source / WEIGHTS_FILE)


def test_two_conversions_at_once(source, tmp_path, capsys):
    work = resume_record.work_folder(tmp_path / "ours")
    with resume_record.lock_folder(work):
        assert conversion_sources.run(source, tmp_path / "ours") == 2
    assert "is in use by another conversion" in capsys.readouterr().err
