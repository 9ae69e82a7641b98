"""Extraction of the answer from a model's text: a value, or a block of code.

Benchmarks disagree about which part of a text is the answer, so there is one function
for each convention. All of them take time linear in the text for any input, because a
model may repeat one fragment thousands of times.
"""

import ast
import re
import warnings
from collections.abc import Iterator

NO_BOXED_ANSWER = "Can not extract the answer!"
r"""The answer that the paper's evaluation assigns to a text without `\boxed{...}`."""

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
# An escaped character is consumed as a pair, so that `\{` and `\}` do not nest.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# A minus after a digit, a letter or a closing bracket is a subtraction, not a sign.
_NUMBER = re.compile(r"(?:(?<![\w)}])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
# The bound of 300 characters keeps the search linear where no dollar sign closes.
_FINAL_ANSWER = re.compile(r"[Ff]inal answer is:?\s*\$([^$]{1,300})\$")
_PYTHON_BLOCK = re.compile(r"```python(.*?)```", re.DOTALL)
_FIRST_BLOCK = re.compile(r"```\w*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_BEGIN_DONE = re.compile(r"\[BEGIN\](.*?)(?:\[DONE\]|\Z)", re.DOTALL)
_MAX_PARSED_LINES = 100


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` whose braces balance.

    `\box` and `\fbox` count too. Escaped braces neither open nor close a group, and a
    box that is never closed (a text cut off at its maximum length) is skipped.

    Args:
        text: The text of a model.

    Returns:
        The content without surrounding white space, which may be empty; None if there
        is no complete box.

    Example:
        >>> last_boxed(r"\boxed{1}, or rather \boxed{\frac{1}{2}}")
        '\\frac{1}{2}'
    """
    box_starts = {match.end() for match in _BOX.finditer(text)}
    brace_stack: list[int] = []
    last = (-1, -1)
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            brace_stack.append(match.end())
        elif match[0] == "}" and brace_stack:
            start = brace_stack.pop()
            # The last box is the one that starts last, not the one that ends last:
            # of nested boxes the inner one counts.
            if start in box_starts:
                last = max(last, (start, match.start()))
    return text[slice(*last)].strip() if last[0] >= 0 else None


def answer_after_hashes(text: str) -> str | None:
    """Return the number after the last `####`, GSM8K's answer mark.

    Args:
        text: The text of a model, or a reference solution.

    Returns:
        The number that the rest of that line begins with, else the whole rest of the
        line; None if there is no mark or nothing follows it.

    Example:
        >>> answer_after_hashes("3 * 6 = 18 #### 1,234 dollars")
        '1,234'
    """
    _, mark, rest = text.rpartition("####")
    line = rest.strip().split("\n")[0].strip() if mark else ""
    match = _NUMBER.match(line)
    return (match[0] if match else line) or None


def last_number(text: str) -> str | None:
    """Return the last number of a text as it is written there.

    Args:
        text: The text of a model.

    Returns:
        The sign, an optional dollar sign, digits and commas, without a comma at the
        end; None if the text has no number.

    Example:
        >>> last_number("That is $1,000, or 16-3.")
        '3'
    """
    numbers = _NUMBER.findall(text)
    return numbers[-1].rstrip(",") if numbers else None


def boxed_answer(text: str) -> str:
    r"""Return the boxed answer as the paper's evaluation reads it.

    Args:
        text: The text of a model.

    Returns:
        The content of the last `\boxed{...}`, or `NO_BOXED_ANSWER` if there is none.

    Source:
        The evaluation code of FreeDave (arXiv 2510.00294).
    """
    content = last_boxed(text)
    return NO_BOXED_ANSWER if content is None else content


def math_answer(text: str) -> str:
    r"""Return the final answer of a mathematical text by the first rule that applies.

    The rules, in order: the last `\boxed{...}`; the answer after the last `####`; the
    last "final answer is $...$"; the last number. A rule whose answer is empty is
    passed over.

    Args:
        text: The text of a model.

    Returns:
        The answer; empty if no rule applies.

    Example:
        >>> math_answer("1 + 1 = 2, so 3 are left.")
        '3'
    """
    sentences = _FINAL_ANSWER.findall(text)
    candidates = (
        last_boxed(text),
        answer_after_hashes(text),
        sentences[-1] if sentences else None,
    )
    for candidate in candidates:
        if candidate:
            return candidate
    return last_number(text) or ""


def last_python_block(text: str) -> str:
    """Return the code of the last closed ```` ```python ```` block.

    Args:
        text: The text of a model.

    Returns:
        The code without line ends around it; empty if there is no such block.
    """
    blocks = _PYTHON_BLOCK.findall(text)
    return blocks[-1].strip("\r\n") if blocks else ""


def first_code_block(text: str) -> str:
    """Return the code of the first fenced block, of any language and closed or not.

    Args:
        text: The text of a model.

    Returns:
        The code without line ends around it; the whole text if there is no fence.
    """
    match = _FIRST_BLOCK.search(text)
    return (match[1] if match else text).strip("\r\n")


def begin_done_block(text: str) -> str:
    """Return the code between `[BEGIN]` and `[DONE]`.

    Source:
        The MBPP prompt of OpenCompass, whose examples put quotes around the code;
        models imitate them, or put fences there.

    Args:
        text: The text of a model.

    Returns:
        The code without fences and single quotes around it; the whole text if there is
        no `[BEGIN]`. Without `[DONE]` the block ends with the text.

    Example:
        >>> begin_done_block("[BEGIN] 'x = 1' [DONE] and so on")
        'x = 1'
    """
    match = _BEGIN_DONE.search(text)
    code = match[1].strip() if match else text
    code = first_code_block(code) if "```" in code else code
    quoted = len(code) > 1 and code[0] == code[-1] == "'"
    return code[1:-1] if quoted else code


def reachable_code(code: str, entry: str) -> str:
    r"""Return the imports of a code, a function, and the top-level names it needs.

    This drops demonstrations and prose around a solution. If the code does not parse,
    the longest run of its lines that does is used instead; only the first 100 lines are
    looked at, as the search is quadratic in them.

    Args:
        code: The code that was extracted from a text.
        entry: Name of the function that the tests call.

    Returns:
        The reduced code, without its comments and in a uniform layout; empty if nothing
        parses.

    Source:
        Dream's evaluation of HumanEval, which reduces answers like this.

    Example:
        >>> reachable_code("k = 1\nu = 2\ndef f(x):\n    return x + k\nThe end.", "f")
        'k = 1\ndef f(x):\n    return x + k'
    """
    tree = _longest_parsable(
        code.replace("\t", "    ").splitlines()[:_MAX_PARSED_LINES]
    )
    definitions = {name: node for node in tree.body for name in _defined_names(node)}
    needed: set[str] = set()
    pending = [entry]
    while pending:
        name = pending.pop()
        if name in definitions and name not in needed:
            needed.add(name)
            nodes = ast.walk(definitions[name])
            pending += [node.id for node in nodes if isinstance(node, ast.Name)]
    # Compared by identity: two names may have been defined by equal statements.
    needed_ids = {id(definitions[name]) for name in needed}
    imports = (ast.Import, ast.ImportFrom)
    return "\n".join(
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, imports) or id(node) in needed_ids
    )


def _defined_names(node: ast.stmt) -> Iterator[str]:
    """Yield the name that a top-level statement defines, if it is a simple one."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        yield node.targets[0].id


def _longest_parsable(lines: list[str]) -> ast.Module:
    """Return the longest run of lines that parses; the earliest of equal ones."""
    for size in range(len(lines), 0, -1):
        for start in range(len(lines) - size + 1):
            tree = parse_code("\n".join(lines[start : start + size]))
            if tree is not None:
                return tree
    return ast.Module([], [])


def parse_code(code: str) -> ast.Module | None:
    """Return the syntax tree of a code, without raising and without warnings.

    Args:
        code: Any text.

    Returns:
        The tree; None if the text is not Python, or nests too deeply for the parser.
    """
    try:
        # A model's code may hold `"\d"` or `0or 1`, about which Python would warn.
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
