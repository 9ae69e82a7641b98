"""The texts that the published protocols ask a model with.

Sources: Gen-Verse/dLLM-RL and cychomatica/FreeDave (2025) for literal prompts with
their markup; lm-evaluation-harness 0.4, Dream's fork of it, SDAR's and LLaDA's
OpenCompass settings for conversations, to which a model's own chat template applies.

Every space and newline here is the published one, odd as some are: the tests compare
letter by letter.
"""

import ast
import re
from collections.abc import Sequence

from jaxdave.eval.types import Prompt
from jaxdave.grading import extract
from jaxdave.grading.types import Item
from jaxdave.io.chat_template import Messages

_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant"
_LLADA_HEADER = "<|start_header_id|>{}<|end_header_id|>"
MARKUP = {
    "sdar": _TURN + "\n",
    "sdar-thinking": _TURN + "<think>\n",
    "dream": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    + _TURN
    + "\n",
    "llada": "<|startoftext|>"
    + _LLADA_HEADER.format("user")
    + "{}<|eot_id|><|startoftext|>"
    + _LLADA_HEADER.format("assistant")
    + "\n",
}
"""One user turn and the opening of the answer, by family; TraDo is of SDAR's."""

STEP_BY_STEP = (
    "\nPlease reason step by step, and put your final answer within \\boxed{}."
)
_BOXED_PROBLEM = (
    "You need to put your final answer in \\boxed{}. This is the problem:\n"
)
_ONE_CODE_BLOCK = (
    "\nPlace your code within a single Python code block ```python ```. "
    "Do not include more than one code block. "
)
_COMPLETED_CODE = "Here is the completed code:\n```python\n"
_EXPERT = "You are an expert Python programmer, and here is your task:"
_SOLVE = (
    "Write a solution to the following problem and make sure that it passes the tests:"
)
_FENCE = "```python\n"
_COMPLETED_FUNCTION = "Here is the completed function:\n```python\n"

Shots = Sequence[tuple[str, str]]
"""Few-shot examples: pairs of a question and its answer."""


def literal_prompt(markup: str, kind: str, item: Item) -> str:
    """Return the prompt of dLLM-RL and of the paper, with its markup in the text.

    Args:
        markup: Key of `MARKUP`.
        kind: "math" or "code".
        item: Question.

    Returns:
        The text.
    """
    if kind == "code":
        return MARKUP[markup].format(_code_question(item) + _ONE_CODE_BLOCK)
    if markup == "sdar":
        return MARKUP[markup].format(item.question + STEP_BY_STEP)
    return MARKUP[markup].format(_BOXED_PROBLEM + item.question)


def _code_question(item: Item) -> str:
    """The question of a code task as dLLM-RL words it."""
    # Items of the paper's own files bring the finished question.
    if "asked" in item.data:
        return item.data["asked"]
    if "entry_point" in item.data:
        return f"You need to complete this code:\n{item.question}\n"
    first_test = item.data["tests"][0].rstrip()
    return f"{item.question}\nYour code should pass the test:\n{first_test}\n"


def code_prefix(item: Item) -> str:
    """Return the opening of the answer that dLLM-RL gives to a code model.

    Args:
        item: Question of MBPP or HumanEval.

    Returns:
        A sentence, an opened code block and the head of the function.
    """
    if "prefix" in item.data:
        return item.data["prefix"]
    if "entry_point" in item.data:
        return f"{_COMPLETED_CODE}{item.question}\n"
    return f'{_COMPLETED_CODE}{_signature(item)}\n    """ {item.question}\n    """\n\n'


def _signature(item: Item) -> str:
    """What the reference has before its functions, and the `def` line of the tested
    one."""
    code = item.gold.replace("\r\n", "\n")
    lines = [line for line in code.split("\n") if line.strip()]
    tree = extract.parse_code(code) or ast.Module([], [])
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    # The first test calls the function that is asked for; others are helpers.
    called = set(re.findall(r"([A-Za-z_]\w*)\s*\(", item.data["tests"][0]))
    tested = next(n.name for n in functions if n.name in called)
    def_line = re.compile(rf"def\s+{tested}\b")
    first = next(i for i, line in enumerate(lines) if line.startswith("def "))
    head = [line.rstrip() for line in lines[:first]]
    return "\n".join([*head, next(line for line in lines if def_line.match(line))])


def messages(*turns: str) -> Messages:
    """Return a conversation that begins with the user.

    Example:
        >>> messages("What is 1+1?")
        [{'role': 'user', 'content': 'What is 1+1?'}]

    Args:
        *turns: Texts of user and assistant in turn.

    Returns:
        One message per turn.
    """
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]


def chat_prompt(question: str, shots: Shots = (), answer_prefix: str = "") -> Prompt:
    """Return a conversation that ends in a question.

    Args:
        question: Text of the last user turn.
        shots: Few-shot examples, each of which becomes two turns before it.
        answer_prefix: Opening of the answer.

    Returns:
        The prompt.
    """
    turns = [turn for shot in shots for turn in shot]
    return Prompt(messages(*turns, question), answer_prefix)


def boxed_steps(item: Item) -> Prompt:
    """Return SDAR's and LLaDA's prompt for mathematics.

    Args:
        item: Question.

    Returns:
        The prompt, without examples.
    """
    return chat_prompt(item.question + STEP_BY_STEP)


def gsm8k_question(question: str) -> str:
    """Return a question of GSM8K as lm-eval words it.

    Args:
        question: The problem.

    Returns:
        Text of the user turn.
    """
    return f"Question: {question}\nAnswer:"


def gsm8k_cot(item: Item) -> Prompt:
    """Return Dream's prompt for GSM8K.

    Args:
        item: Question.

    Returns:
        The prompt, without examples.
    """
    return chat_prompt(f"Q: {item.question}\nA:")


def minerva_question(problem: str) -> str:
    """Return a question of MATH as lm-eval's `minerva_math` words it.

    Args:
        problem: The problem.

    Returns:
        Text of the user turn.
    """
    return f"Problem:\n{problem}\n\nSolution:"


def mbpp_question(item: Item) -> str:
    """Return a question of MBPP as lm-eval words it.

    Args:
        item: Question with its tests, of which the first three are shown.

    Returns:
        Text of the user turn.
    """
    tests = "\n".join(item.data["tests"][:3])
    return f"{_EXPERT}\n{item.question}\nYour code should pass these tests:\n{tests}"


def mbpp_instruct(item: Item, examples: Sequence[Item]) -> Prompt:
    """Return lm-eval's `mbpp_instruct`.

    Args:
        item: Question.
        examples: Tasks 2, 3 and 4 of MBPP.

    Returns:
        The prompt; the answer begins inside a code block.
    """
    fence = "\n" + _FENCE
    shots = [(mbpp_question(one), f"{fence}{one.gold}\n```") for one in examples]
    return chat_prompt(mbpp_question(item), shots, fence)


def mbpp_dream(item: Item) -> Prompt:
    """Return Dream's prompt for MBPP.

    Args:
        item: Question.

    Returns:
        The prompt, without examples; the answer begins inside a code block.
    """
    return chat_prompt(mbpp_question(item), answer_prefix=_COMPLETED_FUNCTION)


def mbpp_begin(item: Item, examples: Sequence[Item]) -> Prompt:
    """Return LLaDA's prompt for MBPP: OpenCompass' [BEGIN] ... [DONE].

    Args:
        item: Question.
        examples: Tasks 2, 3 and 4 of MBPP.

    Returns:
        The prompt; the answer begins after [BEGIN].
    """

    def question(one: Item) -> str:
        tests = "\n".join(one.data["tests"][:3])
        requirement = f"Your code should pass these tests:\n\n {tests} \n"
        return f"{_EXPERT} {one.question} {requirement}"

    shots = [
        (question(one), f"[BEGIN]\n '{one.gold}' \n[DONE] \n\n ") for one in examples
    ]
    return chat_prompt(question(item), shots, "[BEGIN]\n")


def mbpp_sdar(item: Item) -> Prompt:
    """Return SDAR's prompt for MBPP: OpenCompass' sanitized one without examples.

    Args:
        item: Question; all its tests are shown.

    Returns:
        The prompt.
    """
    tests = "\n".join(item.data["tests"])
    answer_format = "You should submit your final solution in the following format: "
    requirement = (
        f"Your code should pass these tests:\n\n{tests}\n {answer_format}{_FENCE}\n```"
    )
    return chat_prompt(f"{_EXPERT}\n{item.question}\n{requirement}")


def humaneval_instruct(item: Item) -> Prompt:
    """Return lm-eval's `humaneval_instruct`.

    Args:
        item: Question.

    Returns:
        The prompt; the answer begins with the head of the function.
    """
    question = f"{_SOLVE}\n```python\n{item.question}\n```\n"
    return chat_prompt(
        question, answer_prefix=f"{_COMPLETED_FUNCTION}{item.question}\n"
    )


def humaneval_dream(item: Item) -> Prompt:
    """Return Dream's prompt for HumanEval.

    Args:
        item: Question.

    Returns:
        The prompt; the answer begins with the head of the function.
    """
    # Dream's fork neither names the language nor closes the code block.
    question = f"{_SOLVE}\n```{item.question}"
    return chat_prompt(
        question, answer_prefix=f"{_COMPLETED_FUNCTION}{item.question}\n"
    )


def humaneval_sdar(item: Item) -> Prompt:
    """Return SDAR's prompt for HumanEval.

    Args:
        item: Question.

    Returns:
        The prompt.
    """
    return chat_prompt(
        "Read the following function signature and docstring, and fully implement the "
        "function described. Your response should only contain the code for this "
        f"function.\n{item.question}"
    )


def humaneval_llada(item: Item) -> Prompt:
    """Return LLaDA's prompt for HumanEval.

    Args:
        item: Question.

    Returns:
        The prompt.
    """
    return chat_prompt(f"Complete the following python code:\n{item.question}")
