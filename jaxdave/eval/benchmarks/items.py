"""Rows of the benchmarks' files as items.

What a grader or a prompt needs besides question and reference goes into `Item.data`.
The data is part of the digest that resumed runs compare, so its keys do not change.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxdave.eval.benchmarks import data
from jaxdave.eval.benchmarks.data import JsonRow
from jaxdave.grading.types import Item

MakeItem = Callable[[int, JsonRow], Item]
"""Function (index of the row in its file, row) -> item."""


def read_items(file: str, make_item: MakeItem, folder: Path | None) -> tuple[Item, ...]:
    """Return the items of one file, in its order.

    Args:
        file: Key of `data.FILES`.
        make_item: Function that makes an item of a row.
        folder: Folder of the benchmark files; None for the package or the Hub.

    Returns:
        One item per row.

    Raises:
        ValueError: As `data.load_rows`.
    """
    rows = data.load_rows(file, folder)
    return tuple(make_item(index, row) for index, row in enumerate(rows))


def gsm8k(index: int, row: JsonRow) -> Item:
    """Return a question of GSM8K.

    Args:
        index: Index of the row; few-shot examples depend on it.
        row: Row of the file.

    Returns:
        The item; `gold` is a worked answer that ends in "#### number".
    """
    return Item(f"gsm8k/{index}", row["question"], row["answer"], {"index": index})


def math500(_: int, row: JsonRow) -> Item:
    """Return a question of MATH500.

    Args:
        _: Index of the row; not used.
        row: Row of the file.

    Returns:
        The item; `gold` is an expression in LaTeX.
    """
    labels = {"subject": row["subject"], "level": row["level"]}
    return Item(f"math500/{row['unique_id']}", row["problem"], row["answer"], labels)


def aime2024(_: int, row: JsonRow) -> Item:
    """Return a question of AIME 2024.

    Args:
        _: Index of the row; not used.
        row: Row of the file.

    Returns:
        The item; `gold` is a whole number from 0 to 999.
    """
    return Item(f"aime2024/{row['id']}", row["problem"], str(row["answer"]), {})


def mbpp(_: int, row: JsonRow) -> Item:
    """Return a task of MBPP.

    Args:
        _: Index of the row; not used.
        row: Row of the file.

    Returns:
        The item; `gold` is a program.
    """
    tests = {"tests": list(row["test_list"]), "setup": row["test_setup_code"]}
    return Item(f"mbpp/{row['task_id']}", row["text"], row["code"], tests)


def mbpp_sanitized(_: int, row: JsonRow) -> Item:
    """Return a task of the sanitized MBPP.

    Args:
        _: Index of the row; not used.
        row: Row of the file.

    Returns:
        The item; `gold` is a program.
    """
    setup = "\n".join(row["test_imports"])
    tests = {"tests": list(row["test_list"]), "setup": setup}
    return Item(f"mbpp-sanitized/{row['task_id']}", row["prompt"], row["code"], tests)


def humaneval(_: int, row: JsonRow) -> Item:
    """Return a task of HumanEval.

    Args:
        _: Index of the row; not used.
        row: Row of the file.

    Returns:
        The item; `gold` is the body of the function.
    """
    tests = {"entry_point": row["entry_point"], "test": row["test"]}
    return Item(row["task_id"], row["prompt"], row["canonical_solution"], tests)


def published(name: str) -> MakeItem:
    """Return the item maker for a file of the paper's own evaluation (genverse/).

    Args:
        name: Name of the benchmark.

    Returns:
        Function (index, row) -> item, with question and tests as the paper has them.
    """

    def make_item(index: int, row: JsonRow) -> Item:
        code = {"tests": row.get("test_list"), "prefix": row.get("prefix")}
        extra = {"asked": row["question"], **{k: v for k, v in code.items() if v}}
        gold = row.get("ground_truth_answer", "")
        return Item(f"genverse/{name}/{index}", row["question"], gold, extra)

    return make_item


@functools.cache
def mbpp_examples(folder: Path | None) -> Sequence[Item]:
    """Return tasks 2, 3 and 4: the few-shot examples of MBPP's own prompt.

    Args:
        folder: Folder of the benchmark files; None for the Hub.

    Returns:
        Three items.

    Raises:
        ValueError: As `data.load_rows`.
    """
    return read_items("mbpp-shots", mbpp, folder)
