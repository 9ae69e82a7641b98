"""Single bits flipped in cached files: texts must be right, and files made anew.

    python -m bench.flipped_bits [--count 200] [--seed 0]

A model is decoded once with a cache folder of its own. Then, again and again, one drawn
bit of one drawn file there is flipped, everything that the process remembers is
dropped, and the same prompt is decoded. Programs are compiled with less care than
usual, as each flip costs a compilation.
"""

import argparse
import collections
import os
import random
import sys
import tempfile
from pathlib import Path

import jax

import jaxdave
from jaxdave.engine import autotune
from jaxdave.runtime import compilation
from jaxdave.runtime.compilation import clear_executables
from jaxdave.runtime.files import NO_CACHE

_QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
PROMPT = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file.

    Args:
        path: The file.
        bit: Its index, counted from the file's beginning.
    """
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def run(count: int, seed: int, folder: Path) -> tuple[int, int, dict[str, int]]:
    """Flip bits and decode.

    Args:
        count: How many.
        seed: Of the files and the bits.
        folder: The cache folder of the process, empty.

    Returns:
        (right texts, files made anew, flips by kind of file).
    """
    model = jaxdave.load("sdar-1m")
    config = jaxdave.DecodeConfig(max_new_tokens=16, draft_steps=1)
    sampler = jaxdave.Sampler(model, config)
    expected = sampler(PROMPT).token_ids
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rng, right, anew = random.Random(seed), 0, 0
    kinds: collections.Counter[str] = collections.Counter()
    for index in range(count):
        for path, content in kept.items():
            path.write_bytes(content)
        path = rng.choice(sorted(kept))
        flip(path, rng.randrange(8 * len(kept[path])))
        flipped = path.read_bytes()
        clear_executables()
        autotune.MEASUREMENTS.clear()
        right += sampler(PROMPT).token_ids == expected
        anew += path.read_bytes() != flipped
        kinds[path.suffix] += 1
        if index % 20 == 19:
            print(f"{index + 1}: {right} right, {anew} made anew", flush=True)
    return right, anew, dict(kinds)


def main() -> None:
    """Run the benchmark; fails unless every text is right and every file made anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)
    compilation.EXTRA_OPTIONS.update(_QUICK)
    with tempfile.TemporaryDirectory() as name:
        os.environ.pop(NO_CACHE, None)
        os.environ["XDG_CACHE_HOME"] = name
        right, anew, kinds = run(args.count, args.seed, Path(name))
    print(f"{args.count} flips in {kinds}: {right} right texts, {anew} files made anew")
    sys.exit(right != args.count or anew != args.count)


if __name__ == "__main__":
    main()
