"""Locks: of two processes at once, one does all of its work and the other none."""

import os
import subprocess
import sys
import threading
import time

import pytest

from jaxdave.drafting import tree_table
from jaxdave.models.presets import preset
from jaxdave.runtime import locks


def test_a_folder_is_one_run_s_alone(tmp_path):
    out = tmp_path / "a" / "out"
    with locks.output_folder(out):
        with pytest.raises(ValueError, match="is being written to by another run"):
            with locks.output_folder(out):
                pass
        (out / "kept").write_text("")
    assert [path.name for path in out.iterdir()] == ["kept"]
    with locks.output_folder(out):
        pass  # the lock of a run that has ended is free


def test_a_folder_that_nothing_came_into_is_gone(tmp_path):
    with pytest.raises(RuntimeError):
        with locks.output_folder(tmp_path / "a" / "out"):
            raise RuntimeError
    assert not list(tmp_path.iterdir())


RACE = """
import pathlib, sys, time
from jaxdave.runtime import locks
out, log = map(pathlib.Path, sys.argv[1:3])
until = time.monotonic() + 1.5
taken = 0
while time.monotonic() < until:
    try:
        with locks.output_folder(out):
            # Whoever is in here is alone.
            (out / "mine").touch(exist_ok=False)
            (out / "mine").unlink()
            taken += 1
    except ValueError:
        pass
print(taken)
"""


def test_many_processes_are_never_in_at_once(tmp_path):
    """Also while the lock and the folder come and go."""
    command = [sys.executable, "-c", RACE, str(tmp_path / "out"), str(tmp_path)]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for racer in racers:
        out, err = racer.communicate()
        assert racer.returncode == 0, err.decode()
        assert int(out) > 0
    assert not list((tmp_path / "out").glob("*"))


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    script = (
        "import os, pathlib, sys\n"
        "from jaxdave.runtime import locks\n"
        "with locks.output_folder(pathlib.Path(sys.argv[1])):\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert (tmp_path / locks.LOCK_FILE).exists()
    with locks.output_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_lock_can_be_waited_for(tmp_path):
    path, order = tmp_path / "lock", []

    def hold():
        with locks.locked(path):
            order.append("first")
            time.sleep(0.3)
            order.append("done")

    thread = threading.Thread(target=hold)
    thread.start()
    while not order:
        time.sleep(0.01)
    with pytest.raises(locks.Busy):
        with locks.locked(path):
            pass
    with locks.locked(path, timeout=10):
        order.append("second")
    thread.join()
    assert order == ["first", "done", "second"]


def test_two_calibrations_keep_both_tables(tmp_path, monkeypatch):
    """Each reads the file, adds its own table, and writes all of them."""
    read, table = tree_table._read_versioned, tree_table.TreeTable(0.5, ())

    def slow(folder):
        raw = read(folder)
        time.sleep(0.2)
        return raw

    monkeypatch.setattr(tree_table, "_read_versioned", slow)
    threads = [
        threading.Thread(
            target=tree_table.write_table,
            args=(tmp_path, key, table, preset("sdar-1m")),
        )
        for key in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raw = read(tmp_path)
    assert raw is not None and set(raw["tables"]) == {"one", "two"}
