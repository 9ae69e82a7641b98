"""Details of the demo tasks: the split, refused answers, and the tokenizer."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdave.demo_tasks import lists, problem_sets
from jaxdave.demo_tasks.grade import (
    baselines,
    extract_number,
    is_allowed,
    is_correct,
)
from jaxdave.demo_tasks.problem import Problem, split_of
from jaxdave.training.demo.tokenizer import build_tokenizer

OTHER_SHAPES = ("", "import os", "def g(xs):\n    return 1", "def f(x):\n    return 1")
OTHER_SHAPES += ("def f(xs, x):\n    return 1", "def f(*xs):\n    return 1")
OTHER_SHAPES += ("def f(xs=1):\n    return 1", "def f(xs) -> list:\n    return 1")
OTHER_SHAPES += ("@abs\ndef f(xs):\n    return 1", "async def f(xs):\n    return 1")
OTHER_SHAPES += (
    "def f(xs):\n    pass",
    "def f(xs):\n    return",
    "def f(xs):\n    return 1.5",
)


@given(st.text())
def test_about_three_percent_of_keys_are_test_keys(prefix: str) -> None:
    num_test = sum(split_of(f"{prefix}{i}") == "test" for i in range(1000))
    assert 5 <= num_test <= 70


@given(st.text(max_size=80))
def test_no_text_breaks_the_graders(text: str) -> None:
    extract_number(text)
    is_allowed(text)
    is_allowed(f"def f(xs):\n    return {text}")


@pytest.mark.parametrize("text", OTHER_SHAPES)
def test_other_shapes_are_refused(text: str) -> None:
    assert not is_correct(lists.sample(np.random.default_rng(0)), text)


def test_baselines() -> None:
    problems = [Problem("words", f"{n} and {n}?", "#### 4", "") for n in (3, 4)]
    assert baselines(problems) == {"majority": 1.0, "copy_last": 0.5}
    for wrong in ([], problem_sets.load("lists_test")):
        with pytest.raises(ValueError, match="defined for word problems only"):
            baselines(wrong)


def test_a_vocabulary_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size=300 has no room for the number"):
        build_tokenizer(tmp_path, vocab_size=300, problems=10)
    assert not list(tmp_path.iterdir())


def test_transformers_loads_the_folder() -> None:
    from transformers import AutoTokenizer

    folder = Path(problem_sets.__file__).parents[1] / "demo" / "sdar-1m"
    loaded = AutoTokenizer.from_pretrained(folder)
    size = len(loaded)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (size - 4, size - 4)
    assert loaded.mask_token_id == size - 1
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "4"}]
    rendered = loaded.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = loaded(rendered)["input_ids"]
    assert loaded.decode(ids) == rendered
    assert loaded.decode(ids, skip_special_tokens=True) == (
        "user\nHi\nassistant\n4\nassistant\n"
    )
