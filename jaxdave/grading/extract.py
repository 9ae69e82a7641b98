"""What of a model's text counts as its answer."""

import ast
import re
import warnings
from collections.abc import Iterator

NOTHING = "Can not extract the answer!"
"""What the paper's evaluation takes for the answer where nothing is boxed."""

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# A minus after a digit or a bracket takes away and is not a sign.
_NUMBER = re.compile(r"(?:(?<![\w)}])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_SAID = re.compile(r"[Ff]inal answer is:?\s*\$([^$]{1,300})\$")
_PYTHON_BLOCK = re.compile(r"```python(.*?)```", re.DOTALL)
_FIRST_BLOCK = re.compile(r"```\w*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_BEGIN = re.compile(r"\[BEGIN\](.*?)(?:\[DONE\]|\Z)", re.DOTALL)
_MOST_LINES = 100


def boxed(text: str) -> str | None:
    r"""The content of the last `\\boxed{...}` whose braces balance; escaped ones do not
    count."""
    starts = {found.end() for found in _BOX.finditer(text)}
    opened, last = [], (-1, -1)
    for found in _BRACE.finditer(text):
        if found[0] == "{":
            opened.append(found.end())
        elif found[0] == "}" and opened:
            start = opened.pop()
            last = max(last, (start, found.start())) if start in starts else last
    return text[slice(*last)].strip() if last[0] >= 0 else None


def after_mark(text: str) -> str | None:
    """The number after the last `####`, or what else its line holds."""
    _, mark, rest = text.rpartition("####")
    line = rest.strip().split("\n")[0].strip() if mark else ""
    found = _NUMBER.match(line)
    return (found[0] if found else line) or None


def last_number(text: str) -> str | None:
    """The last number of a text: its sign, digits and commas, no dot at its end."""
    found = _NUMBER.findall(text)
    return found[-1].rstrip(",") if found else None


def boxed_only(text: str) -> str:
    r"""`boxed`, as the paper's evaluation reads an answer."""
    found = boxed(text)
    return NOTHING if found is None else found


def math_answer(text: str) -> str:
    r"""The last `\\boxed{...}`, else `#### n`, else "final answer is $...$", else the
    last number; empty where there is none."""
    said = _SAID.findall(text)
    for found in (boxed(text), after_mark(text), said[-1] if said else None):
        if found:
            return found
    return last_number(text) or ""


def last_block(text: str) -> str:
    """The last closed ```python block; empty where there is none."""
    found = _PYTHON_BLOCK.findall(text)
    return found[-1].strip("\r\n") if found else ""


def first_block(text: str) -> str:
    """The first fenced block, closed or not; the whole text where there is no fence."""
    found = _FIRST_BLOCK.search(text)
    return (found[1] if found else text).strip("\r\n")


def begun(text: str) -> str:
    """What stands between [BEGIN] and [DONE], without fences and quotes around it."""
    found = _BEGIN.search(text)
    inner = found[1].strip() if found else text
    inner = first_block(inner) if "```" in inner else inner
    quoted = len(inner) > 1 and inner[0] == inner[-1] == "'"
    return inner[1:-1] if quoted else inner


def reachable(code: str, entry: str) -> str:
    """The imports of a code, `entry`, and the top-level names that it needs.

    Of a code that does not parse, its longest run of lines that does, among the first
    hundred. Empty where nothing parses.
    """
    tree = _longest(code.replace("\t", "    ").splitlines()[:_MOST_LINES])
    named = {name: node for node in tree.body for name in _defined(node)}
    needed, open_names = set(), [entry]
    while open_names:
        name = open_names.pop()
        if name in named and name not in needed:
            needed.add(name)
            inside = ast.walk(named[name])
            open_names += [n.id for n in inside if isinstance(n, ast.Name)]
    wanted = {id(named[name]) for name in needed}
    imports = (ast.Import, ast.ImportFrom)
    return "\n".join(
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, imports) or id(node) in wanted
    )


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        yield node.targets[0].id


def _longest(lines: list[str]) -> ast.Module:
    """The longest run of lines that parses; the earliest of equals."""
    for size in range(len(lines), 0, -1):
        for start in range(len(lines) - size + 1):
            tree = parsed("\n".join(lines[start : start + size]))
            if tree is not None:
                return tree
    return ast.Module([], [])


def parsed(code: str) -> ast.Module | None:
    """The syntax of a code, None where it has none; warnings about it are dropped."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
