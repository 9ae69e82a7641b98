"""The texts that the published protocols ask a model with.

Sources: Gen-Verse/dLLM-RL and cychomatica/FreeDave (2025) for literal prompts with
their markup; lm-evaluation-harness 0.4, Dream's fork of it, SDAR's and LLaDA's
OpenCompass settings for conversations, to which a model's own chat template applies.
"""

import ast
import re
from collections.abc import Callable, Sequence

from jaxdave.eval.types import Prompt
from jaxdave.grading import extract
from jaxdave.grading.types import Item
from jaxdave.io.tokenizer import Messages

_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant"
_LLADA = "<|start_header_id|>{}<|end_header_id|>"
MARKUP = {
    "sdar": _TURN + "\n",
    "sdar-thinking": _TURN + "<think>\n",
    "dream": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    + _TURN
    + "\n",
    "llada": "<|startoftext|>"
    + _LLADA.format("user")
    + "{}<|eot_id|><|startoftext|>"
    + _LLADA.format("assistant")
    + "\n",
}
"""One user turn and the opening of the answer, by family; TraDo is of SDAR's."""

STEPS = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_PROBLEM = "You need to put your final answer in \\boxed{}. This is the problem:\n"
_ONE_BLOCK = (
    "\nPlace your code within a single Python code block ```python ```. "
    "Do not include more than one code block. "
)
_PREFIX = "Here is the completed code:\n```python\n"
_EXPERT = "You are an expert Python programmer, and here is your task:"
_SOLVE = (
    "Write a solution to the following problem and make sure that it passes the tests:"
)
_FENCE = "```python\n"
_FUNCTION = "Here is the completed function:\n```python\n"

Template = Callable[[Item], Prompt]
Shots = Sequence[tuple[str, str]]
"""Examples: what is asked, and the answer."""


def literal(family: str, kind: str, item: Item) -> str:
    """What dLLM-RL and the paper ask, markup included; kind: "math" or "code"."""
    if kind == "code":
        return MARKUP[family].format(_code_question(item) + _ONE_BLOCK)
    if family == "sdar":
        return MARKUP[family].format(item.question + STEPS)
    return MARKUP[family].format(_PROBLEM + item.question)


def _code_question(item: Item) -> str:
    if "asked" in item.data:
        return item.data["asked"]
    if "entry_point" in item.data:
        return f"You need to complete this code:\n{item.question}\n"
    first = item.data["tests"][0].rstrip()
    return f"{item.question}\nYour code should pass the test:\n{first}\n"


def completed(item: Item) -> str:
    """The opening of the answer that dLLM-RL gives to a code model."""
    if "prefix" in item.data:
        return item.data["prefix"]
    if "entry_point" in item.data:
        return f"{_PREFIX}{item.question}\n"
    return f'{_PREFIX}{_signature(item)}\n    """ {item.question}\n    """\n\n'


def _signature(item: Item) -> str:
    """What the reference says before its functions, and the line that defines the one
    that is tested."""
    code = item.gold.replace("\r\n", "\n")
    lines = [line for line in code.split("\n") if line.strip()]
    tree = extract.parse_code(code) or ast.Module([], [])
    made = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    called = set(re.findall(r"([A-Za-z_]\w*)\s*\(", item.data["tests"][0]))
    tested = next(n.name for n in made if n.name in called)
    defines = re.compile(rf"def\s+{tested}\b")
    first = next(i for i, line in enumerate(lines) if line.startswith("def "))
    head = [line.rstrip() for line in lines[:first]]
    return "\n".join([*head, next(line for line in lines if defines.match(line))])


def chat(*turns: str) -> Messages:
    """A conversation that begins with the user and takes turns."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]


def asked(question: str, shots: Shots = (), prefill: str = "") -> Prompt:
    """A question after examples, each of which is two turns."""
    turns = [turn for shot in shots for turn in shot]
    return Prompt(chat(*turns, question), prefill)


def boxed_steps(item: Item) -> Prompt:
    """SDAR's and LLaDA's question."""
    return asked(item.question + STEPS)


def gsm8k_shots(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def gsm8k_cot(item: Item) -> Prompt:
    return asked(f"Q: {item.question}\nA:")


def minerva(problem: str) -> str:
    return f"Problem:\n{problem}\n\nSolution:"


def mbpp_expert(item: Item) -> str:
    tests = "\n".join(item.data["tests"][:3])
    return f"{_EXPERT}\n{item.question}\nYour code should pass these tests:\n{tests}"


def mbpp_instruct(item: Item, shots: Sequence[Item]) -> Prompt:
    """lm-eval's `mbpp_instruct`; shots: tasks 2, 3 and 4."""
    opening = "\n" + _FENCE
    told = [(mbpp_expert(s), f"{opening}{s.gold}\n```") for s in shots]
    return asked(mbpp_expert(item), told, opening)


def mbpp_dream(item: Item) -> Prompt:
    return asked(mbpp_expert(item), prefill=_FUNCTION)


def mbpp_begin(item: Item, shots: Sequence[Item]) -> Prompt:
    """LLaDA's: OpenCompass' [BEGIN] ... [DONE]; shots: tasks 2, 3 and 4."""

    def question(one: Item) -> str:
        tests = "\n".join(one.data["tests"][:3])
        told = f"Your code should pass these tests:\n\n {tests} \n"
        return f"{_EXPERT} {one.question} {told}"

    told = [(question(s), f"[BEGIN]\n '{s.gold}' \n[DONE] \n\n ") for s in shots]
    return asked(question(item), told, "[BEGIN]\n")


def mbpp_sdar(item: Item) -> Prompt:
    """OpenCompass' sanitized MBPP without examples."""
    tests = "\n".join(item.data["tests"])
    form = "You should submit your final solution in the following format: "
    told = f"Your code should pass these tests:\n\n{tests}\n {form}{_FENCE}\n```"
    return asked(f"{_EXPERT}\n{item.question}\n{told}")


def humaneval_instruct(item: Item) -> Prompt:
    """lm-eval's `humaneval_instruct`."""
    question = f"{_SOLVE}\n```python\n{item.question}\n```\n"
    return asked(question, prefill=f"{_FUNCTION}{item.question}\n")


def humaneval_dream(item: Item) -> Prompt:
    question = f"{_SOLVE}\n```{item.question}"
    return asked(question, prefill=f"{_FUNCTION}{item.question}\n")


def humaneval_sdar(item: Item) -> Prompt:
    return asked(
        "Read the following function signature and docstring, and fully implement the "
        "function described. Your response should only contain the code for this "
        f"function.\n{item.question}"
    )


def humaneval_llada(item: Item) -> Prompt:
    return asked(f"Complete the following python code:\n{item.question}")
