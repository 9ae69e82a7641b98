"""The worked examples that some protocols put before a question.

None is shipped: they are read from the files of the benchmarks, or out of the
lm-evaluation-harness where it is installed.
"""

import ast
import functools
import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path

from jaxdave.eval.benchmarks import data
from jaxdave.eval.protocols.prompts import Shots, gsm8k_question, minerva_question

SEED = 1234
"""lm-eval's own seed for few-shot examples."""
NUM_GSM8K_SHOTS = 5
_NUM_GSM8K_QUESTIONS = 1319


@functools.lru_cache(maxsize=2)
def _gsm8k_draws(folder: Path | None) -> Sequence[Shots]:
    """The examples of every question of the test set, in its order."""
    train_rows = data.load_rows("gsm8k-train", folder)
    # lm-eval draws anew for each question, from one stream: the examples of a question
    # depend on how many questions were asked before it.
    stream = random.Random(SEED)
    draws = (
        stream.sample(train_rows, NUM_GSM8K_SHOTS) for _ in range(_NUM_GSM8K_QUESTIONS)
    )
    return [
        [(gsm8k_question(row["question"]), row["answer"]) for row in draw]
        for draw in draws
    ]


def gsm8k_examples(index: int, folder: Path | None) -> Shots:
    """Return lm-eval's five examples for a question of GSM8K.

    Args:
        index: Index of the question in the test set, from 0.
        folder: Folder with the file of the training set; None for the Hub.

    Returns:
        Five pairs of question and worked answer.

    Raises:
        ValueError: The training set cannot be read.
    """
    return _gsm8k_draws(folder)[index]


@functools.cache
def minerva_math_examples() -> Shots:
    """Return lm-eval's four examples of `minerva_math`, read from its source code.

    Returns:
        Four pairs of question and worked solution.

    Raises:
        ValueError: The harness is not installed, or has no such list.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ValueError(
            "minerva_math's four examples come with the lm-evaluation-harness, which "
            f"is not installed; {data.INSTALL}"
        )
    path = Path(spec.origin).parent / "tasks" / "minerva_math" / "utils.py"
    try:
        # Parsed, not imported: that module imports packages that are not needed here.
        source = path.read_text(encoding="utf-8")
        examples = _literal_result(source, "list_fewshot_samples")
        return [
            (minerva_question(example["problem"]), example["solution"])
            for example in examples
        ]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{path}: has no list of examples ({error}); install lm-eval 0.4.13"
        ) from error


def _literal_result(source: str, name: str):
    """The literal that a function of a module's source returns."""
    tree = ast.parse(source)
    function = next(n for n in tree.body if getattr(n, "name", "") == name)
    result = next(n for n in ast.walk(function) if isinstance(n, ast.Return))
    return ast.literal_eval(result.value)  # type: ignore[arg-type]
