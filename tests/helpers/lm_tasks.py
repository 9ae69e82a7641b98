"""Local tasks, requests and a model for the tests of lm-evaluation-harness.

Importing it skips the tests where the harness is not installed.
"""

import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest

_REASON = "lm-eval is not installed: pip install -e '.[eval]'"
lm_eval = pytest.importorskip("lm_eval", reason=_REASON)
datasets = pytest.importorskip("datasets", reason=_REASON)
from lm_eval.api.instance import Instance  # noqa: E402  # pyright: ignore
from lm_eval.api.model import CacheHook  # noqa: E402  # pyright: ignore
from lm_eval.tasks import TaskManager  # noqa: E402  # pyright: ignore

from jaxdave.demo_tasks import grade, problem_sets  # noqa: E402
from jaxdave.integrations.lm_eval.model import JaxDave  # noqa: E402
from jaxdave.io import checkpoint  # noqa: E402

NUM_PROBLEMS, MAX_NEW_TOKENS = 5, 48
MODEL = checkpoint.load("sdar-1m")
PROBLEMS = problem_sets.load("words_test")[:NUM_PROBLEMS]
SETTINGS = {"draft_steps": 4, "draft": "nested", "numerics": "fast"}


def make_lm(**args) -> JaxDave:
    """The model as the harness sees it, with fast settings."""
    return JaxDave(MODEL, **{**SETTINGS, "batch_size": 8, **args})


def evaluate(lm, task):
    """The harness's results on one task, which is not among its own."""
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=[task],
        bootstrap_iters=0,
        apply_chat_template=True,
        task_manager=TaskManager(include_defaults=False),
    )


def make_request(kind: Any, *args) -> Instance:
    """A request as the harness makes it."""
    return Instance(kind, {}, args, 0, ("t", 0, 1))


class RecordingHook(CacheHook):
    """Records what the harness would write to its cache."""

    def __init__(self, entries: list):
        super().__init__(None)
        self.entries = entries

    def add_partial(self, attr, req, res):
        self.entries.append((attr, req, res))


def make_dataset(**_):
    """The problems, each with another's answer and a longer one as wrong choices."""
    rows = [
        {
            "prompt": p.prompt,
            "answer": p.answer,
            "choices": [PROBLEMS[i - 1].answer, p.answer, p.answer + "0"],
        }
        for i, p in enumerate(PROBLEMS)
    ]
    return {"test": datasets.Dataset.from_list(rows)}


TASK = {
    "custom_dataset": make_dataset,
    "test_split": "test",
    "num_fewshot": 0,
    "doc_to_text": "{{prompt}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def process_results(doc, texts):
    correct = grade.extract_number(texts[0]) == grade.extract_number(doc["answer"])
    return {"acc": float(correct)}


GENERATE = {
    **TASK,
    "task": "words",
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "process_results": process_results,
    "generation_kwargs": {
        "until": ["\n\n"],
        "max_gen_toks": MAX_NEW_TOKENS,
        "do_sample": False,
    },
}
CHOOSE = {
    **TASK,
    "task": "choices",
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 1,
}
