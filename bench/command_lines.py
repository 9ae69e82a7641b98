"""Good and bad command lines: 0, or exit code 2 after one line and nothing written.

    python -m bench.command_lines [--count 300] [--processes 48] [--seed 0]

Most run in forks of one process that has imported the commands and has started no
backend of jax; those with unusual streams, and a sample, as processes of their own. Of
each are told the exit code, what it has said and what it has left behind.
"""

import argparse
import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from bench.harness.command_lines import BAD, EITHER, GOOD, Line, lines, prepare

_SECONDS = 240
_PROGRAMS = {
    "jaxdave": "from jaxdave.cli.main import main; main()",
    "jaxdave-convert": "from jaxdave_convert.cli import main; main()",
}
_QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


class Outcome(NamedTuple):
    """How a command line has ended.

    Attributes:
        code: Its exit code; below 0 for a signal, None if it was stopped.
        out: What it wrote to stdout, as far as that was read.
        err: What it wrote to stderr.
        changes: Names of files that it has made, changed or removed.
    """

    code: int | None
    out: str
    err: str
    changes: tuple[str, ...]


def fault(line: Line, end: Outcome) -> str | None:
    """What is wrong with how a command line has ended.

    Args:
        line: The command line.
        end: How it has ended.

    Returns:
        A few words; None if nothing is.
    """
    if end.code is None:
        return "no end"
    if "Traceback" in end.err or "Exception ignored" in end.err:
        return "traceback"
    if line.stdout == "head" and end.code in (0, 1, 141):
        return None
    allowed = {GOOD: (0,), BAD: (2,), EITHER: (0, 2)}[line.expected]
    if end.code not in allowed:
        return f"exit code {end.code}"
    if end.code == 0:
        return None
    if line.stderr == "pipe" and end.err.count("\n") != 1:
        return "not one line"
    if line.stderr == "closed" and end.out:
        return "the message is on stdout"
    if end.out and line.stdout == "pipe":
        return "something on stdout"
    if end.changes:
        return f"{end.changes} changed"
    return None


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        size = status.st_size if path.is_file() and not path.is_symlink() else 0
        found[str(path.relative_to(folder))] = (status.st_mode, size)
    return found


def _child(line: Line, folder: Path, out: Path, err: Path) -> None:
    """In a fork: run a command line and end."""
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")
    signal.alarm(_SECONDS)
    program, *words = line.words
    code: object = 1
    try:
        if program == "jaxdave":
            from jaxdave.cli.main import main
        else:
            from jaxdave_convert.cli import main
        main(words)
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def in_fork(line: Line, folder: Path, work: Path) -> Outcome:
    """Run a command line in a fork of this process.

    Args:
        line: The command line.
        folder: Its working folder.
        work: A folder for what it says.

    Returns:
        How it has ended.
    """
    out, err = work / f"{folder.name}.out", work / f"{folder.name}.err"
    before = _contents(folder)
    pid = os.fork()
    if pid == 0:
        _child(line, folder, out, err)
    status = os.waitpid(pid, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    return Outcome(
        code=None if code == -signal.SIGALRM else code,
        out=out.read_text(errors="replace"),
        err=err.read_text(errors="replace"),
        changes=_changes(before, folder),
    )


def _changes(before: dict[str, tuple[int, int]], folder: Path) -> tuple[str, ...]:
    after = _contents(folder)
    return tuple(sorted(n for n in {*before, *after} if before.get(n) != after.get(n)))[
        :5
    ]


def in_process(line: Line, folder: Path) -> Outcome:
    """Run a command line as a process of its own.

    Args:
        line: The command line.
        folder: Its working folder.

    Returns:
        How it has ended.
    """
    program, *words = line.words
    closed = [
        number
        for number, kind in enumerate((line.stdin, line.stdout, line.stderr))
        if kind == "closed"
    ]
    before = _contents(folder)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(open("/dev/full", "w"))
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAMS[program], *map(os.fsencode, words)],
            cwd=folder,
            stdin=subprocess.DEVNULL if line.stdin == "null" else subprocess.PIPE,
            stdout=full if line.stdout == "full" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: [os.close(number) for number in closed],
        )
        timer = threading.Timer(_SECONDS, process.kill)
        timer.start()
        if line.stdout == "head":
            assert process.stdout
            # Closed at once, so that whatever is written meets no reader.
            process.stdout.close()
            process.stdout = None
        text = line.stdin if line.stdin not in ("null", "closed") else ""
        out, err = process.communicate(text.encode())
        is_stopped = not timer.is_alive()
        timer.cancel()
    return Outcome(
        code=None if is_stopped else process.returncode,
        out=(out or b"").decode(errors="replace"),
        err=err.decode(errors="replace"),
        changes=_changes(before, folder),
    )


def run(todo: list[Line], processes: int, seed: int) -> list[tuple[Line, str, str]]:
    """Run command lines.

    Args:
        todo: The command lines.
        processes: How many at least run as processes of their own.
        seed: Of the sample.

    Returns:
        (command line, how it was run, what is wrong or "") of each.
    """
    special = [line for line in todo if not line.is_plain]
    plain = [line for line in todo if line.is_plain and "\0" not in "".join(line.words)]
    sample = random.Random(seed).sample(
        [line for line in plain if len("".join(line.words)) < 10**5],
        max(0, processes - len(special)),
    )
    results = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prepare_folder = root / "prepared"
        prepare_folder.mkdir()
        prepare(prepare_folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        ways = [("process", line) for line in special + sample]
        ways = [("fork", line) for line in todo if line.is_plain] + ways
        for index, (way, line) in enumerate(ways):
            folder = root / f"folder-{index}"
            shutil.copytree(prepare_folder, folder, symlinks=True)
            if way == "fork":
                end = in_fork(line, folder, root)
            else:
                end = in_process(line, folder)
            wrong = fault(line, end) or ""
            results.append((line, way, wrong))
            if wrong:
                print(
                    f"FAULT ({way}, {line.expected}) {[w[:60] for w in line.words]} "
                    f"{line.stdin[:9]}/{line.stdout}/{line.stderr}: {wrong}; code "
                    f"{end.code}, said {end.err[-400:]!r} {end.out[-80:]!r}",
                    flush=True,
                )
            shutil.rmtree(folder, ignore_errors=True)
            if index % 50 == 49:
                print(f"{index + 1} of {len(ways)}", flush=True)
    return results


def table(results: list[tuple[Line, str, str]]) -> str:
    """A line for each command.

    Args:
        results: As of `run`.

    Returns:
        The table as Markdown.
    """
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for line, way, wrong in results:
        first = line.words[1] if line.words[1:] else ""
        known = ("generate", "eval", "train", "calibrate", "demo", "policies", "drafts")
        name = first if first in known else "none"
        name = "convert" if line.words[0] == "jaxdave-convert" else name
        for row in (name, f"all in a {way}"):
            counts[row][line.expected] += 1
            counts[row]["FAULT"] += bool(wrong)
    columns = (GOOD, BAD, EITHER, "FAULT")
    rows = ["| command | all | good | bad | either | FAULT |", "|---" * 6 + "|"]
    for name in sorted(counts, key=lambda row: "all" in row):
        group = counts[name]
        total = sum(group[column] for column in columns[:3])
        numbers = " | ".join(str(group[column]) for column in columns)
        rows.append(f"| {name} | {total} | {numbers} |")
    return "\n".join(rows)


def main() -> None:
    """Run the benchmark; fails if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--processes", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="A word of the command lines that are run.")
    args = parser.parse_args()
    begin = time.perf_counter()
    # Whatever takes long to import, once for all forks; backends start in them.
    import jax
    import jaxdave_convert.commands
    import jaxdave_convert.conversion
    import jaxdave_convert.exporting  # noqa: F401

    from jaxdave.runtime import compilation

    jax.config.update("jax_disable_most_optimizations", True)
    compilation.EXTRA_OPTIONS.update(_QUICK)
    os.environ.pop("JAXDAVE_NO_CACHE", None)
    todo = lines(args.count, args.seed)
    if args.only:
        todo = [line for line in todo if args.only in " ".join(line.words)]
    results = run(todo, 0 if args.only else args.processes, args.seed)
    print(table(results))
    print(f"{time.perf_counter() - begin:.0f} s")
    sys.exit(any(wrong for _, _, wrong in results))


if __name__ == "__main__":
    main()
