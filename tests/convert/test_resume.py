"""A conversion that was killed: finished weight files stay and are not read again."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import conversion_sources
from helpers.checkpoint_folders import assert_equal
from jaxdave_convert import conversion, shard_copy
from jaxdave_convert.conversion import convert
from jaxdave_convert.exporting import export

import jaxdave

KILLED = """
import os, signal, sys
from jaxdave_convert import conversion
copy, calls = conversion.copy_shard, []
def once(*a, **k):
    calls.append(1)
    return copy(*a, **k) if len(calls) == 1 else os.kill(os.getpid(), signal.SIGKILL)
conversion.copy_shard = once
conversion.convert(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory, made_once) -> Path:
    """A folder with a source and a run that was killed between its two weight files."""
    home = tmp_path_factory.mktemp("killed") / "home"
    home.mkdir()
    source = conversion_sources.split(Path(shutil.copytree(made_once, home / "source")))
    command = [sys.executable, "-c", KILLED, str(source), str(home / "ours")]
    env = {"PYTHONPATH": ":".join(sys.path)}
    process = subprocess.run(command, env=env, capture_output=True)
    assert process.returncode == -signal.SIGKILL
    assert conversion_sources.names_in(home) == [".ours.converting", "source"]
    shutil.copytree(home, home.with_name("kept"))
    return home


@pytest.fixture
def killed(killed_once) -> Path:
    """The destination of the killed run, beside it the folders that the run left.

    A run resumes only where it began, so they are put back, not copied elsewhere.
    """
    shutil.rmtree(killed_once)
    shutil.copytree(killed_once.with_name("kept"), killed_once)
    return killed_once / "ours"


@pytest.fixture
def shards(killed) -> Path:
    """The source of the killed run."""
    return killed.parent / "source"


@pytest.fixture
def copied(monkeypatch) -> list[str]:
    """Names of the weight files that are read from now on."""
    names = []

    def record_name(path, *arguments, **options):
        names.append(path.name)
        return shard_copy.copy_shard(path, *arguments, **options)

    monkeypatch.setattr(conversion, "copy_shard", record_name)
    return names


def test_a_killed_run_goes_on(killed, shards, copied):
    with pytest.raises(ValueError):
        jaxdave.load(killed.parent / ".ours.converting")
    convert(shards, killed, verify_count=99)
    assert copied == ["b.safetensors"]
    expected = jaxdave.load(shards).params
    assert_equal(jaxdave.load(killed).params, expected)
    assert conversion_sources.names_in(killed.parent) == ["ours", "source"]
    export(killed, killed.parent / "back")
    conversion_sources.assert_same_files(shards, killed.parent / "back")


def test_a_killed_run_sees_what_has_changed(killed, shards, copied, capsys):
    conversion_sources.flip_last_bit(shards / "a.safetensors")
    assert conversion_sources.run(shards, killed) == 0
    assert "a.safetensors has changed since" in capsys.readouterr().err
    assert copied == ["a.safetensors", "b.safetensors"]
    assert_equal(jaxdave.load(killed).params, jaxdave.load(shards).params)


def test_a_killed_run_with_other_options_starts_over(killed, shards, copied, capsys):
    assert conversion_sources.run(shards, killed, "--dtype", "float32") == 0
    assert "starting over" in capsys.readouterr().err
    assert copied == ["a.safetensors", "b.safetensors"]
