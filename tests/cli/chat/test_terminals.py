"""A chat in a pseudo-terminal: prompts, masks, Ctrl-C and Ctrl-D."""

import contextlib
import os
import re
import select
import struct
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from helpers import checkpoint_folders

from jaxdave.cli.chat import line_input

fcntl = pytest.importorskip("fcntl")
pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")

# Programs are compiled with less care, and calls take long enough to be stopped.
SCRIPT = """
import fcntl, signal, termios, time
from helpers import compiling
from jaxdave.engine.streaming import CallByCall

# The terminal of this process group, whose Ctrl-C it is sent.
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
real = CallByCall._run

def slow(*args):
    for snapshot in real(*args):
        yield snapshot
        time.sleep(0.3)

CallByCall._run = slow
from jaxdave.cli.main import main
with compiling.quickly():
    main()
"""
OPTIONS = ("--max-new-tokens", "16", "--draft-steps", "1")


class Terminal:
    """A chat in a terminal of so many columns."""

    def __init__(self, words: Sequence[str], columns: int, **variables: str) -> None:
        self.handle, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "chat", *words],
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **variables},
        )
        os.close(side)
        self.seen = ""

    def send(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def wait_for(self, words: str, seconds: float = 120) -> str:
        """What was written until certain words came, and after the last wait."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            if time.monotonic() > end:
                raise TimeoutError(f"no {words!r} in {self.seen!r}")
            if not self._read():
                raise AssertionError(f"no {words!r} in {self.seen!r}")
        before, _, self.seen = self.seen.partition(words)
        return before + words

    def interrupt(self, words: str) -> str:
        """Press Ctrl-C until certain words come.

        Python's line editor misses the signal when it comes between its prompt and
        the wait for a key, and then answers the next one.
        """
        for _ in range(8):
            self.send("\x03")
            with contextlib.suppress(TimeoutError):
                return self.wait_for(words, 15)
        raise AssertionError(f"no {words!r} in {self.seen!r}")

    def ended(self) -> int:
        """The exit code, once the process has ended."""
        while self._read():
            pass
        return self.process.wait(60)

    def _read(self) -> bool:
        if not select.select([self.handle], [], [], 1)[0]:
            return True
        with contextlib.suppress(OSError):  # the other side is gone
            data = os.read(self.handle, 65536)
            self.seen += data.decode(errors="replace")
            return bool(data)
        return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.handle)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("terminals") / "tiny"
    checkpoint_folders.make(path)
    return str(path)


@pytest.fixture
def terminal(model, shared_cache):
    # The second of two chats finds the programs of the first.
    variables = {
        "XDG_CACHE_HOME": str(shared_cache),
        "JAXDAVE_NO_CACHE": "",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with contextlib.ExitStack() as stack:

        def start(columns: int, **more: str) -> Terminal:
            words = ("--model", model, *OPTIONS)
            opened = Terminal(words, columns, **variables, **more)
            stack.callback(opened.close)
            return opened

        yield start


def test_an_answer_fills_in_and_can_be_stopped(terminal):
    chat = terminal(80)
    chat.wait_for("/help lists the commands")
    chat.wait_for(line_input.PROMPT)
    chat.send("Tom has 3 cards.\r")
    assert "░" in chat.wait_for("tokens/call")
    chat.wait_for(line_input.PROMPT)
    chat.send("And now?\r")
    chat.wait_for("░")
    chat.send("\x03")
    chat.wait_for("interrupted: the answer is dropped, and so is its turn")
    # The turn before it is still there; the stopped one is not.
    chat.wait_for(line_input.PROMPT)
    chat.send("/history\r")
    shown = chat.wait_for(line_input.PROMPT)
    assert "user: Tom has 3 cards." in shown and "user: And now?" not in shown
    chat.interrupt("jaxdave: interrupted")
    assert chat.ended() == 130


def test_a_terminal_that_cannot_draw(terminal):
    chat = terminal(20, TERM="dumb", NO_COLOR="1")
    chat.wait_for(line_input.PROMPT)
    chat.send("Tom has 3 cards.\r")
    shown = chat.wait_for("tokens/call")
    assert "░" not in shown
    # What readline and dim text may write is all there is of controls.
    assert not re.search(r"\x1b\[\d*[ABCDJK]", shown)
    chat.wait_for(line_input.PROMPT)
    chat.send("\x04")
    assert chat.ended() == 0


def test_lines_end_with_the_terminal(monkeypatch, capsys):
    def raising(error):
        def ask(prompt):
            raise error

        return ask

    lines = line_input.TerminalInput()
    monkeypatch.setattr("builtins.input", raising(EOFError()))
    assert lines.read() is None
    monkeypatch.setattr("builtins.input", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        lines.read()
    monkeypatch.setattr(
        "builtins.input", raising(UnicodeDecodeError("u", b"", 0, 1, ""))
    )
    with pytest.raises(ValueError, match="not UTF-8"):
        lines.read()
    assert capsys.readouterr().out == "\n\n"
