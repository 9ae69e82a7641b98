"""The blocks of code of a page, and how they are run.

    python tests/helpers/doc_blocks.py README.md docs/quick_start.md

A page's Python blocks run in order in one namespace, its shell blocks in one folder.
Where a ```text block follows, it is the output. A block may be left out only after a
comment `<!-- not run: REASON -->`. Blocks that set up an environment are left to
`.ci/newcomer`, which runs this file in the environment that the README makes.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CHECKPOINT = "SDAR-4B-Chat"
"""The folder that pages take for a checkpoint of the user's."""
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block of code: its language, its lines, what it prints, why it is not run."""

    language: str
    code: str
    output: str | None
    reason: str | None


def read_blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(m["language"], m["code"], m["output"], m["reason"])
        for m in _BLOCK.finditer(text)
    ]


def runnable(page: str, language: str) -> list[Block]:
    """The blocks of a page that are to be run."""
    return [
        block
        for block in read_blocks(page)
        if block.language == language
        and block.reason is None
        and "-m venv" not in block.code
    ]


def run_python(page: str) -> None:
    """Run the Python blocks of a page, in the present folder."""
    namespace = {"__name__": "__main__"}
    for block in runnable(page, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, page, "exec"), namespace)
        _compare(page, block, printed.getvalue())


def run_shell(page: str, folder: Path) -> None:
    """Run the shell blocks of a page in a folder, which keeps their programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cache = os.environ.get("XDG_CACHE_HOME") or str(folder / "cache")
    env = {**os.environ, "PATH": path, "XDG_CACHE_HOME": cache}
    env.pop("JAXDAVE_NO_CACHE", None)
    for block in runnable(page, "sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{page}: {block.code}{done.stderr}"
        _compare(page, block, done.stdout)


def make_checkpoint(folder: Path) -> None:
    """Put a checkpoint into a folder, as its family publishes it: a demo model's."""
    import jaxdave_convert

    jaxdave_convert.convert("sdar-1m", folder / "converted")
    jaxdave_convert.export(folder / "converted", folder / CHECKPOINT)


def _compare(page: str, block: Block, printed: str) -> None:
    assert block.output in (None, printed), f"{page}: {block.code}printed {printed}"


def main(pages: list[str]) -> None:
    """Run all blocks of pages in a folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name))
        os.chdir(name)
        for page in pages:
            run_python(page)
            run_shell(page, Path(name))
            print(f"{page}: every block runs and prints what it says", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
