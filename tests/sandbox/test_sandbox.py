"""The sandbox: what honest programs may do, and hostile programs, which must fail."""

import functools
import os
import socket
import time
from pathlib import Path

import pytest

from jaxdave.sandbox.launcher import run_program

# Long enough for a busy machine; whatever takes that long is endless.
run_patiently = functools.partial(run_program, seconds=30)

# Writes whatever looks like a nonce wherever something can be written, and leaves.
LEAK = """
import os, re, sys
def leak(values):
    for value in list(values):
        if type(value) is bytes and re.fullmatch(rb"[0-9a-f]{32}", value):
            for fd in range(3, 64):
                try: os.write(fd, value)
                except OSError: pass
            os._exit(0)
def climb(frame):
    while frame is not None:
        leak(frame.f_locals.values())
        frame = frame.f_back
"""

LEAVING = {
    "exit": "import sys; sys.exit(0)",
    "raise": "raise SystemExit(0)",
    "leave": "import os; os._exit(0)",
    "thread leaves": "import _thread, os, time\n"
    "_thread.start_new_thread(os._exit, (0,)); time.sleep(9)",
    "at exit": "import atexit, os; atexit.register(os._exit, 0); assert False",
    "fork, the child passes": "import os\nif os.fork(): os.wait(); os._exit(0)",
    "fork, the parent passes": "import os\nif os.fork() == 0: os._exit(0)\nos._exit(0)",
    "hook leaves": "import os, sys\nsys.unraisablehook = sys.excepthook = "
    "lambda *_: os._exit(0)\nassert False",
    "interrupt": "import _thread; _thread.interrupt_main(); raise KeyboardInterrupt",
    "exec": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', ''])",
}
GUESSING = {
    "print": "print('passed'); print('1'); assert False",
    "every file": "import os\nfor fd in range(64):\n"
    "    try: os.write(fd, b'0' * 32)\n    except OSError: pass\nos._exit(0)",
    "read every file": LEAK + "def read(fd):\n    try:\n        os.lseek(fd, 0, 0)\n"
    "        return os.read(fd, 9999)\n    except OSError: return b''\n"
    "for fd in range(64): leak(re.findall(rb'[0-9a-f]{32}', read(fd)))\nassert False",
    "frames": LEAK + "climb(sys._getframe())\nassert False",
    "other threads": LEAK
    + "for frame in sys._current_frames().values(): climb(frame)\nassert False",
    "tracebacks": LEAK + "try: 1 / 0\nexcept Exception as error: "
    "climb(error.__traceback__.tb_frame)\nassert False",
    "hook": LEAK + "sys.unraisablehook = "
    "lambda args: climb(args.exc_traceback.tb_frame)\nassert False",
    "tracing": LEAK + "sys.settrace(lambda frame, *_: climb(frame))\n"
    "(lambda: 0)()\nassert False",
    "signal": LEAK + "import signal\nsignal.signal(signal.SIGALRM, "
    "lambda _, frame: climb(frame))\nsignal.alarm(1)\nimport time; time.sleep(9)",
    "collector": LEAK + "import gc\nfor one in gc.get_objects(): "
    "leak(gc.get_referents(one))\nassert False",
    "lists": "import gc\nfor one in gc.get_objects():\n"
    "    if type(one) is list and one in ([], [None]): one.append(None)\nassert False",
    "main": LEAK + "import __main__\nleak(vars(__main__).values())\nassert False",
    "memory": LEAK + "memory = open('/proc/self/mem', 'rb')\n"
    "for line in open('/proc/self/maps'):\n"
    "    low, high = (int(n, 16) for n in line.split()[0].split('-'))\n"
    "    try: memory.seek(low); leak(re.findall(rb'[0-9a-f]{32}', "
    "memory.read(high - low)))\n    except (OSError, ValueError, OverflowError): "
    "pass\nassert False",
    "native": "import ctypes\nctypes.pythonapi.PyThread_get_thread_ident()\n",
    "steal the write": "import os\nos.write = lambda *_: os._exit(0)\nassert False",
}
CHEATING = {
    "no assertion": "import builtins\nbuiltins.AssertionError = type('E', (), {})\n",
    "builtins": "import builtins\nbuiltins.abs = builtins.len = lambda _: 0\n"
    "builtins.isinstance = lambda *_: True",
    "names": "abs = len = lambda _: 0\ndef isinstance(*_): return True",
    "its builtins": "__builtins__['abs'] = lambda _: 0",
    "string": "x = '''",
    "condition": "if False:",
    "decorator": "@(lambda f: lambda *_: None)",
    "continued": "x = 1 or \\",
    "the test itself": "def check(f): pass",
    "jump": "import sys\ndef skip(frame, event, arg):\n    frame.f_lineno += 1\n"
    "    return skip\nsys.settrace(skip)",
}
HARMING = {
    "memory": "x = bytearray(8 << 30)",
    "memories": "import os\nfor _ in range(4): os.fork()\nx = [0] * (1 << 27)\n"
    "assert len(x) < 9",
    "recursion": "def f(): f()\nf()",
    "deep": "import sys\nsys.setrecursionlimit(10 ** 9)\n"
    "def f(x): return sorted([x], key=f)\nf(0)",
    "file": "open('big', 'wb').write(b'0' * (16 << 20))",
    "output": "while True:\n    for fd in range(3, 64):\n        try: "
    "__import__('os').write(fd, b'0' * 65536)\n        except OSError as error:\n"
    "            if error.errno == 27: raise",
    "printing": "print('0' * (2 << 30))",
    "syntax": "def f(",
    "null": "\x00",
    "input": "input()",
    "nested": "(" * 100_000,
    "parent": "import os; os.kill(os.getppid(), 9); assert False",
    "everyone": "import os; os.kill(-1, 9); assert False",
    "group": "import os; os.killpg(0, 9); assert False",
    "by a program": "import os, subprocess\n"
    "subprocess.run(['kill', '-9', str(os.getppid())]); assert False",
    "by a shell": "import os; os.system('kill -9 %d' % os.getppid()); assert False",
    "packages": "import jaxdave",
    "environment": "import os; assert os.environ.get('PATH')",
    "surrogate": "'\ud800'\nassert False",
}
FAILING = LEAVING | GUESSING | HARMING
TESTS = (
    "def check(f):\n    assert abs(f(1) - 3) < 1 and isinstance(f(1), int)\ncheck(f)"
)
WRONG = "def f(x): return 'no'\n"
ENDLESS = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "loop that minds nothing": "while True:\n    try:\n        while True: pass\n"
    "    except BaseException: pass",
    "fork": "import os, time\nos.fork()\ntime.sleep(60)",
    "bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "session": "import os, time\nos.setsid()\ntime.sleep(60)",
}


@pytest.mark.parametrize("name", FAILING)
def test_hostile_programs_fail(name: str) -> None:
    assert run_patiently(FAILING[name]).reason == "failed"


@pytest.mark.parametrize("name", GUESSING)
def test_hostile_programs_with_tests_after_them_fail(name: str) -> None:
    assert not run_patiently(WRONG + GUESSING[name], tests=TESTS).passed


@pytest.mark.parametrize("name", CHEATING)
def test_tests_are_not_cheated(name: str) -> None:
    source = WRONG + CHEATING[name]
    assert run_patiently(source, tests=TESTS).reason == "failed"


def test_correct_programs_pass_the_tests_that_are_cheated() -> None:
    """The same tests pass for a correct program, whatever else it defines."""
    right = "def f(x): return 2 + x"
    assert run_patiently(right, tests=TESTS).passed
    assert run_patiently(
        f"{right}\ndef isinstance(*_): return False", tests=TESTS
    ).passed
    own = "def sum(x): return x + 1"
    assert run_patiently(
        own, tests="assert sum(1) == 2", redefined_builtins=["sum"]
    ).passed
    assert not run_patiently(own, tests="assert sum(1) == 2").passed


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_programs_time_out(name: str) -> None:
    start = time.monotonic()
    assert run_program(ENDLESS[name], seconds=0.5).reason == "timeout"
    assert time.monotonic() - start < 25


@pytest.mark.parametrize("session", ["", "os.setsid(); "])
def test_what_a_program_leaves_behind_is_ended(tmp_path: Path, session: str) -> None:
    """And so is a worker whose time is up, in its session or in one of its own."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    mark = tmp_path / "mark"
    sleeps = f"time.sleep(0.8); open({str(mark)!r}, 'w').close(); os._exit(0)"
    child = f"import os, time\nif os.fork() == 0: {sleeps}"
    assert run_patiently(child).passed
    alone = f"import os, time\n{session}{sleeps}"
    assert run_program(alone, seconds=0.5).reason == "timeout"
    assert not run_patiently(f"import os, time\n{sleeps}").passed
    assert mark.exists()  # it can be written when there is time
    mark.unlink()
    assert run_patiently(child).passed
    assert run_program(alone, seconds=0.5).reason == "timeout"
    time.sleep(1.5)
    assert not mark.exists()


def test_nothing_is_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        assert run_patiently(program).reason == "failed"
        with pytest.raises(TimeoutError):
            server.accept()


def may_change_user() -> bool:
    """Returns True if this process is root and has CAP_SETUID."""
    status = Path("/proc/self/status")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return bool(int(fields["CapEff"], 16) >> 7 & 1) and os.getuid() == 0


@pytest.mark.skipif(not may_change_user(), reason="only root has rights to drop")
def test_root_gives_up_its_rights(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    for theft in (f"open({str(mine)!r}, 'w')", f"import os; os.remove({str(mine)!r})"):
        assert run_patiently(theft).reason == "failed"
    assert mine.read_text() == "kept"
    assert run_patiently("import os\nassert os.getuid() != 0").passed


HONEST = {
    "print": "print('quiet')",
    "modules": "import math, re, heapq, json, random, itertools, typing, collections",
    "classes": "import dataclasses, collections, enum\n@dataclasses.dataclass\n"
    "class A:\n    x: 'int'\nB = collections.namedtuple('B', 'x')\n"
    "C = enum.Enum('C', 'x')\nassert A(1).x == B(1).x == C.x.value",
    "files": "open('x', 'w').write('1')\nassert open('x').read() == '1'",
    "deep": "import sys\nsys.setrecursionlimit(20000)\n"
    "def f(n): return n and 1 + f(n - 1)\nassert f(15000) == 15000",
    "threads": "import threading\nt = threading.Thread(target=print)\n"
    "t.start(); t.join()",
    "coroutines": "import asyncio\nasync def f(): return 1\n"
    "assert asyncio.run(f()) == 1",
    "integers of C": "import ctypes\nassert ctypes.c_int8(200).value == -56",
    "future": "from __future__ import annotations\ndef f(x: no) -> no: return x",
    "demonstration": "if __name__ == '__main__':\n    print(input())",
    "nothing": "",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(name: str) -> None:
    assert run_patiently(HONEST[name]).reason == "passed"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        run_program("", seconds=seconds)
