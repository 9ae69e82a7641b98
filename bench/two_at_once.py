"""Two of everything at once: right texts, or one line and exit code 2, and whole files.

    python -m bench.two_at_once [--rounds 1] [--only NAME]

Both processes of a case start together, with caches that are cold for both and files
that both of them write.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.harness.checkpoint_mutations import make_base

_SECONDS = 900
_PROGRAMS = {
    "jaxdave": "from jaxdave.cli.main import main; main()",
    "jaxdave-convert": "from jaxdave_convert.cli import main; main()",
    # Drops all but the latest file of every folder of the cache, again and again.
    "thin": (
        "import sys, time, pathlib\n"
        "from jaxdave.runtime.cache_files import keep_latest, trusted_folder\n"
        "while not pathlib.Path('end').exists():\n"
        "    root = trusted_folder('x').parent\n"
        "    for folder in root.iterdir() if root.exists() else ():\n"
        "        if folder.is_dir(): keep_latest(folder, 1)\n"
        "    time.sleep(0.001)\n"
    ),
}
_SMALL = ("--max-new-tokens", "16", "--draft-steps", "4")


class End(NamedTuple):
    """How a process has ended.

    Attributes:
        code: Its exit code.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
    """

    code: int
    out: str
    err: str


class Case(NamedTuple):
    """Command lines that are started together.

    Attributes:
        name: What it is called in the table.
        lines: The command lines, each with its program.
        check: Of the folder and the ends, what is wrong; "" if nothing is.
        before: Command lines that run first, one after the other.
        thin: Whether files of the cache disappear all the time.
    """

    name: str
    lines: tuple[tuple[str, ...], ...]
    check: Callable[[Path, Sequence[End]], str]
    before: tuple[tuple[str, ...], ...] = ()
    thin: bool = False


def _start(line: Sequence[str], folder: Path) -> subprocess.Popen:
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAMS[line[0]], *line[1:]],
        cwd=folder,
        env={**os.environ, **cache},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _all_say(text: str) -> Callable[[Path, Sequence[End]], str]:
    def check(folder: Path, ends: Sequence[End]) -> str:
        return "" if all(end.out == text for end in ends) else "other texts"

    return check


def _one_result(verify: Callable[[Path], str]) -> Callable[[Path, Sequence[End]], str]:
    """At least one has done its work, and what is there is whole."""

    def check(folder: Path, ends: Sequence[End]) -> str:
        if all(end.code for end in ends):
            return "nobody did the work"
        return verify(folder)

    return check


def _evaluated(folder: Path) -> str:
    for file in (folder / "out").glob("*.jsonl"):
        lines = file.read_text().splitlines()
        values = [json.loads(line) for line in lines]
        if len(values) != len({json.dumps(value, sort_keys=True) for value in values}):
            return f"{file.name}: a line twice"
        if len(values) != 3:  # a header and two items
            return f"{file.name}: {len(values)} lines"
    return _nothing_left(folder)


def _loads(path: str) -> Callable[[Path], str]:
    def check(folder: Path) -> str:
        import jaxdave

        model = jaxdave.load(folder / path)
        if not np.isfinite(np.asarray(model.params["norm"]["scale"])).all():
            return "no numbers"
        return _nothing_left(folder)

    return check


def _calibrated(folder: Path) -> str:
    import jaxdave

    tables = jaxdave.load(folder / "sdar-1m").tables
    return "" if tables else "no tables"


def _nothing_left(folder: Path) -> str:
    left = [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.startswith(".") and not path.name.startswith((".z",))
        if "cache" not in path.parts
    ]
    return f"{left} left" if left else ""


def cases(text: str) -> tuple[Case, ...]:
    """The cases.

    Args:
        text: What `generate` answers.

    Returns:
        Two of each command, and commands that use what another one makes.
    """
    generate = ("jaxdave", "generate", "Hello", *_SMALL, "--model", "./sdar-1m")
    evaluate = (
        "jaxdave", "eval", "--model", "./sdar-1m", "--limit", "2", "--max-new-tokens",
        "16", "--methods", "static", "--tasks", "demo-math", "--out", "out",
    )  # fmt: skip
    train = ("jaxdave", "train", "--steps", "1", "--out", "out")
    convert = ("jaxdave-convert", "sdar-1m", "out")
    calibrate = (
        "jaxdave", "calibrate", "--model", "./sdar-1m", "--problems", "4",
        "--max-new-tokens", "16",
    )  # fmt: skip
    demo = ("jaxdave", "demo", "--problems", "2")
    again = (*convert, "--overwrite")
    longer = (*generate[:3], "--max-new-tokens", "12", *generate[5:])
    same = _all_say(text)

    def both_kinds(folder: Path, ends: Sequence[End]) -> str:
        return same(folder, ends[:1]) or _calibrated(folder)

    def demos(folder: Path, ends: Sequence[End]) -> str:
        is_right = all("Texts equal: 2 of 2" in end.out for end in ends)
        return "" if is_right else "texts are not equal"

    def converted(folder: Path, ends: Sequence[End]) -> str:
        return same(folder, ends[:1]) or _loads("out")(folder)

    return (
        Case("generate, cold", (generate,) * 2, same),
        Case("generate, two programs", (generate, longer), lambda f, e: same(f, e[:1])),
        Case("generate, thinned", (generate,) * 2, same, thin=True),
        Case("generate, warm, thinned", (generate,) * 2, same, (generate,), thin=True),
        Case("eval", (evaluate,) * 2, _one_result(_evaluated)),
        Case("train", (train,) * 2, _one_result(_loads("out/model"))),
        Case("convert", (convert,) * 2, _one_result(_loads("out"))),
        Case("convert over", (again,) * 2, _one_result(_loads("out")), (convert,)),
        Case(
            "convert over, generate",
            ((*generate[:-1], "out"), again),
            converted,
            (convert,),
        ),
        Case("demo", (demo,) * 2, demos),
        Case("calibrate", (calibrate,) * 2, _one_result(_calibrated)),
        Case(
            "calibrate, two keys",
            (calibrate, (*calibrate, "--block-length", "8")),
            _one_result(lambda f: "" if _count(f) == 2 else f"{_count(f)} tables"),
        ),
        Case("calibrate, generate", (generate, calibrate), both_kinds),
    )


def _count(folder: Path) -> int:
    raw = json.loads((folder / "sdar-1m" / "drafts.json").read_text())
    return len(raw["tables"])


def run(case: Case, root: Path) -> tuple[str, list[int]]:
    """Run a case.

    Args:
        case: The case.
        root: A folder for it, removed in the end.

    Returns:
        (what is wrong or "", exit codes).
    """
    folder = Path(tempfile.mkdtemp(dir=root))
    make_base("sdar-1m", folder / "sdar-1m")
    (folder / "sdar-1m" / "drafts.json").unlink()
    for line in case.before:
        if _start(line, folder).wait(_SECONDS):
            raise SystemExit(f"{line} fails")
    thinner = _start(("thin",), folder) if case.thin else None
    processes = [_start(line, folder) for line in case.lines]
    ends = []
    for process in processes:
        out, err = process.communicate(timeout=_SECONDS)
        ends.append(End(process.returncode, out, err))
    (folder / "end").touch()
    wrong = ""
    if thinner is not None:
        said = thinner.communicate()[1]
        wrong = f"the thinner: {said[-300:]}" if thinner.returncode else ""
    for end in ends:
        lines = end.err.strip().splitlines()
        if "Traceback" in end.err or end.code not in (0, 2):
            wrong = wrong or f"code {end.code}: {end.err[-600:]}"
        elif end.code == 2 and not lines[-1].startswith("jaxdave"):
            wrong = wrong or f"no line: {end.err[-300:]}"
    wrong = wrong or case.check(folder, ends)
    if wrong:
        wrong += f" ({[end.err[-200:] for end in ends]})"
    shutil.rmtree(folder, ignore_errors=True)
    return wrong, [end.code for end in ends]


def main() -> None:
    """Run the benchmark; fails if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="A word of a case's name.")
    args = parser.parse_args()
    rows = ["| case | exit codes | wrong |", "|---|---|---|"]
    is_bad = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name)
        os.environ.pop("JAXDAVE_NO_CACHE", None)
        make_base("sdar-1m", root / "sdar-1m")
        first = ("jaxdave", "generate", "Hello", *_SMALL, "--model", "./sdar-1m")
        text = _start(first, root).communicate()[0]
        for case in cases(text) * args.rounds:
            if args.only not in case.name:
                continue
            begin = time.perf_counter()
            wrong, codes = run(case, root)
            is_bad |= bool(wrong)
            print(f"{case.name}: {codes} {wrong} {time.perf_counter() - begin:.0f} s")
            sys.stdout.flush()
            rows.append(
                f"| {case.name} | {', '.join(map(str, codes))} | {wrong[:60]} |"
            )
    print("\n".join(rows))
    sys.exit(is_bad)


if __name__ == "__main__":
    main()
