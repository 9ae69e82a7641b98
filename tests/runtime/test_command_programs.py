"""Programs that a command needed last time are loaded while it starts."""

import threading

import jax.numpy as jnp
import pytest

from jaxdave.engine import autotune
from jaxdave.runtime import command_programs, compilation, program_cache
from jaxdave.runtime.command_programs import preloaded
from jaxdave.runtime.compilation import clear_executables
from jaxdave.runtime.files import NO_CACHE

pytestmark = pytest.mark.as_shipped


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test's own, in use; gives jaxdave's folder in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv(NO_CACHE)
    monkeypatch.setattr(program_cache, "_USED_NAMES", {})
    clear_executables()
    yield tmp_path / "jaxdave"
    clear_executables()


@pytest.fixture
def reads(monkeypatch) -> list[tuple[bool, bool]]:
    """Of every program read: was it in the main thread, and was there one?"""
    found = []
    real = program_cache._read_program

    def reading(name):
        program = real(name)
        is_main = threading.current_thread() is threading.main_thread()
        found.append((is_main, program is not None))
        return program

    monkeypatch.setattr(program_cache, "_read_program", reading)
    return found


def command(size: int, *settings) -> list[float]:
    """A command that needs one program."""
    clear_executables()
    program_cache._USED_NAMES.clear()
    with preloaded("command", *settings):
        for thread in threading.enumerate():
            if thread.name == "preload":
                thread.join()  # a small program could be asked for before it has begun
        ones = jnp.ones(size, jnp.float32)
        request = compilation.CompileRequest(
            None, "sample", autotune._first_values, ([ones],)
        )
        return compilation.get_executable(request)[0]([ones])[0].tolist()


def test_the_second_start_loads_in_a_thread(cache, reads):
    assert command(3, "a") == [1.0] * 3
    assert reads == [(True, False)]
    assert command(3, "a") == [1.0] * 3
    assert reads[1:] == [(False, True)]


def test_other_settings_have_lists_of_their_own(cache, reads):
    command(3, "a")
    command(3, "b")
    assert reads == [(True, False), (True, True)]
    assert len(list((cache / command_programs.COMMAND_FOLDER).iterdir())) == 2


def test_a_wrong_guess_costs_nothing_but_time(cache, reads):
    command(3, "a")
    assert command(4, "a") == [1.0] * 4  # read in vain, then compiled
    assert reads[1:] == [(False, True), (True, False)]
    assert not program_cache._PRELOADS._programs
    del reads[:]
    assert command(4, "a") == [1.0] * 4
    assert reads == [(False, True)]


def test_a_program_or_a_list_that_is_gone_or_broken(cache, reads):
    command(3, "a")
    (program,) = (cache / program_cache.PROGRAM_FOLDER).iterdir()
    (names,) = (cache / command_programs.COMMAND_FOLDER).iterdir()
    program.unlink()
    assert command(3, "a") == [1.0] * 3
    names.write_bytes(names.read_bytes().replace(b'["', b'["x'))
    assert command(3, "a") == [1.0] * 3
    assert reads[-1] == (True, True)


def test_a_command_that_fails_keeps_its_error(cache):
    with pytest.raises(ValueError, match="bad input"), preloaded("command"):
        raise ValueError("bad input")
    assert not (cache / command_programs.COMMAND_FOLDER).exists()
    assert all(thread.name != "preload" for thread in threading.enumerate())


def test_nothing_is_noted_where_nothing_is_kept(cache, monkeypatch):
    monkeypatch.setenv(NO_CACHE, "1")
    assert command(3, "a") == [1.0] * 3
    assert not cache.exists()
