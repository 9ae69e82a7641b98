"""Time of one `jaxdave` command from start to exit, cold and with a warm cache.

    python -m bench.startup

Every command runs in a fresh process with a cache folder of its own: first with an
empty one, so that its programs are compiled, then again.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from bench.harness import report

PROMPT = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"
ROUNDS = 3
_RUN_CLI = "from jaxdave.cli.main import main; main()"


def time_command(cache: str, *arguments: str) -> float:
    """Time one command in a fresh process.

    Args:
        cache: the user's cache folder for the process.
        *arguments: words after `jaxdave`.

    Returns:
        Wall seconds, interpreter start included.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", _RUN_CLI, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "XDG_CACHE_HOME": cache},
    )
    return time.perf_counter() - start


def _cold_and_warm(*arguments: str) -> list[float]:
    """Seconds of a command with an empty cache folder, and again with that folder."""
    with tempfile.TemporaryDirectory() as cache:
        return [time_command(cache, *arguments) for _ in range(2)]


def main() -> None:
    """Run the benchmark."""
    args = report.argument_parser(__doc__).parse_args()
    results = report.start_report(args.weights)
    rows = []
    for name, options, goal in (
        ("generate", (), "12 cold, 5 warm"),
        ("generate --temperature 0.7", ("--temperature", "0.7"), ""),
    ):
        pairs = [_cold_and_warm("generate", PROMPT, *options) for _ in range(ROUNDS)]
        cold, warm = (statistics.median(side) for side in zip(*pairs, strict=True))
        rows.append({"command": name, "cold s": cold, "warm s": warm, "goal": goal})
    help_seconds = statistics.median(time_command("", "--help") for _ in range(ROUNDS))
    rows.append({"command": "--help", "cold s": help_seconds, "warm s": "", "goal": ""})
    results.add_table("Start-up (medians of 3, fresh processes)", rows)
    results.finish(args.out)


if __name__ == "__main__":
    main()
