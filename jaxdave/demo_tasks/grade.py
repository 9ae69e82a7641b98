"""Checks answers to the demo tasks, and scores two trivial guesses for comparison."""

import ast
import collections
import re
import warnings
from collections.abc import Sequence

from jaxdave.demo_tasks.lists import ListFunction, parse_key
from jaxdave.demo_tasks.problem import Problem
from jaxdave.sandbox.launcher import run_program

ANSWER_MARK = "####"
# The number must end there: neither 14.5 nor 14+3 is the answer 14. [0-9] and not \d,
# which would match the digits of every script.
_NUMBER = re.compile(r"\s*(-?[0-9]{1,18})\.?(?=\s|<\||$)")
MAX_CODE_LENGTH = 500
SECONDS = 10.0
"""Time limit of one function; starting an interpreter takes most of it when busy."""

TEST_INPUTS: tuple[tuple[int, ...], ...] = (
    (),
    (10, 9, 8, 7, 6, 5, 4, 3, 2, 1),
    (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5),
    (3, 3, -3, -3, 6, 6),
    (-12, 40, -8, 35, 18, -27, 16),
    (56, 45, 72, 63, 20, 28, 48, 11),
    *((number,) for number in range(-10, 11)),
)
"""Lists that tell any two different functions of the family apart. The single numbers
do most of that: a maximum of those above 3 and one of those above 4 differ on hardly
any longer list."""
ALLOWED_NAMES = frozenset(
    ("f", "xs", "x", "sum", "max", "min", "len", "sorted", "abs")
    + ("list", "reversed", "range")
)
ALLOWED_KEYWORDS = frozenset(("default", "reverse"))
# No Attribute, Subscript, Pow or Lambda: what is allowed can neither reach other
# objects nor take long.
ALLOWED_NODES = (
    (ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return)
    + (ast.Call, ast.Load, ast.Store)
    + (ast.GeneratorExp, ast.ListComp, ast.comprehension)
    + (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Mod, ast.FloorDiv)
    + (ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BoolOp, ast.And, ast.Or)
    + (ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
)


def extract_number(text: str) -> int | None:
    """Return the integer after the last `####`.

    Args:
        text: The text of a model.

    Returns:
        The integer; None if there is no mark, or no integer of at most 18 digits that
        ends with the word.

    Example:
        >>> extract_number("3+4=7 #### 7"), extract_number("#### 7.5")
        (7, None)
    """
    _, mark, rest = text.rpartition(ANSWER_MARK)
    match = _NUMBER.match(rest) if mark else None
    return int(match[1]) if match else None


def is_correct(problem: Problem, text: str) -> bool:
    """Check the answer to a problem.

    A word problem needs the exact integer. A list function may use only the syntax and
    names of its family, and is then run in the sandbox on `TEST_INPUTS`; the expected
    results are computed from the problem's key, not by the reference answer.

    Args:
        problem: The problem.
        text: The text of a model.

    Returns:
        True if the text answers the problem.

    Raises:
        ValueError: If the problem's family is unknown.

    Example:
        >>> problem = Problem("words", "How many?", "#### 14", "")
        >>> is_correct(problem, "7+7=14 #### 14")
        True
    """
    if problem.family == "words":
        return extract_number(text) == extract_number(problem.answer)
    if problem.family == "lists":
        if not is_allowed(text):
            return False
        return run_program(_with_assertions(problem, text), seconds=SECONDS).passed
    raise ValueError(
        f"family {problem.family!r} has no grader; it must be 'words' or 'lists'"
    )


def is_allowed(text: str) -> bool:
    """Check that a text is one function `f(xs)` of one return line and known names.

    What passes is harmless to run.

    Args:
        text: The text of a model.

    Returns:
        True if every node of its syntax tree is on the list of the allowed ones.

    Example:
        >>> is_allowed("def f(xs): return sum(xs)")
        True
        >>> is_allowed("def f(xs): return open(0)")
        False
    """
    if len(text) > MAX_CODE_LENGTH:
        return False
    try:
        # A slip such as `0for` parses with a warning, which nobody needs to see here.
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_one_function(tree) and all(
        _is_allowed_node(node) for node in ast.walk(tree)
    )


def baselines(problems: Sequence[Problem]) -> dict[str, float]:
    """Score two guesses that do no arithmetic, on word problems.

    Args:
        problems: Word problems, at least one.

    Returns:
        Shares of right answers, in 0..1. "majority": of always guessing the most
        frequent answer of these very problems, which no guess of one number can exceed.
        "copy_last": of guessing the last number of the prompt.

    Raises:
        ValueError: If there are no problems, or one is not a word problem.
    """
    other_families = {p.family for p in problems} - {"words"}
    if other_families or not problems:
        raise ValueError(
            f"baselines got {len(problems)} problems of {sorted(other_families)}; they "
            "are defined for word problems only, so pass at least one and no other "
            "family"
        )
    answers = [extract_number(p.answer) for p in problems]
    majority = collections.Counter(answers).most_common(1)[0][1]
    last_numbers = [int(re.findall(r"[0-9]+", p.prompt)[-1]) for p in problems]
    copies = sum(a == n for a, n in zip(answers, last_numbers, strict=True))
    return {"majority": majority / len(problems), "copy_last": copies / len(problems)}


def _is_one_function(tree: ast.Module) -> bool:
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return False
    function = tree.body[0]
    one_return = len(function.body) == 1 and isinstance(function.body[0], ast.Return)
    plain = not function.decorator_list and function.returns is None
    return function.name == "f" and one_return and plain and _takes_xs(function.args)


def _takes_xs(args: ast.arguments) -> bool:
    rest = (args.posonlyargs, args.kwonlyargs, args.vararg, args.kwarg, args.defaults)
    return not any(rest) and [arg.arg for arg in args.args] == ["xs"]


def _is_allowed_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in ALLOWED_NAMES
    if isinstance(node, ast.keyword):
        return node.arg in ALLOWED_KEYWORDS
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, bool)
    return isinstance(node, ALLOWED_NODES)


def _with_assertions(problem: Problem, text: str) -> str:
    """The text followed by an assertion for every test input."""
    function: ListFunction = parse_key(problem.key)
    # The texts of the values are compared, so that True is not taken for 1.
    assertions = [
        f"assert repr(f({list(xs)})) == {repr(function.expected_result(xs))!r}"
        for xs in TEST_INPUTS
    ]
    return "\n".join([text, *assertions])
