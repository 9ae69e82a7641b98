"""Start-up: the wall time of one `jaxdave generate`, cold and with a warm cache.

python -m bench.startup
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from bench.harness import common

PROMPT = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"
RUN = "from jaxdave.cli.main import main; main()"
ROUNDS = 3


def once(cache: str, *arguments: str) -> float:
    """Seconds of one command in a fresh process."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "XDG_CACHE_HOME": cache},
    )
    return time.perf_counter() - start


def main() -> None:
    args = common.parser(__doc__).parse_args()
    report = common.begin(args.weights)
    rows = []
    for name, more, goal in (
        ("generate", (), "12 cold, 5 warm"),
        ("generate --temperature 0.7", ("--temperature", "0.7"), ""),
    ):
        pairs = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as cache:
                pairs.append([once(cache, "generate", PROMPT, *more) for _ in range(2)])
        cold, warm = (statistics.median(side) for side in zip(*pairs, strict=True))
        rows.append({"command": name, "cold s": cold, "warm s": warm, "goal": goal})
    rows.append(
        {
            "command": "--help",
            "cold s": statistics.median(once("", "--help") for _ in range(ROUNDS)),
            "warm s": "",
            "goal": "",
        }
    )
    report.table("Start-up (medians of 3, fresh processes)", rows)
    report.finish(args.out)


if __name__ == "__main__":
    main()
