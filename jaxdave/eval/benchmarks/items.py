"""The rows of the benchmarks' files as items."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxdave.eval.benchmarks import data
from jaxdave.eval.benchmarks.data import Row
from jaxdave.grading.types import Item


def read(
    source: str, make: Callable[[int, Row], Item], folder: Path | None
) -> tuple[Item, ...]:
    """The items of one of `data.SOURCES`; errors: those of `data.rows`."""
    return tuple(make(i, row) for i, row in enumerate(data.rows(source, folder)))


def gsm8k(index: int, row: Row) -> Item:
    return Item(f"gsm8k/{index}", row["question"], row["answer"], {"index": index})


def math500(_: int, row: Row) -> Item:
    told = {"subject": row["subject"], "level": row["level"]}
    return Item(f"math500/{row['unique_id']}", row["problem"], row["answer"], told)


def aime2024(_: int, row: Row) -> Item:
    return Item(f"aime2024/{row['id']}", row["problem"], str(row["answer"]), {})


def mbpp(_: int, row: Row) -> Item:
    told = {"tests": list(row["test_list"]), "setup": row["test_setup_code"]}
    return Item(f"mbpp/{row['task_id']}", row["text"], row["code"], told)


def mbpp_sanitized(_: int, row: Row) -> Item:
    setup = "\n".join(row["test_imports"])
    told = {"tests": list(row["test_list"]), "setup": setup}
    return Item(f"mbpp-sanitized/{row['task_id']}", row["prompt"], row["code"], told)


def humaneval(_: int, row: Row) -> Item:
    told = {"entry_point": row["entry_point"], "test": row["test"]}
    return Item(row["task_id"], row["prompt"], row["canonical_solution"], told)


def published(name: str) -> Callable[[int, Row], Item]:
    """The rows of genverse/: questions and tests as the paper's evaluation has them."""

    def make(index: int, row: Row) -> Item:
        code = {"tests": row.get("test_list"), "prefix": row.get("prefix")}
        told = {"asked": row["question"], **{k: v for k, v in code.items() if v}}
        gold = row.get("ground_truth_answer", "")
        return Item(f"genverse/{name}/{index}", row["question"], gold, told)

    return make


@functools.cache
def mbpp_shots(folder: Path | None) -> Sequence[Item]:
    """Tasks 2, 3 and 4: the examples of MBPP's own prompt."""
    return read("mbpp-shots", mbpp, folder)
