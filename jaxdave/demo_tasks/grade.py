"""What counts as a right answer, and what guessing would score."""

import ast
import collections
import re
import warnings
from collections.abc import Sequence

from jaxdave.demo_tasks.lists import Skeleton, parse_key
from jaxdave.demo_tasks.problem import Problem
from jaxdave.sandbox.launcher import run_program

MARK = "####"
# The number must end there: neither 14.5 nor 14+3 is the answer 14.
NUMBER = re.compile(r"\s*(-?[0-9]{1,18})\.?(?=\s|<\||$)")
LONGEST_CODE = 500
SECONDS = 10.0
"""For one function: most is starting an interpreter, on a busy machine."""

# Enough to tell any two different functions of the family apart. The single numbers do
# most of that: a maximum above 3 and one above 4 differ on hardly any longer list.
CASES: tuple[tuple[int, ...], ...] = (
    (),
    (10, 9, 8, 7, 6, 5, 4, 3, 2, 1),
    (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5),
    (3, 3, -3, -3, 6, 6),
    (-12, 40, -8, 35, 18, -27, 16),
    (56, 45, 72, 63, 20, 28, 48, 11),
    *((number,) for number in range(-10, 11)),
)
NAMES = frozenset(
    ("f", "xs", "x", "sum", "max", "min", "len", "sorted", "abs")
    + ("list", "reversed", "range")
)
KEYWORDS = frozenset(("default", "reverse"))
NODES = (
    (ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return)
    + (ast.Call, ast.Load, ast.Store)
    + (ast.GeneratorExp, ast.ListComp, ast.comprehension)
    + (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Mod, ast.FloorDiv)
    + (ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BoolOp, ast.And, ast.Or)
    + (ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
)


def extract_number(text: str) -> int | None:
    """The integer after the last `####`, None where there is none."""
    _, mark, rest = text.rpartition(MARK)
    found = NUMBER.match(rest) if mark else None
    return int(found[1]) if found else None


def grade(problem: Problem, text: str) -> bool:
    """Whether `text` answers `problem`.

    A word problem needs the exact integer. A list function must use only the nodes and
    names of its family, and is then run on fixed lists; what it must return comes from
    the key and not from the reference text.
    Raises ValueError for an unknown family.
    """
    if problem.family == "words":
        return extract_number(text) == extract_number(problem.answer)
    if problem.family == "lists":
        if not is_allowed(text):
            return False
        return run_program(_tested(problem, text), seconds=SECONDS).passed
    raise ValueError(
        f"family {problem.family!r} has no grader; it must be 'words' or 'lists'"
    )


def is_allowed(text: str) -> bool:
    """Whether `text` is one function `f(xs)` of one return line and known names."""
    if len(text) > LONGEST_CODE:
        return False
    try:
        # A slip such as `0for` parses with a warning, which is no one's business here.
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_one_function(tree) and all(_is_known(node) for node in ast.walk(tree))


def baselines(problems: Sequence[Problem]) -> dict[str, float]:
    """What two guesses that do no arithmetic score on word problems.

    majority: always the most frequent answer of these very problems, so an upper bound
    of what guessing one number can reach. copy_last: the last number of the prompt.
    Raises ValueError when there are no problems or one is not a word problem.
    """
    strangers = {p.family for p in problems} - {"words"}
    if strangers or not problems:
        raise ValueError(
            f"baselines got {len(problems)} problems of {sorted(strangers)}; they are "
            "defined for word problems only, so pass at least one and no other family"
        )
    answers = [extract_number(p.answer) for p in problems]
    most = collections.Counter(answers).most_common(1)[0][1]
    copied = [int(re.findall(r"[0-9]+", p.prompt)[-1]) for p in problems]
    hits = sum(a == c for a, c in zip(answers, copied, strict=True))
    return {"majority": most / len(problems), "copy_last": hits / len(problems)}


def _is_one_function(tree: ast.Module) -> bool:
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return False
    made = tree.body[0]
    one_return = len(made.body) == 1 and isinstance(made.body[0], ast.Return)
    plain = not made.decorator_list and made.returns is None
    return made.name == "f" and one_return and plain and _takes_xs(made.args)


def _takes_xs(args: ast.arguments) -> bool:
    rest = (args.posonlyargs, args.kwonlyargs, args.vararg, args.kwarg, args.defaults)
    return not any(rest) and [a.arg for a in args.args] == ["xs"]


def _is_known(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in NAMES
    if isinstance(node, ast.keyword):
        return node.arg in KEYWORDS
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, bool)
    return isinstance(node, NODES)


def _tested(problem: Problem, text: str) -> str:
    """The text followed by a check of every case."""
    skeleton: Skeleton = parse_key(problem.key)
    # The texts of the values are compared, so that True is not taken for 1.
    checks = [
        f"assert repr(f({list(xs)})) == {repr(skeleton.reference(xs))!r}"
        for xs in CASES
    ]
    return "\n".join([text, *checks])
