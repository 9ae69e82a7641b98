"""Conversion: peak memory, and speed beside a plain copy of the same bytes.

    python -m bench.convert [--depth-share 0.1] [--published DIR]
    python -m bench.convert --shape llada2-mini --round-trip [--sparse]

Writes a synthetic checkpoint of a preset's shape in bfloat16, shard by shard. For
SDAR-4B tensor names, shards and tokenizer are those of the published checkpoint where
its folder is at hand (no weights are needed); otherwise, and for other shapes, the
names come from the table of the family, and the tokenizer is the demo's.

A run is a fresh `jaxdave-convert` process, start-up included; a copy is every file
copied and flushed to the disk, which is what the converter does too. With fewer layers
there is less to copy but as much to start, so speed is then only printed, also without
the time of a `--dry-run`, and only memory is asserted.

`--round-trip` converts once and exports what came of it, each in a process of its own.
It asserts that every file is the original's, byte for byte, and that neither process
needs more memory than the largest shard and 2 GiB. The files of `--sparse` are random
in the first 4 kB of every tensor and holes (zeros) after them, so that a source as
large as the published one has room beside what is made of it; what is written has no
holes. `--only-convert` leaves the export out, for want of room.
"""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.harness import report, timing
from bench.harness.synthetic_checkpoint import INDEX, config_of_depth, write_source
from jaxdave.models.presets import PRESETS

PUBLISHED = Path(__file__).parents[1] / ".." / "shared" / "data" / "sdar-4b-chat"
"""Default folder of the published checkpoint's files, beside the repository."""

HOW_TO_GET = (
    "hf download JetLM/SDAR-4B-Chat --exclude '*.safetensors' --local-dir DIR, "
    "then --published DIR"
)
MAX_PEAK_GB, MIN_SPEED_RATIO = 6.0, 0.5
MORE_THAN_A_SHARD = 2 << 30
"""Bytes of memory beside the largest shard."""
_RUN_CONVERT = "from jaxdave_convert.cli import main; main()"


def find_published(folder: Path) -> Path | None:
    """Look for the published checkpoint's config and index.

    Prints how to get them where they are missing.

    Args:
        folder: where they should be.

    Returns:
        The folder; None if they are not there.
    """
    if (folder / "config.json").is_file() and (folder / INDEX).is_file():
        return folder
    print(
        f"skipped: the published tensor names and tokenizer, as {folder} has no "
        f"config.json and {INDEX} of JetLM/SDAR-4B-Chat; made-up shards and the demo's "
        f"tokenizer are used. To get them: {HOW_TO_GET}"
    )
    return None


def time_convert(src: Path, dst: Path, *options: str) -> tuple[float, float]:
    """Convert a checkpoint in a fresh process.

    Args:
        src: the checkpoint.
        dst: the folder to write; an earlier one is removed.
        *options: further options of `jaxdave-convert`.

    Returns:
        Wall seconds, and peak resident memory in GB.

    Raises:
        SystemExit: if the process fails.
    """
    shutil.rmtree(dst, ignore_errors=True)
    return run_converter(str(src), str(dst), *options)


def run_converter(*arguments: str) -> tuple[float, float]:
    """Run `jaxdave-convert` in a fresh process.

    Args:
        *arguments: its arguments.

    Returns:
        Wall seconds, and peak resident memory in GB.

    Raises:
        SystemExit: if the process fails.
    """
    command = [sys.executable, "-c", _RUN_CONVERT, *arguments]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # wait4 reports the peak memory of this child alone.
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"jaxdave-convert failed with status {status}")
    # macOS counts bytes, Linux kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 1e9


def time_copy(src: Path, dst: Path) -> float:
    """Copy every file of a folder and flush it to the disk.

    Args:
        src: the folder.
        dst: the folder to write; an earlier one is removed.

    Returns:
        Wall seconds.
    """
    shutil.rmtree(dst, ignore_errors=True)
    dst.mkdir()
    start = time.perf_counter()
    for path in sorted(src.iterdir()):
        shutil.copyfile(path, dst / path.name)
        handle = os.open(dst / path.name, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - start


def measure(work: Path, rounds: int) -> tuple[np.ndarray, float]:
    """Time converting, copying and a dry run in turn.

    Args:
        work: a folder with the checkpoint in `src`.
        rounds: alternating rounds.

    Returns:
        Seconds, `[rounds, (convert, copy, dry run)]`, and the peak memory of all
        conversions in GB.
    """
    peaks = []
    src, dst = work / "src", work / "converted"

    def convert() -> float:
        seconds, peak = time_convert(src, dst)
        peaks.append(peak)
        return seconds

    timers = [
        convert,
        lambda: time_copy(src, work / "copied"),
        lambda: time_convert(src, dst, "--dry-run")[0],
    ]
    return timing.time_alternately(timers, rounds), max(peaks)


def measure_round_trip(
    results: report.Report,
    title: str,
    work: Path,
    max_shard: int,
    only_convert: bool = False,
) -> None:
    """Convert and export a checkpoint; adds a table and claims.

    Args:
        results: the report.
        title: title of the table.
        work: a folder with the checkpoint in `src`.
        max_shard: size of its largest weight file in bytes.
        only_convert: leave the export out.
    """
    src, dst, back = work / "src", work / "converted", work / "back"
    num_bytes = sum(path.stat().st_size for path in src.iterdir())
    runs = {"jaxdave-convert": run_converter(str(src), str(dst))}
    if not only_convert:
        exported = run_converter("--export", str(dst), str(back))
        runs["jaxdave-convert --export"] = exported
    results.add_table(
        title,
        [
            {
                "what": what,
                "seconds": seconds,
                "GB/s": num_bytes / 1e9 / seconds,
                "peak RSS GB": peak_gb,
            }
            for what, (seconds, peak_gb) in runs.items()
        ],
    )
    limit = (max_shard + MORE_THAN_A_SHARD) / 1e9
    peak = max(peak_gb for _, peak_gb in runs.values())
    sentence = f"peak memory is at most a shard's and 2 GiB, {limit:.2f} GB"
    results.claims.append(report.Claim(sentence, peak <= limit))
    if only_convert:
        return
    names = sorted(path.name for path in src.iterdir())
    same, _, _ = filecmp.cmpfiles(src, back, names, shallow=False)
    sentence = f"{len(names)} files come back byte for byte"
    results.claims.append(report.Claim(sentence, len(same) == len(names)))


def add_results(
    results: report.Report,
    title: str,
    num_bytes: int,
    times: np.ndarray,
    peak_gb: float,
    is_whole: bool,
) -> None:
    """Add the table and the claims.

    Args:
        results: the report.
        title: title of the table.
        num_bytes: size of the checkpoint.
        times: seconds, `[rounds, (convert, copy, dry run)]`.
        peak_gb: peak memory of the conversions, in GB.
        is_whole: True for a model of full depth, whose speed is asserted.
    """
    whole, copied, start_up = times.T
    kinds = {
        "jaxdave-convert": whole,
        "the same without start-up": whole - start_up,
        "plain copy": copied,
    }
    results.add_table(
        title,
        [
            {
                "what": what,
                "MB/s, median": num_bytes / 1e6 / np.median(seconds),
                "MB/s, best": num_bytes / 1e6 / seconds.min(),
                "against the copy, paired": timing.median_with_interval(
                    copied / seconds
                ),
                "peak RSS GB": peak_gb if seconds is whole else "",
            }
            for what, seconds in kinds.items()
        ],
    )
    sentence = f"peak memory is at most {MAX_PEAK_GB} GB"
    results.claims.append(report.Claim(sentence, peak_gb <= MAX_PEAK_GB))
    if is_whole:
        # What else runs on the machine only ever slows a run down.
        ratio = copied.min() / whole.min()
        sentence = (
            f"its best is {MIN_SPEED_RATIO} or more of the best speed of a plain copy"
        )
        results.claims.append(report.Claim(sentence, bool(ratio >= MIN_SPEED_RATIO)))


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--depth-share", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument(
        "--published",
        type=Path,
        default=PUBLISHED,
        metavar="DIR",
        help="config, index and tokenizer of JetLM/SDAR-4B-Chat",
    )
    parser.add_argument("--shape", default="sdar-4b", choices=sorted(PRESETS))
    parser.add_argument(
        "--shard-gb", type=float, default=4.0, help="where the index is not published"
    )
    parser.add_argument(
        "--round-trip", action="store_true", help="convert and export once"
    )
    parser.add_argument(
        "--sparse", action="store_true", help="files with holes, for --round-trip"
    )
    parser.add_argument(
        "--only-convert", action="store_true", help="no export, for --round-trip"
    )
    args = parser.parse_args()
    if args.sparse and not args.round_trip:
        parser.error("--sparse is for --round-trip: a copy of holes is no copy")
    results = report.start_report("synthetic")
    has_published = args.shape == "sdar-4b"
    published = find_published(args.published) if has_published else None
    config = config_of_depth(args.shape, args.depth_share)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        work = Path(name)
        src = work / "src"
        src.mkdir()
        max_shard = write_source(
            src,
            config,
            published,
            shard_bytes=int(args.shard_gb * 1e9),
            is_sparse=args.sparse,
        )
        num_bytes = sum(path.stat().st_size for path in src.iterdir())
        size = f"{num_bytes / 1e9:.2f} GB"
        title = f"Converting {size}, {config.num_layers} layers of {args.shape}"
        if args.round_trip:
            measure_round_trip(results, title, work, max_shard, args.only_convert)
        else:
            times, peak_gb = measure(work, args.rounds)
            is_whole = args.depth_share == 1
            add_results(results, title, num_bytes, times, peak_gb, is_whole)
    results.finish(args.out)


if __name__ == "__main__":
    main()
