"""Mutated checkpoint folders: refused in one line, or decoded to the text they hold.

    python -m bench.mutated_checkpoints [--count 600] [--commands 64] [--seed 0]

Every folder is loaded and decoded by `jaxdave`, and converted and loaded again by
`jaxdave_convert`, in worker processes of limited time and memory; a sample goes through
the command lines too. A fault is an error that is no refusal, a text where there should
have been a refusal or another text, a conversion of what does not load, a crash and a
hang.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import io
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import checkpoint_mutations as cm
from bench.harness import file_changes
from bench.harness.checkpoint_mutations import Mutation

PROMPT = "Mia has 3 pens."
_ROOM, _DRAFTS = 32, 4
_SECONDS = 180
_MEMORY = 20 << 30
"""Address space of a worker; what jax and its threads reserve is most of it."""
_JOBS = 40
"""Folders after which a worker is replaced, so that its programs do not add up."""
_QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


class Outcome(NamedTuple):
    """What came of a folder, in one of the ways.

    Attributes:
        kind: "text", "refused" or "fault".
        detail: The token ids of a text; what was said otherwise.
    """

    kind: str
    detail: Any


class Verdict(NamedTuple):
    """A mutation and what came of it.

    Attributes:
        mutation: The mutation.
        way: "library", "converter", "generate" or "jaxdave-convert".
        result: "same text", "other text", "refused" or "FAULT".
        detail: What was said.
    """

    mutation: Mutation
    way: str
    result: str
    detail: str


def judge(mutation: Mutation, way: str, outcome: Outcome, expected: Any) -> Verdict:
    """Judge an outcome by what its mutation may lead to.

    Args:
        mutation: The mutation.
        way: The way that the folder went.
        outcome: What came of it.
        expected: The detail of the unmutated folder's text.

    Returns:
        The verdict.
    """
    kind, effect = outcome.kind, mutation.effect
    if kind == "text":
        kind = "same text" if outcome.detail == expected else "other text"
    is_fault = kind == "fault"
    is_fault |= kind == "other text" and effect != file_changes.OTHER
    is_fault |= kind == "refused" and effect == file_changes.SAME
    is_fault |= kind != "refused" and effect == file_changes.REFUSED
    return Verdict(
        mutation, way, "FAULT" if is_fault else kind, f"{kind}: {outcome.detail}"
    )


def _decode(folder: Path) -> Outcome:
    """Load a folder and decode with it, as a Python program would."""
    import jaxdave
    from jaxdave.engine.results import check_finite

    try:
        model = jaxdave.load(folder)
        config = jaxdave.DecodeConfig(max_new_tokens=_ROOM, draft_steps=_DRAFTS)
        result = jaxdave.Sampler(model, config)(PROMPT)
        if result.finish_reason == "nonfinite":
            check_finite({0: result.finish_reason})
        return Outcome("text", (result.token_ids, result.text))
    except ValueError as error:
        return _refusal(str(error))
    except BaseException as error:
        return Outcome("fault", f"{type(error).__name__}: {error}"[:300])


def _refusal(line: str) -> Outcome:
    is_line = line and "\n" not in line and len(line) < 3000
    return Outcome("refused" if is_line else "fault", line[:400])


def _convert(folder: Path) -> Outcome:
    """Convert a folder, and decode with what that makes."""
    from jaxdave_convert import cli

    out, err = folder.parent / f"{folder.name}.ours", io.StringIO()
    code: Any = None
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            cli.main([str(folder), str(out)])
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        return Outcome("fault", f"{type(error).__name__}: {error}"[:300])
    left = [p.name for p in folder.parent.iterdir() if folder.name in p.name]
    left = [n for n in left if n not in (folder.name, f"{folder.name}.blob")]
    if code == 2:
        said = err.getvalue()
        if left or said.count("\n") != 1:
            return Outcome("fault", f"{left} left; {said}"[:300])
        return _refusal(said.strip())
    if code != 0 or left != [out.name]:
        return Outcome("fault", f"code {code}, {left} left")
    return _digest(out)


def _digest(folder: Path) -> Outcome:
    """Load a converted folder; what is in it stands for the text that it decodes to."""
    import jax
    import numpy as np

    import jaxdave

    try:
        model = jaxdave.load(folder)
    except Exception as error:
        return Outcome("fault", f"converted, and then: {error!r}"[:300])
    try:
        prompt: object = tuple(model.codec.encode_prompt(PROMPT))
    except ValueError as error:
        prompt = str(error).replace(str(folder), "")
    state = hashlib.sha256()
    for leaf in jax.tree.leaves(model.params):
        state.update(np.asarray(leaf).tobytes())
    config = dataclasses.replace(model.config, name="")
    return Outcome("text", (config, prompt, state.hexdigest()))


def _work(connection: Any) -> None:
    """The main function of a worker: folders in, outcomes out."""
    import jax

    from jaxdave.runtime import compilation

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    jax.config.update("jax_disable_most_optimizations", True)
    compilation.EXTRA_OPTIONS.update(_QUICK)
    with contextlib.suppress(EOFError):
        while True:
            way, folder = connection.recv()
            connection.send({"library": _decode, "converter": _convert}[way](folder))


class Worker:
    """A process that loads and decodes folders, replaced when it ends or hangs."""

    def __init__(self) -> None:
        self.process: Any = None
        self.jobs = 0

    def call(self, way: str, folder: Path) -> Outcome:
        """Give it a folder.

        Args:
            way: "library" or "converter".
            folder: The folder.

        Returns:
            What came of it; a fault where the process has ended or was too slow.
        """
        if self.process is None or self.jobs >= _JOBS:
            self.stop()
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=_work, args=(other,), daemon=True)
            self.process.start()
            other.close()
            self.jobs = 0
        self.jobs += 1
        self.connection.send((way, folder))
        try:
            if self.connection.poll(_SECONDS * (2 if self.jobs == 1 else 1)):
                return self.connection.recv()
            reason = f"no end after {_SECONDS} s"
        except (EOFError, OSError):
            self.process.join(5)
            reason = f"the process has ended with {self.process.exitcode}"
        self.stop()
        return Outcome("fault", reason)

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _command(way: str, folder: Path) -> Outcome:
    """Run a command line on a folder."""
    program = "from jaxdave.cli.main import main; main()"
    words = [
        "generate", PROMPT, "--model", str(folder), "--max-new-tokens", str(_ROOM),
        "--draft-steps", str(_DRAFTS),
    ]  # fmt: skip
    if way == "jaxdave-convert":
        program = "from jaxdave_convert.cli import main; main()"
        words = [str(folder), f"{folder}.ours"]
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            capture_output=True,
            timeout=2 * _SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome("fault", f"no end after {2 * _SECONDS} s")
    said = done.stderr.decode(errors="replace")
    out = done.stdout.decode(errors="replace")
    if done.returncode == 2 and not out:
        # Warnings may come before the one line of the refusal.
        line = said.rstrip("\n").rpartition("\n")[2]
        is_left = way == "jaxdave-convert" and Path(f"{folder}.ours").exists()
        if "Traceback" in said or is_left or not line.startswith("jaxdave"):
            return Outcome("fault", said[-400:])
        return _refusal(line)
    if done.returncode or "Traceback" in said:
        return Outcome("fault", f"code {done.returncode}: {said[-400:]}")
    return Outcome("text", out if way == "generate" else "converted")


def _delete(folder: Path) -> None:
    for path in folder.parent.glob(f"*{folder.name}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


class _Run:
    """All of the folders, by two threads with a worker each."""

    def __init__(self, root: Path, count: int, commands: int, seed: int) -> None:
        self.root = root
        self.todo = cm.mutations(count, seed)
        self.commands = commands
        self.total = len(self.todo)
        self.expected: dict[tuple[str, str], Any] = {}
        self.verdicts: list[Verdict] = []
        self.lock = threading.Lock()

    def expect(self) -> None:
        """Decode with the unmutated folders."""
        worker = Worker()
        for name in cm.BASES:
            folder = self.root / f"base-{name}"
            cm.make_base(name, folder)
            for way in ("library", "converter"):
                self.expected[way, name] = worker.call(way, folder)
            shutil.rmtree(f"{folder}.ours")
            for way in ("generate", "jaxdave-convert"):
                self.expected[way, name] = _command(way, folder)
        worker.stop()
        bad = {k: v for k, v in self.expected.items() if v.kind != "text"}
        if bad:
            raise SystemExit(f"the unmutated folders fail: {bad}")

    def loop(self) -> None:
        """Take mutations until there are none."""
        worker = Worker()
        while True:
            with self.lock:
                if not self.todo:
                    break
                mutation = self.todo.pop()
                index = self.total - len(self.todo)
            folder = self.root / f"folder-{index:04}"
            shutil.copytree(self.root / f"base-{mutation.base}", folder)
            mutation.apply(folder)
            ways = ["library", "converter"]
            step = max(1, self.total // max(1, self.commands))
            if index % step == 0:
                ways.append(
                    ("generate", "generate", "jaxdave-convert")[index // step % 3]
                )
            for way in ways:
                if way in ("library", "converter"):
                    outcome = worker.call(way, folder)
                else:
                    shutil.rmtree(f"{folder}.ours", ignore_errors=True)
                    outcome = _command(way, folder)
                expected = self.expected[way, mutation.base].detail
                verdict = judge(mutation, way, outcome, expected)
                # A conversion says nothing of the text.
                with self.lock:
                    self.verdicts.append(verdict)
                if verdict.result == "FAULT":
                    print(
                        f"FAULT {way} {mutation.base} {mutation.group}: "
                        f"{mutation.name} "
                        f"({mutation.effect}): {verdict.detail[:500]}",
                        flush=True,
                    )
            _delete(folder)
            if index % 50 == 0:
                print(f"{index} of {self.total}", flush=True)
        worker.stop()


def table(verdicts: Sequence[Verdict]) -> str:
    """A line for each group and for each way.

    Args:
        verdicts: What came of the folders.

    Returns:
        The table as Markdown.
    """
    results = ("refused", "same text", "other text", "FAULT")
    rows = [f"| | {' | '.join(('all', *results))} |", "|---" * 6 + "|"]
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for verdict in verdicts:
        if verdict.way == "library":
            counts[verdict.mutation.group][verdict.result] += 1
        counts[f"all, {verdict.way}"][verdict.result] += 1
    for name, group in sorted(counts.items(), key=lambda pair: "all" in pair[0]):
        numbers = " | ".join(str(group[result]) for result in results)
        rows.append(f"| {name} | {group.total()} | {numbers} |")
    return "\n".join(rows)


def main() -> None:
    """Run the benchmark; fails if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=480)
    parser.add_argument("--commands", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="A word of the names that are taken.")
    args = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        os.environ.pop("JAXDAVE_NO_CACHE", None)
        run = _Run(root, args.count, args.commands, args.seed)
        if args.only:
            run.todo = [m for m in run.todo if args.only in f"{m.group} {m.name}"]
            run.total = len(run.todo)
        run.expect()
        threads = [threading.Thread(target=run.loop) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(table(run.verdicts))
    print(f"{time.perf_counter() - begin:.0f} s")
    sys.exit(any(verdict.result == "FAULT" for verdict in run.verdicts))


if __name__ == "__main__":
    main()
