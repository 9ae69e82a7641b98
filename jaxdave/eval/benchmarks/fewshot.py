"""The worked examples that some protocols put before a question.

None are shipped: they are read from the benchmarks' own files, or out of the
lm-evaluation-harness where it is installed.
"""

import ast
import functools
import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path

from jaxdave.eval.benchmarks import data
from jaxdave.eval.protocols.prompts import Shots, gsm8k_shots, minerva

SEED = 1234
"""lm-eval's own for examples."""
GSM8K_SHOTS = 5


@functools.lru_cache(maxsize=2)
def _gsm8k_draws(folder: Path | None) -> Sequence[Shots]:
    """The examples of every question of the test set, in its order.

    lm-eval draws them anew for each question, from one stream.
    """
    train = data.rows("gsm8k-train", folder)
    stream = random.Random(SEED)
    return [
        [(gsm8k_shots(r["question"]), r["answer"]) for r in drawn]
        for drawn in (stream.sample(train, GSM8K_SHOTS) for _ in range(1319))
    ]


def gsm8k(index: int, folder: Path | None) -> Shots:
    """lm-eval's five examples of the question at `index` of the test set."""
    return _gsm8k_draws(folder)[index]


@functools.cache
def minerva_math() -> Shots:
    """lm-eval's four examples of `minerva_math`, read from its source.

    Raises ValueError where it is not installed: the examples are not shipped here.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ValueError(
            "minerva_math's four examples come with the lm-evaluation-harness, which "
            f"is not installed; {data.INSTALL}"
        )
    path = Path(spec.origin).parent / "tasks" / "minerva_math" / "utils.py"
    try:
        listed = _returned(path.read_text(encoding="utf-8"), "list_fewshot_samples")
        return [(minerva(one["problem"]), one["solution"]) for one in listed]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{path}: has no list of examples ({error}); install lm-eval 0.4.13"
        ) from error


def _returned(source: str, name: str):
    """The literal that a function of a source returns."""
    tree = ast.parse(source)
    made = next(n for n in tree.body if getattr(n, "name", "") == name)
    result = next(n for n in ast.walk(made) if isinstance(n, ast.Return))
    return ast.literal_eval(result.value)  # type: ignore[arg-type]
