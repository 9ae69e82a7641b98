"""Ctrl-C at drawn times: every command must end with 130, soon and tidily.

    python -m bench.interrupts [--count 60] [--seed 0]

Each command is run once to its end, which says how long it takes; then SIGINT is sent
to fresh runs of it at times drawn from its whole length, cold and with a warm cache in
turn. Told of each are the exit code, the seconds from the signal to the end, and
what is left behind. Times before Python itself has started are left out: there an
interrupt is answered by the interpreter, whatever it runs.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdave.io.hub import find_model

PROMPT = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"
MAX_SECONDS = 1.0
"""From the signal to the end, unless a word says why not."""
_PROGRAMS = {
    "jaxdave": "from jaxdave.cli.main import main; main()",
    "jaxdave-convert": "from jaxdave_convert.cli import main; main()",
}
_UNFINISHED = ("*.tmp*", ".*.*", "*tmp-*")


class Command(NamedTuple):
    """A command line.

    Attributes:
        name: What it is called in the table.
        program: A key of the programs.
        words: Its arguments; "OUT" stands for a fresh path.
    """

    name: str
    program: str
    words: tuple[str, ...]


class Outcome(NamedTuple):
    """How an interrupted command has ended.

    Attributes:
        command: Its name.
        at: Seconds from its start to the signal.
        code: Its exit code.
        seconds: From the signal to its end.
        said: What it wrote to stderr.
        left: Unfinished files that it has left behind.
    """

    command: str
    at: float
    code: int
    seconds: float
    said: str
    left: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """True if it has ended as it should."""
        is_soon = self.seconds <= MAX_SECONDS or "finishing" in self.said
        is_told = "interrupted" in self.said and "Traceback" not in self.said
        return self.code == 130 and is_soon and is_told and not self.left


def commands(source: str) -> tuple[Command, ...]:
    """The command lines that are interrupted.

    Args:
        source: A checkpoint folder in the Hugging Face layout.

    Returns:
        One or more of generate, eval, convert, train and demo.
    """
    small = ("--limit", "2", "--max-new-tokens", "32")
    return (
        Command("generate", "jaxdave", ("generate", PROMPT)),
        Command("eval", "jaxdave", ("eval", *small, "--out", "OUT")),
        Command("convert", "jaxdave-convert", (source, "OUT", "--verify", "4")),
        Command("train", "jaxdave", ("train", "--out", "OUT", "--steps", "2")),
        Command("demo", "jaxdave", ("demo", "--problems", "2")),
    )


def start(command: Command, folder: Path, cache: Path) -> subprocess.Popen:
    """Start a command in a process group of its own.

    Args:
        command: The command.
        folder: Its working folder.
        cache: Its cache folder.

    Returns:
        The process.
    """
    (folder / "tmp").mkdir()
    words = [str(folder / "out") if w == "OUT" else w for w in command.words]
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAMS[command.program], *words],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell in the background has its children ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt(command: Command, at: float, folder: Path, cache: Path) -> Outcome | None:
    """Run a command and interrupt it.

    Args:
        command: The command.
        at: Seconds after its start.
        folder: Its working folder.
        cache: Its cache folder.

    Returns:
        How it has ended; None if it had before it was interrupted.
    """
    process = start(command, folder, cache)
    time.sleep(at)
    if process.poll() is not None:
        process.communicate()
        return None
    begin = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    seconds = time.perf_counter() - begin
    left = {
        str(path.relative_to(root))
        for root in (folder, cache)
        for pattern in _UNFINISHED
        for path in root.rglob(pattern)
    }
    left -= {name for name in left if name.endswith((".zarray", ".zgroup"))}
    left |= {f"tmp/{path.name}" for path in (folder / "tmp").iterdir()}
    code = process.returncode
    return Outcome(command.name, at, code, seconds, said, tuple(sorted(left)))


def startup_seconds() -> float:
    """Seconds until Python has started, the longest of a few."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import jaxdave.cli.main"], check=True)
        times.append(time.perf_counter() - begin)
    return max(times)


def run(count: int, seed: int) -> list[Outcome]:
    """Interrupt commands at drawn times.

    Args:
        count: How many, spread over the commands.
        seed: Of the times.

    Returns:
        How each has ended.
    """
    rng, outcomes = random.Random(seed), []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shutil.copytree(find_model("sdar-1m")[1], root / "source")
        warm = root / "warm"
        lengths = {}
        for command in commands(str(root / "source")):
            for cache in (root / f"first-{command.name}", warm):
                folder = Path(tempfile.mkdtemp(dir=root))
                begin = time.perf_counter()
                process = start(command, folder, cache)
                said = process.communicate()[1]
                if process.returncode:
                    raise SystemExit(f"{command.name} fails: {said}")
                lengths[command.name, cache == warm] = time.perf_counter() - begin
        earliest = startup_seconds()
        print(f"from {earliest:.2f} s on; lengths {lengths}", flush=True)
        for index in range(count):
            options = commands(str(root / "source"))
            command = options[index % len(options)]
            is_warm = bool(index // len(options) % 2)
            latest = 0.95 * lengths[command.name, is_warm]
            outcome = None
            # The machine may be quicker now than it was before.
            while outcome is None:
                folder = Path(tempfile.mkdtemp(dir=root))
                cache = warm if is_warm else folder / "cache"
                at = rng.uniform(earliest, latest)
                outcome = interrupt(command, at, folder, cache)
                latest = at if outcome is None else latest
                shutil.rmtree(folder)
            outcomes.append(outcome)
            mark = "" if outcome.is_good else f"  BAD {outcome}"
            print(
                f"{command.name:9} {'warm' if is_warm else 'cold'} at {at:6.2f} s: "
                f"{outcome.code} after {outcome.seconds:.2f} s{mark}",
                flush=True,
            )
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each command.

    Args:
        outcomes: How the runs have ended.

    Returns:
        The table as Markdown.
    """
    rows = [
        "| command | runs | 130 | as it should | slowest |",
        "|---|---|---|---|---|",
    ]
    by_name = collections.defaultdict(list)
    for outcome in outcomes:
        by_name[outcome.command].append(outcome)
    for name, group in [*by_name.items(), ("all", list(outcomes))]:
        codes = sum(outcome.code == 130 for outcome in group)
        good = sum(outcome.is_good for outcome in group)
        slowest = max(outcome.seconds for outcome in group)
        rows.append(f"| {name} | {len(group)} | {codes} | {good} | {slowest:.2f} s |")
    return "\n".join(rows)


def main() -> None:
    """Run the benchmark; fails if any command did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    outcomes = run(args.count, args.seed)
    print(table(outcomes))
    sys.exit(not all(outcome.is_good for outcome in outcomes))


if __name__ == "__main__":
    main()
