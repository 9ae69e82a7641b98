"""A conversion that was killed: what is finished stays, and is not done again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sources
from folders import assert_equal
from jaxdave_convert import convert, export, run, transfer

import jaxdave


@pytest.fixture
def source(tmp_path) -> Path:
    return sources.split(sources.make(tmp_path))


KILLED = """
import os, signal, sys
from jaxdave_convert import run
copy, calls = run.copy_shard, []
def once(*a, **k):
    calls.append(1)
    return copy(*a, **k) if len(calls) == 1 else os.kill(os.getpid(), signal.SIGKILL)
run.copy_shard = once
run.convert(*sys.argv[1:])
"""


@pytest.fixture
def killed(tmp_path, source) -> Path:
    """The destination of a run that was killed between its two weight files."""
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "ours")]
    env = {"PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(command, env=env, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert sources.names_in(tmp_path) == [".ours.converting", "source"]
    return tmp_path / "ours"


@pytest.fixture
def copied(monkeypatch) -> list[str]:
    """The weight files that are read from now on."""
    found = []

    def note(path, *arguments, **options):
        found.append(path.name)
        return transfer.copy_shard(path, *arguments, **options)

    monkeypatch.setattr(run, "copy_shard", note)
    return found


def test_a_killed_run_goes_on(killed, source, copied):
    with pytest.raises(ValueError):
        jaxdave.load(killed.parent / ".ours.converting")
    convert(source, killed, verify_count=99)
    assert copied == ["b.safetensors"]
    expected = jaxdave.load(source).params
    assert_equal(jaxdave.load(killed).params, expected)
    assert sources.names_in(killed.parent) == ["ours", "source"]
    export(killed, killed.parent / "back")
    sources.same_files(source, killed.parent / "back")


def test_a_killed_run_sees_what_has_changed(killed, source, copied, capsys):
    path = source / "a.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert sources.run(source, killed) == 0
    assert "a.safetensors has changed since" in capsys.readouterr().err
    assert copied == ["a.safetensors", "b.safetensors"]
    assert_equal(jaxdave.load(killed).params, jaxdave.load(source).params)


def test_a_killed_run_with_other_options_starts_over(killed, source, copied, capsys):
    assert sources.run(source, killed, "--dtype", "float32") == 0
    assert "starting over" in capsys.readouterr().err
    assert copied == ["a.safetensors", "b.safetensors"]
