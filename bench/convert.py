"""Converting: peak memory, and speed beside a plain copy of the same bytes.

python -m bench.convert [--depth-share 0.1]

Writes a synthetic checkpoint of SDAR-4B's shape in bfloat16, shard by shard, with the
names of the published index where that is at hand. A run is a fresh `jaxdave-convert`
process, start-up included; a copy is every file copied and brought to the disk, which
is what the converter does too. With fewer layers there is less to copy but as much to
start, so speed is then printed, also without the time of a `--dry-run`, and only memory
is asserted.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from jaxdave_convert import safetensors_header

from bench.harness import common
from jaxdave.core.config import ModelConfig
from jaxdave.io import families, hf_config, orbax_io
from jaxdave.io.hub import find_model
from jaxdave.models.presets import preset

PUBLISHED = Path(__file__).parents[1] / ".." / "shared" / "data" / "sdar-4b-chat"
RUN = "from jaxdave_convert.cli import main; main()"
MOST_GB, LEAST_RATIO = 6.0, 0.5
_RANDOM = 64 << 20


def config_of(share: float) -> ModelConfig:
    """SDAR-4B with a share of its layers."""
    full = preset("sdar-4b")
    return preset("sdar-4b", num_layers=max(1, round(full.num_layers * share)))


def weight_map(config: ModelConfig) -> dict[str, str]:
    """Tensor -> shard: the published index, less the layers left out."""
    targets = families.checkpoint_tensors(families.SDAR, config)
    index = PUBLISHED / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        layer = re.compile(r"layers\.(\d+)\.")
        found = {
            name: file
            for name, file in listed.items()
            if not (m := layer.search(name)) or int(m[1]) < config.num_layers
        }
        if found.keys() != targets.keys():
            raise ValueError(f"{index} has other tensors than the table of sdar")
        return found
    half = len(targets) // 2
    return {name: f"{i // (half + 1)}.safetensors" for i, name in enumerate(targets)}


def write_source(folder: Path, config: ModelConfig) -> None:
    """Random weights; sidecars of the published folder, or of the demo."""
    targets = families.checkpoint_tensors(families.SDAR, config)
    homes = weight_map(config)
    noise = np.random.default_rng(0).normal(scale=0.02, size=_RANDOM // 4)
    data = (noise.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    for file in sorted(set(homes.values())):
        kinds = {n: ("BF16", targets[n].shape) for n in homes if homes[n] == file}
        header = safetensors_header.build_header(kinds, {"format": "pt"})
        with (folder / file).open("wb") as opened:
            opened.write(header)
            for tensor in safetensors_header.parse_tensors(header, file):
                for first in range(0, tensor.size, len(data)):
                    opened.write(data[: min(len(data), tensor.size - first)])
            os.fsync(opened.fileno())
    write_sidecars(folder, config, homes)


def write_sidecars(folder: Path, config: ModelConfig, homes: dict[str, str]) -> None:
    """Config, index and tokenizer."""
    is_published = PUBLISHED.is_dir()
    for path in (PUBLISHED if is_published else find_model(None)[1]).iterdir():
        if "token" in path.name or path.name in ("vocab.json", "merges.txt"):
            shutil.copyfile(path, folder / path.name)
    raw = hf_config.to_json(config, "bfloat16")
    if not is_published:
        raw |= {"mask_token_id": None, "eos_token_id": 0, "real_vocab_size": 0}
        raw = {key: value for key, value in raw.items() if key != "mask_token_id"}
    orbax_io.write_json(folder / "config.json", raw)
    orbax_io.write_json(folder / "model.safetensors.index.json", {"weight_map": homes})


def convert(src: Path, dst: Path, *options: str) -> tuple[float, float]:
    """Seconds and peak resident GB of one fresh process."""
    shutil.rmtree(dst, ignore_errors=True)
    command = [sys.executable, "-c", RUN, str(src), str(dst), *options]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"jaxdave-convert failed with status {status}")
    return seconds, usage.ru_maxrss * 1024 / 1e9


def copy(src: Path, dst: Path) -> float:
    """Seconds to copy every file and bring it to the disk."""
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
    """Seconds [rounds, (convert, copy, dry run)] in turn, and the highest memory."""
    peaks = []
    src, dst = work / "src", work / "converted"

    def once() -> float:
        seconds, peak = convert(src, dst)
        peaks.append(peak)
        return seconds

    timers = [
        once,
        lambda: copy(src, work / "copied"),
        lambda: convert(src, dst, "--dry-run")[0],
    ]
    return common.alternate(timers, rounds), max(peaks)


def tell(report, title: str, size: int, times: np.ndarray, peak: float, is_whole):
    """The table, and the claims."""
    whole, copied, start = times.T
    kinds = {
        "jaxdave-convert": whole,
        "the same without start-up": whole - start,
        "plain copy": copied,
    }
    report.table(
        title,
        [
            {
                "what": what,
                "MB/s, median": size / 1e6 / np.median(seconds),
                "MB/s, best": size / 1e6 / seconds.min(),
                "against the copy, paired": common.spread(copied / seconds),
                "peak RSS GB": peak if seconds is whole else "",
            }
            for what, seconds in kinds.items()
        ],
    )
    claim = common.Claim
    report.claims.append(claim(f"peak memory is at most {MOST_GB} GB", peak <= MOST_GB))
    if is_whole:
        # What else runs on the machine only ever slows a run down.
        ratio = copied.min() / whole.min()
        speed = f"its best is {LEAST_RATIO} or more of the best speed of a plain copy"
        report.claims.append(claim(speed, bool(ratio >= LEAST_RATIO)))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--depth-share", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    args = parser.parse_args()
    report = common.begin("synthetic")
    config = config_of(args.depth_share)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        work = Path(name)
        (work / "src").mkdir()
        write_source(work / "src", config)
        size = sum(path.stat().st_size for path in (work / "src").iterdir())
        times, peak = measure(work, args.rounds)
    title = f"Converting {size / 1e9:.2f} GB, {config.num_layers} layers of SDAR-4B"
    tell(report, title, size, times, peak, is_whole=args.depth_share == 1)
    report.finish(args.out)


if __name__ == "__main__":
    main()
