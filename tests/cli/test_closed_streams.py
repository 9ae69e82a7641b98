"""Command lines that are started with standard streams closed, as by `>&-`."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams of POSIX")


def run(words, closed) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(path for path in sys.path if path)
    program = [sys.executable, "-c", "from jaxdave.cli.main import main; main()"]
    closing = " ".join(f"{number}>&-" for number in closed)
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *program, *words],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("closed", [(1,), (0, 1), (0, 1, 2)])
def test_nobody_is_worked_for(closed):
    done = run(["--version"], closed)
    lines = [] if 2 in closed else ["jaxdave: standard output is closed"]
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(";")[0] for line in done.stderr.splitlines()] == lines


def test_an_error_is_not_told_to_another_stream():
    done = run(["generate", ""], (2,))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = run(["generate", ""], (0, 1))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
