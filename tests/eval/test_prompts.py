"""Prompts of every protocol, letter by letter."""

import importlib.util

import pytest
from helpers.benchmark_data import DATA, needs_data

from jaxdave.eval.benchmarks.registry import TASKS, open_task
from jaxdave.eval.protocols import fewshot, prompts
from jaxdave.eval.protocols.registry import NAMES, PRESETS, open_preset
from jaxdave.eval.types import Prompt
from jaxdave.grading.types import Item

SUM = Item("gsm8k/0", "What is 1+1?", "1+1=2\n#### 2", {"index": 0})
ADD = Item(
    "mbpp/11",
    "Write a function to add.",
    "import math \r\ndef twice(x):\r\n  return x\r\ndef add(a, b): \r\n  return a + b",
    {"tests": ["assert add(1, 2) == 3 ", "assert add(0, 0) == 0"] * 2, "setup": ""},
)
PROMPT = 'def one() -> int:\n    """ One. """\n'
ONE = Item("HumanEval/0", PROMPT, "    return 1\n", {"entry_point": "one", "test": ""})
BY_TASK = {"gsm8k": SUM, "math500": SUM, "mbpp": ADD, "humaneval": ONE}

PROBLEM = "You need to put your final answer in \\boxed{}. This is the problem:\n"
BLOCK = (
    "\nPlace your code within a single Python code block ```python ```. "
    "Do not include more than one code block. "
)
STEPS = "\nPlease reason step by step, and put your final answer within \\boxed{}."
MATH = {
    ("paper-2025", "sdar"): "<|im_start|>user\nWhat is 1+1?" + STEPS + "<|im_end|>\n"
    "<|im_start|>assistant\n",
    ("paper-2025-thinking", "sdar"): "<|im_start|>user\n" + PROBLEM + "What is 1+1?"
    "<|im_end|>\n<|im_start|>assistant<think>\n",
    ("paper-2025", "dream"): "<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\n" + PROBLEM + "What is 1+1?<|im_end|>\n"
    "<|im_start|>assistant\n",
    ("paper-2025", "llada"): "<|startoftext|><|start_header_id|>user<|end_header_id|>"
    + PROBLEM
    + "What is 1+1?<|eot_id|><|startoftext|><|start_header_id|>assistant"
    "<|end_header_id|>\n",
}
TESTED = "Your code should pass the test:\nassert add(1, 2) == 3\n"
CODE = {
    "mbpp": f"<|im_start|>user\nWrite a function to add.\n{TESTED}{BLOCK}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "humaneval": f"<|im_start|>user\nYou need to complete this code:\n{PROMPT}\n{BLOCK}"
    "<|im_end|>\n<|im_start|>assistant\n",
}
OPENED = {
    "mbpp": "Here is the completed code:\n```python\nimport math\ndef add(a, b): \n"
    '    """ Write a function to add.\n    """\n\n',
    "humaneval": f"Here is the completed code:\n```python\n{PROMPT}\n",
}
EXPERT = (
    "You are an expert Python programmer, and here is your task:\nWrite a function to "
    "add.\nYour code should pass these tests:\n"
)
TESTS = "assert add(1, 2) == 3 \nassert add(0, 0) == 0\nassert add(1, 2) == 3 "
SOLVE = (
    "Write a solution to the following problem and make sure that it passes the tests:"
)
FUNCTION = "Here is the completed function:\n```python\n"
CONVERSATIONS = {
    ("sdar", "gsm8k"): ("What is 1+1?" + STEPS, ""),
    ("sdar", "mbpp"): (
        f"{EXPERT}\n{TESTS}\nassert add(0, 0) == 0\n You should submit your final "
        "solution in the following format: ```python\n\n```",
        "",
    ),
    ("sdar", "humaneval"): (
        "Read the following function signature and docstring, and fully implement the "
        "function described. Your response should only contain the code for this "
        f"function.\n{PROMPT}",
        "",
    ),
    ("llada", "math500"): ("What is 1+1?" + STEPS, ""),
    ("llada", "humaneval"): (
        f"Complete the following python code:\n{PROMPT}",
        "",
    ),
    ("dream", "gsm8k"): ("Q: What is 1+1?\nA:", ""),
    ("dream", "math500"): ("Problem:\nWhat is 1+1?\n\nSolution:", ""),
    ("dream", "mbpp"): (EXPERT + TESTS, FUNCTION),
    ("dream", "humaneval"): (f"{SOLVE}\n```{PROMPT}", f"{FUNCTION}{PROMPT}\n"),
    ("lm-eval-2026", "humaneval"): (
        f"{SOLVE}\n```python\n{PROMPT}\n```\n",
        f"{FUNCTION}{PROMPT}\n",
    ),
}


def turns(prompt: Prompt) -> list[str]:
    assert not isinstance(prompt.content, str)
    assert [m["role"] for m in prompt.content] == (["user", "assistant"] * 9)[
        : len(prompt.content)
    ]
    return [m["content"] for m in prompt.content]


def prompt_of(name: str, family: str, task: str, **options) -> Prompt:
    preset = open_preset(name, **options)
    return preset.prompt(family, TASKS[task], BY_TASK[task])


@pytest.mark.parametrize(("name", "family"), MATH)
def test_literal_prompts_of_mathematics(name: str, family: str) -> None:
    assert prompt_of(name, family, "gsm8k") == Prompt(MATH[name, family])


@pytest.mark.parametrize("task", CODE)
def test_literal_prompts_of_code(task: str) -> None:
    assert prompt_of("paper-2025", "sdar", task) == Prompt(CODE[task])
    assert prompt_of("dllm-rl", "sdar", task) == Prompt(CODE[task], OPENED[task])


def test_as_published_the_markup_is_wrapped_again_and_the_end_cut() -> None:
    markup = MATH["paper-2025", "sdar"]
    published = prompt_of("paper-2025", "sdar", "gsm8k", as_published=True)
    assert published == Prompt([{"role": "user", "content": markup}], max_tokens=200)
    dream = prompt_of("paper-2025", "dream", "gsm8k", as_published=True)
    assert dream.max_tokens is None and not isinstance(dream.content, str)
    plain = prompt_of("dllm-rl", "sdar", "gsm8k", as_published=True)
    assert plain == Prompt(markup)


@pytest.mark.parametrize(("name", "task"), CONVERSATIONS)
def test_conversations(name: str, task: str) -> None:
    question, prefill = CONVERSATIONS[name, task]
    expected = Prompt([{"role": "user", "content": question}], prefill)
    for family in ("sdar", "llada", "dream", "fast-dllm-v2"):
        assert prompt_of(name, family, task) == expected


@pytest.mark.parametrize("name", NAMES)
def test_demo_tasks_are_asked_as_the_demo_was_trained(name: str) -> None:
    item = Item("demo-math-0", "How many?", "#### 1", {})
    for family in ("sdar", "llada", "dream"):
        preset = PRESETS[name]
        prompt = preset.prompt(family, TASKS["demo-math"], item)
        assert prompt == Prompt([{"role": "user", "content": "How many?"}])
        max_new_tokens = preset.settings(family, TASKS["demo-math"])["max_new_tokens"]
        assert max_new_tokens % 32 == 0 and max_new_tokens <= 64


@needs_data
def test_prompts_of_code_are_those_of_the_published_files() -> None:
    """But where a published answer opens with a helper, or with spaces left over."""
    different = []
    for task in ("mbpp", "humaneval"):
        ours = open_task(task).items(DATA)
        shared = [item for item in ours if item.id not in ("mbpp/342", "mbpp/367")]
        theirs = open_task(task, as_published=True).items(DATA)
        for our_item, their_item in zip(shared, theirs, strict=True):
            texts = [
                prompts.literal_prompt("sdar", "code", item)
                for item in (our_item, their_item)
            ]
            assert texts[0] == texts[1]
            if prompts.code_prefix(our_item) != prompts.code_prefix(their_item):
                different.append(int(our_item.id.split("/")[1]))
    helpers = "18 30 45 56 70 148 151 152 164 181 323 338 348 364 466 485 486 501"
    assert sorted(different) == sorted([*map(int, helpers.split()), 396])


FIRST_DRAW = [
    "Jen and Tyler are gy",
    "Four people in a law",
    "A charcoal grill bur",
    "A bear is preparing ",
    "Brendan can cut 8 ya",
]
SECOND_DRAW = [
    "Steve finds 100 gold",
    "In a week, Mortdecai",
    "Corey downloaded two",
    "There were 18 studen",
    "There are 200 more r",
]


@needs_data
def test_examples_of_gsm8k_are_drawn_as_lm_eval_draws_them() -> None:
    preset = open_preset("lm-eval-2026", folder=DATA)
    texts = turns(preset.prompt("sdar", TASKS["gsm8k"], SUM))
    assert len(texts) == 11 and texts[-1] == "Question: What is 1+1?\nAnswer:"
    # By lm-eval 0.4.13's own ContextSampler(list of rows, rnd=1234).sample(5), twice.
    first, second = (fewshot.gsm8k_examples(i, DATA) for i in (0, 1))
    assert [q[10:30] for q, _ in first] == FIRST_DRAW
    assert [q[10:30] for q, _ in second] == SECOND_DRAW
    assert all("#### " in answer for _, answer in first)


@needs_data
def test_examples_of_mbpp() -> None:
    preset = open_preset("lm-eval-2026", folder=DATA)
    prompt = preset.prompt("sdar", TASKS["mbpp"], ADD)
    texts = turns(prompt)
    assert texts[-1] == EXPERT + TESTS and prompt.answer_prefix == "\n```python\n"
    assert texts[1] == (
        "\n```python\ndef similar_elements(test_tup1, test_tup2):\r\n  res = "
        "tuple(set(test_tup1) & set(test_tup2))\r\n  return (res) \n```"
    )
    llada = open_preset("llada", folder=DATA).prompt("llada", TASKS["mbpp"], ADD)
    assert llada.answer_prefix == "[BEGIN]\n"
    assert turns(llada)[1].endswith("' \n[DONE] \n\n ")


def test_examples_of_minerva() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(ValueError, match="lm-evaluation-harness, which is not ins"):
            prompt_of("lm-eval-2026", "sdar", "math500")
        pytest.skip("needs lm-eval (pip install lm-eval), which holds the examples")
    texts = turns(prompt_of("lm-eval-2026", "sdar", "math500"))
    assert len(texts) == 9
    assert texts[0].startswith("Problem:\nFind the domain of the expression")
    assert texts[1].endswith("answer is $[2,5)$. I hope it is correct.")
