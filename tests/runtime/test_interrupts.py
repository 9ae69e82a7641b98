"""Ctrl-C: exit code 130 at once, wherever it comes, and nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxdave.cli import main
from jaxdave.runtime import files, interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

ON_IMPORT = """
import os, signal, sys

class Finder:
    \"\"\"Runs an action when a module is about to be imported.\"\"\"
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            action()

sys.meta_path.insert(0, Finder())
interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
"""
RUN = "from jaxdave.cli.main import main; main()"


def run_python(script: str, *words: str, handler="default_int_handler", **options):
    # A shell in the background has its children ignore the signal.
    begin = f"import signal\nsignal.signal(signal.SIGINT, signal.{handler})\n"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", begin + script, *words],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    return done, time.monotonic() - start


def is_interrupted(done, name: str = "jaxdave") -> bool:
    return (done.returncode, done.stderr) == (130, f"{name}: interrupted\n")


@pytest.mark.parametrize(
    "module", ["typer", "jaxdave.cli.options", "jaxdave.policies.registry"]
)
def test_during_imports(module):
    script = ON_IMPORT.format(module=module) + f"action = interrupt\n{RUN}"
    done, _ = run_python(script, "policies")
    assert is_interrupted(done) and done.stdout == ""


def test_the_converter_too():
    run = "from jaxdave_convert.cli import main; main()"
    script = ON_IMPORT.format(module="typer") + f"action = interrupt\n{run}"
    done, _ = run_python(script, "--help", env={**os.environ, "PYTHONPATH": PATH})
    assert is_interrupted(done, "jaxdave-convert")


PATH = os.pathsep.join(path for path in sys.path if path)


def test_where_nothing_can_be_raised():
    """In a callback of the garbage collector exceptions are swallowed."""
    collect = """
import gc
def action():
    gc.callbacks.append(lambda *_: interrupt())
    gc.collect()
    gc.callbacks.clear()
"""
    script = ON_IMPORT.format(module="jaxdave.policies.registry") + collect + RUN
    done, _ = run_python(script, "policies")
    assert is_interrupted(done) and done.stdout == ""


def test_at_exit():
    action = "import atexit\naction = lambda: atexit.register(interrupt)\n"
    script = ON_IMPORT.format(module="typer") + action + RUN
    done, _ = run_python(script, "--version")
    assert is_interrupted(done) and done.stdout.startswith("jaxdave ")


def test_while_the_main_thread_is_in_c():
    action = """
import hashlib, threading
def action():
    threading.Timer(0.1, interrupt).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # a minute
"""
    script = ON_IMPORT.format(module="jaxdave.policies.registry") + action + RUN
    done, seconds = run_python(script, "policies")
    assert is_interrupted(done) and seconds < 15


UNBROKEN = """
import os, pathlib, signal, sys, time
from jaxdave.runtime import interrupts
interrupts.install("prog")
path = pathlib.Path(sys.argv[1])
folder = path.with_name("work")
folder.mkdir()
with interrupts.removed_on_interrupt(folder):
    (folder / "part").write_text("")
    with interrupts.unbroken("the file"):
        os.kill(os.getpid(), signal.SIGINT)
        with interrupts.unbroken("a part of it"):
            time.sleep(1)
        {more}
        path.write_text("whole")
    path.write_text("more")
"""


def test_what_must_not_be_cut_is_finished_with_a_word(tmp_path):
    done, _ = run_python(UNBROKEN.format(more=""), str(tmp_path / "file"))
    assert done.returncode == 130
    assert done.stderr == (
        "prog: finishing the file; Ctrl-C again ends it unfinished\nprog: interrupted\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


def test_one_signal_is_one_though_it_is_handled_late(tmp_path):
    """The main thread may be in C, and then learns of it when others long have."""
    # Two seconds in C, however fast the machine hashes.
    script = UNBROKEN.format(
        more="import hashlib; start = time.perf_counter(); "
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 200_000); "
        "rounds = int(200_000 * 2 / (time.perf_counter() - start)); "
        "__import__('threading').Timer(0.2, os.kill, (os.getpid(), 2)).start(); "
        "hashlib.pbkdf2_hmac('sha256', b'', b'', rounds)"
    )
    script = script.replace("        os.kill(os.getpid(), signal.SIGINT)\n", "", 1)
    done, _ = run_python(script, str(tmp_path / "file"))
    assert done.returncode == 130 and done.stderr.startswith("prog: finishing the file")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_second_signal_does_not_wait(tmp_path):
    script = UNBROKEN.format(more="os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    done, seconds = run_python(script, str(tmp_path / "file"))
    assert done.returncode == 130 and seconds < 15
    assert not (tmp_path / "file").exists()


def test_processes_of_their_own_session_are_killed():
    script = """
import os, signal, subprocess, sys
from jaxdave.runtime import interrupts
interrupts.install("prog")
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleep, start_new_session=True)
print(child.pid, flush=True)
with interrupts.killed_on_interrupt(child.pid):
    os.kill(os.getpid(), signal.SIGINT)
    child.wait()
"""
    # Its pipe is open for as long as the child lives.
    done, seconds = run_python(script)
    assert is_interrupted(done, "prog") and seconds < 15


def test_where_it_is_ignored_it_stays_ignored():
    script = ON_IMPORT.format(module="typer") + f"action = interrupt\n{RUN}"
    done, _ = run_python(script, "--version", handler="SIG_IGN")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_caller_of_the_command_line_keeps_its_own_ways(capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        main.main(["--version"])
    assert capsys.readouterr().out.startswith("jaxdave ")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_forked_child_has_the_handler_of_python():
    script = """
import os, signal
from jaxdave.runtime import interrupts
interrupts.install("prog")
if os.fork() == 0:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        os._exit(3)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done, _ = run_python(script)
    assert (done.returncode, done.stdout) == (0, "3\n")


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_the_cursor_is_back(streams):
    """Also where only one of the streams is a terminal."""
    import pty

    script = f"""
import os, signal, sys, time
from jaxdave.runtime import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts.install("jaxdave")
print("\\x1b[?25l", end="", flush=True, file=sys.{streams[0]})
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""
    screen, terminal = pty.openpty()
    out, err = (
        terminal if name in streams else subprocess.DEVNULL
        for name in ("stdout", "stderr")
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, timeout=60, stdout=out, stderr=err)
    os.close(terminal)
    seen = os.read(screen, 4096)
    os.close(screen)
    assert done.returncode == 130
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l") >= 0


def test_a_function_may_answer_for_a_while():
    script = """
import os, signal
from jaxdave.runtime import interrupts
interrupts.install("prog")
with interrupts.handled_by(lambda *_: print("mine", flush=True)):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
print("after", flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("never", flush=True)
"""
    done, _ = run_python(script)
    assert is_interrupted(done, "prog") and done.stdout == "mine\nmine\nafter\n"


def test_no_function_answers_what_is_ignored():
    script = """
import os, signal
from jaxdave.runtime import interrupts
interrupts.install("prog")
with interrupts.handled_by(lambda *_: print("mine")):
    os.kill(os.getpid(), signal.SIGINT)
"""
    done, _ = run_python(script, handler="SIG_IGN")
    assert (done.returncode, done.stdout) == (0, "")


def test_threads_can_be_left_behind(tmp_path):
    script = """
import pathlib, sys, threading, time
from jaxdave.runtime import interrupts
interrupts.install("prog")
path, is_writing = pathlib.Path(sys.argv[1]), threading.Event()

def work():
    with interrupts.unbroken("the file"):
        is_writing.set()
        time.sleep(0.5)
        path.write_text("whole")
    time.sleep(60)

threading.Thread(target=work).start()
is_writing.wait()
interrupts.leave_threads()
print("said", end="")
interrupts.exit_program(7)
"""
    done, seconds = run_python(script, str(tmp_path / "file"))
    assert (done.returncode, done.stdout, done.stderr) == (7, "said", "")
    assert (tmp_path / "file").read_text() == "whole" and seconds < 15


@pytest.mark.parametrize("kind", ["temporary", "unfinished"])
def test_folders_are_removed_from_the_moment_that_they_are_there(
    kind, tmp_path, monkeypatch
):
    """An interrupt between making a folder and noting it would leave it behind."""
    noted = {"mkdir": [], "rmtree": []}

    def watch(module, name):
        real = getattr(module, name)

        def watched(path, *args, **options):
            if Path(path).parent == tmp_path:
                noted[name].append(Path(path) in interrupts._STATE.paths.values())
            return real(path, *args, **options)

        monkeypatch.setattr(module, name, watched)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    watch(os, "mkdir")
    watch(shutil, "rmtree")
    folder = (
        files.temporary_folder()
        if kind == "temporary"
        else files.unfinished_folder(tmp_path / "out")
    )
    with pytest.raises(RuntimeError, match="stop"), folder as path:
        assert path.parent == tmp_path and path.is_dir()
        raise RuntimeError("stop")
    assert noted == {"mkdir": [True], "rmtree": [True]}
    assert not list(tmp_path.iterdir()) and not interrupts._STATE.paths
