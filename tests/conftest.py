"""Settings of every test: strict arrays, and hypothesis without clocks or chance."""

import functools
import os
import pathlib
import shutil
import sys

import chex
import hypothesis
import jax
import pytest
from helpers import suite_plugin
from jax.experimental.compilation_cache import compilation_cache

from jaxdave.cli import main
from jaxdave.runtime.files import NO_CACHE

# Nothing that a test measures or compiles is kept in the user's folders.
os.environ[NO_CACHE] = "1"
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# An example may compile a program, so there is no deadline and there are few of them.
hypothesis.settings.register_profile(
    "jaxdave",
    deadline=None,
    derandomize=True,
    max_examples=12,
    suppress_health_check=list(hypothesis.HealthCheck),
)
# Where every example compiles programs of many seconds: one, and it is not shrunk.
hypothesis.settings.register_profile(
    "programs",
    hypothesis.settings.get_profile("jaxdave"),
    max_examples=1,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("jaxdave")


def pytest_configure(config):
    config.pluginmanager.register(suite_plugin)


@pytest.fixture(autouse=True)
def fresh_trace_counters():
    """Traces are counted per test."""
    chex.clear_trace_counter()


@pytest.fixture(autouse=True)
def no_jax_cache():
    """A command that turned JAX's own cache of programs on did so for its test only.

    A program that comes from there is not stored by `program_cache`, so what a test of
    storing sees would depend on the tests before it.
    """
    before = jax.config.values["jax_compilation_cache_dir"]
    yield
    if jax.config.values["jax_compilation_cache_dir"] != before:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


# A process may hold 65,530 memory maps on Linux by default, and every compiled program
# takes a few: a worker that keeps all programs of the suite dies of the next one.
MAPS = pathlib.Path("/proc/self/maps")
MANY_MAPS = 20_000


@pytest.fixture(autouse=True)
def few_programs():
    """Compiled programs are dropped before there are too many for one process."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        suite_plugin.drop_programs()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> pathlib.Path:
    """A tiny folder for the converter; made once, as saving it takes a while."""
    from helpers import conversion_sources

    return conversion_sources.make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def source(tmp_path, made_once) -> pathlib.Path:
    """A folder of the test's own, with one weight file."""
    return pathlib.Path(shutil.copytree(made_once, tmp_path / "source"))


@pytest.fixture
def shards(source) -> pathlib.Path:
    """The folder with two weight files and an index."""
    from helpers import conversion_sources

    return conversion_sources.split(source)


@pytest.fixture
def refused(tmp_path, capsys):
    """The one line of a conversion that must fail as bad input does."""
    from helpers import conversion_sources

    return functools.partial(conversion_sources.refused, tmp_path, capsys)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> pathlib.Path:
    """A cache folder of this test run, one for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    return (base.parent if is_worker else base) / "cache"


@pytest.fixture
def run(capsys, monkeypatch, shared_cache):
    """Run a command line; gives (exit code, stdout, stderr)."""
    if sys.platform == "linux":
        # Most command lines want the same few programs.
        monkeypatch.delenv(NO_CACHE, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))

    def call(*args: object):
        with pytest.raises(SystemExit) as caught:
            main.main([str(arg) for arg in args])
        return caught.value.code, *capsys.readouterr()

    return call
