"""Files of the cache folders: read only if they are what the user himself has kept."""

import logging
import os
import random
import stat

import pytest

from jaxdave.core.prediction import ErrorBound
from jaxdave.engine import measurements
from jaxdave.engine.measurements import Measurements
from jaxdave.runtime import cache_files, fingerprint
from jaxdave.runtime.files import NO_CACHE

posix_only = pytest.mark.skipif(os.name != "posix", reason="no owners and modes")
KEY = "0123abc"
MADE = Measurements((0.5, 1.0), (1e-6,) * len(ErrorBound._fields))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder of this test's own, not made yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "home" / "cache"))
    monkeypatch.delenv(NO_CACHE)
    monkeypatch.setattr(fingerprint, "_REASONS", set())
    path = cache_files.trusted_folder("things")
    assert path is not None
    return path


def test_what_was_kept_comes_back_for_its_key_only(folder):
    path = folder / "one"
    cache_files.write_sealed(path, KEY, b"content\n of any kind\0")
    assert cache_files.read_sealed(path, KEY) == b"content\n of any kind\0"
    assert cache_files.read_sealed(path, "other") is None
    assert cache_files.read_sealed(folder / "two", KEY) is None


def test_no_changed_bit_goes_unseen(folder):
    path, rng = folder / "one", random.Random(0)
    cache_files.write_sealed(path, KEY, rng.randbytes(100))
    sealed = path.read_bytes()
    for bit in range(8 * len(sealed)):
        content = bytearray(sealed)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert cache_files.read_sealed(path, KEY) is None, bit
    for content in (b"", sealed[:-1], sealed + b"\n", sealed[1:], sealed * 2):
        path.write_bytes(content)
        assert cache_files.read_sealed(path, KEY) is None


@posix_only
def test_new_folders_and_files_are_for_the_user_alone(folder):
    before = os.umask(0o002)
    try:
        cache_files.write_sealed(folder / "one", KEY, b"content")
    finally:
        os.umask(before)
    for path, mode in (
        (folder, 0o700),
        (folder.parent, 0o700),
        (folder / "one", 0o600),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode


@posix_only
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
@pytest.mark.parametrize("level", ["folder", "parent"])
def test_a_folder_that_others_may_write_to_is_not_read(folder, caplog, mode, level):
    caplog.set_level(logging.WARNING, logger="jaxdave")
    cache_files.make_folder(folder)
    open_folder = folder if level == "folder" else folder.parent
    open_folder.chmod(mode)
    assert cache_files.trusted_folder("things") is None
    assert cache_files.trusted_folder("things") is None
    (line,) = caplog.messages
    assert str(open_folder) in line and "by others" in line and "chmod" in line


@posix_only
def test_the_folder_of_another_user_is_not_read(folder, caplog, monkeypatch):
    caplog.set_level(logging.WARNING, logger="jaxdave")
    cache_files.make_folder(folder)
    owner = os.geteuid()
    monkeypatch.setattr(cache_files.os, "geteuid", lambda: owner + 1)
    assert cache_files.trusted_folder("things") is None
    (line,) = caplog.messages
    assert f"belongs to another user (id {owner})" in line


@posix_only
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "open"])
def test_what_is_no_plain_file_of_the_user_is_none(folder, kind):
    path, real = folder / "one", folder / "real"
    cache_files.write_sealed(real, KEY, b"content")
    if kind == "link":
        path.symlink_to(real)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        real.rename(path)
        path.chmod(0o666)
    assert cache_files.read_sealed(path, KEY) is None


def test_the_latest_files_stay(folder):
    for number in range(5):
        cache_files.write_sealed(folder / f"{number}", KEY, b"")
        os.utime(folder / f"{number}", (number, number))
    (folder / "folder").mkdir()
    cache_files.keep_latest(folder, 3)
    assert {path.name for path in folder.iterdir()} == {"folder", "3", "4"}


BROKEN = {
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe\0",
    "a list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "other keys": b'{"second": [1, 1], "errors": []}',
    "too few": b'{"seconds": [0.5], "error": [0, 0, 0, 0, 0]}',
    "of another version": b'{"seconds": [0.5, 1], "error": [1e-6, 1e-6]}',
    "words": b'{"seconds": ["a", "b"], "error": [0, 0, 0, 0, 0]}',
    "a mapping": b'{"seconds": {"0": 1, "1": 1}, "error": [0, 0, 0, 0, 0]}',
    "NaN": b'{"seconds": [NaN, 1], "error": [0, 0, 0, 0, 0]}',
    "infinite": b'{"seconds": [1, 1], "error": [0, 0, 0, 0, Infinity]}',
    "zero": b'{"seconds": [0, 1], "error": [0, 0, 0, 0, 0]}',
    "negative": b'{"seconds": [-1, 1], "error": [0, 0, 0, 0, 0]}',
    "huge": b'{"seconds": [1e300, 1], "error": [0, 0, 0, 0, 0]}',
    "digits": b'{"seconds": [1' + b"0" * 5000 + b', 1], "error": [0, 0, 0, 0, 0]}',
}


@pytest.mark.parametrize("sealed", [False, True], ids=["edited", "sealed"])
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_measurement_is_none(folder, content, sealed):
    measurements.write(KEY, MADE)
    assert measurements.read(KEY, 2) == MADE
    path = folder.with_name(measurements.MEASUREMENT_FOLDER) / f"{KEY}.measured"
    if sealed:
        cache_files.write_sealed(path, KEY, content)
    else:
        path.write_bytes(content)
    assert measurements.read(KEY, 2) is None
    measurements.write(KEY, MADE)
    assert measurements.read(KEY, 2) == MADE


def test_old_measurements_make_room(folder, monkeypatch):
    monkeypatch.setattr(measurements, "MAX_FILES", 2)
    for number in range(5):
        measurements.write(f"{number}", MADE)
    folder = folder.with_name(measurements.MEASUREMENT_FOLDER)
    assert len(list(folder.iterdir())) == 2
