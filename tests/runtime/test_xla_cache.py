"""JAX's own cache: it sees only files that are, bit for bit, what it has written."""

import logging
import os

import pytest

from jaxdave.runtime import fingerprint, xla_cache
from jaxdave.runtime.files import NO_CACHE

pytestmark = pytest.mark.as_shipped


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which JAX has kept two programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv(NO_CACHE)
    monkeypatch.setattr(fingerprint, "_REASONS", set())
    monkeypatch.setattr(xla_cache.atexit, "register", lambda *_: None)
    path = xla_cache.open_xla_cache()
    assert path is not None
    for name in ("one-cache", "two-cache"):
        (path / name).write_bytes(b"program " + name.encode())
    xla_cache.seal_files(path)
    return path


def programs(folder) -> list[str]:
    assert xla_cache.open_xla_cache() == folder
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".seal")


def test_what_was_sealed_stays(folder):
    assert programs(folder) == ["one-cache", "two-cache"]
    assert programs(folder) == ["one-cache", "two-cache"]


def test_no_changed_bit_is_left_to_jax(folder):
    path = folder / "one-cache"
    content, seal = path.read_bytes(), (folder / "one-cache.seal").read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        (folder / "one-cache.seal").write_bytes(seal)
        assert programs(folder) == ["two-cache"]
    assert not (folder / "one-cache.seal").exists()


@pytest.mark.parametrize("kind", ["cut", "another's", "unsealed", "link", "seal"])
def test_what_is_not_what_was_written_is_removed(folder, tmp_path, kind):
    one, two = folder / "one-cache", folder / "two-cache"
    if kind == "cut":
        one.write_bytes(one.read_bytes()[:-1])
    elif kind == "another's":
        one.write_bytes(two.read_bytes())
    elif kind == "unsealed":  # by a process that was killed
        (folder / "one-cache.seal").unlink()
    elif kind == "link":
        one.rename(tmp_path / "real")
        one.symlink_to(tmp_path / "real")
    else:
        (folder / "one-cache.seal").write_bytes(b"\xff[{")
    assert programs(folder) == ["two-cache"]


def test_old_programs_make_room(folder, monkeypatch):
    monkeypatch.setattr(xla_cache, "MAX_FILES", 4)
    for number in range(5):
        (folder / f"{number}-cache").write_bytes(b"")
        xla_cache.seal_files(folder)
    assert len(list(folder.iterdir())) <= 4
    assert "4-cache" in programs(folder)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_folder_that_others_may_write_to_is_not_used(folder, caplog):
    caplog.set_level(logging.WARNING, logger="jaxdave")
    folder.chmod(0o777)
    assert xla_cache.open_xla_cache() is None
    assert len(caplog.messages) == 1
