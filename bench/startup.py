"""Time of one `jaxdave` command from start to exit, cold and with a warm cache.

    python -m bench.startup [--rounds 15] [--against CHECKOUT]

Every command runs in a fresh process with a cache folder of its own: first with an
empty one, so that its programs are compiled, then again. Warm starts take turns with a
process that imports jax, starts its device and does nothing else, and, under
`--against`, with the same command of another checkout (as `git worktree add` makes).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.harness import report
from bench.harness.timing import median_with_interval, time_alternately

PROMPT = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"
IMPORT_JAX = "import jax; jax.devices()"
COLD_ROUNDS = 3
OPTIONS = ((), ("--temperature", "0.7"))
"""Of the commands that are timed."""
_ROOT = Path(__file__).parents[1]
_RUN_CLI = "from jaxdave.cli.main import main; main()"


def run_python(
    code: str, *arguments: str, folder: Path = _ROOT, **variables: str
) -> float:
    """Time a fresh Python process.

    Args:
        code: What it runs.
        *arguments: Its arguments.
        folder: Where it runs, which is where it looks for packages first.
        **variables: Environment variables to set.

    Returns:
        Wall seconds, interpreter start included.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        capture_output=True,
        cwd=folder,
        env={**os.environ, **variables},
    )
    return time.perf_counter() - start


def time_command(cache: str, *arguments: str, root: Path = _ROOT) -> float:
    """Time one command in a fresh process.

    Args:
        cache: the user's cache folder for the process.
        *arguments: words after `jaxdave`.
        root: the checkout whose code it runs.

    Returns:
        Wall seconds, interpreter start included.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    path = os.pathsep.join((str(root), str(root / "convert")))
    return run_python(
        _RUN_CLI, *arguments, folder=root, XDG_CACHE_HOME=cache, PYTHONPATH=path
    )


def _time_cold(root: Path, *arguments: str) -> float:
    """Seconds of a command with an empty cache folder."""
    with tempfile.TemporaryDirectory() as cache:
        return time_command(cache, *arguments, root=root)


def _time_warm(roots: list[Path], rounds: int, *arguments: str) -> np.ndarray:
    """Seconds of importing jax and of a command of n checkouts, `[rounds, 1 + n]`."""
    with tempfile.TemporaryDirectory() as folder:
        caches = [str(Path(folder, str(i))) for i in range(len(roots))]
        for cache, root in zip(caches, roots, strict=True):
            time_command(cache, *arguments, root=root)
        return time_alternately(
            [
                lambda: run_python(IMPORT_JAX),
                *(
                    lambda cache=cache, root=root: time_command(
                        cache, *arguments, root=root
                    )
                    for cache, root in zip(caches, roots, strict=True)
                ),
            ],
            rounds,
        )


def _row(roots: list[Path], rounds: int, *options: str) -> dict[str, object]:
    """The starts of one command in each checkout; the first is compared with others."""
    words = ("generate", PROMPT, *options)
    timers = [lambda root=root: _time_cold(root, *words) for root in roots]
    cold = time_alternately(timers, COLD_ROUNDS)
    warm = _time_warm(roots, rounds, *words)
    row: dict[str, object] = {
        "command": " ".join(("generate", *options)),
        "cold s (aim 9)": statistics.median(cold[:, 0]),
        "warm s": statistics.median(warm[:, 1]),
        "beyond importing jax (aim 0.6)": str(
            median_with_interval(warm[:, 1] - warm[:, 0])
        ),
    }
    if roots[1:]:
        row["cold against it"] = str(median_with_interval(cold[:, 0] / cold[:, 1]))
        row["warm against it"] = str(median_with_interval(warm[:, 1] / warm[:, 2]))
    return row


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="warm starts")
    parser.add_argument("--against", type=Path, help="a checkout to compare with")
    args = parser.parse_args()
    results = report.start_report(args.weights)
    roots = [_ROOT] if args.against is None else [_ROOT, args.against.resolve()]
    rows = [_row(roots, args.rounds, *options) for options in OPTIONS]
    results.add_table("Start-up (medians, fresh processes)", rows)
    with tempfile.TemporaryDirectory() as cache:
        seconds = [time_command(cache, "--help") for _ in range(COLD_ROUNDS)]
    results.add_table("Help", [{"command": "--help", "s": statistics.median(seconds)}])
    results.finish(args.out)


if __name__ == "__main__":
    main()
