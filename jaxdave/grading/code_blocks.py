"""Extraction of code from a model's prose: fenced blocks, and what a function needs.

Fences are read as CommonMark has them (https://spec.commonmark.org/0.31.2, fenced code
blocks), and as models write them besides: behind a sentence, within a list, closed at
the end of a line of code, or never.
"""

import ast
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PYTHON = frozenset("python python3 python2 py py3 ipython ipython3 sage".split())
"""Names that mark a block as Python."""
_PUBLISHED_BLOCK = re.compile(r"```python(.*?)```", re.DOTALL)
# In a line: what is before the fence, the fence, what it says about the block.
_OPENER = re.compile(r"(?P<prefix>[^`~]*)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
_ONE_LINE = re.compile(r"[^`]*```(?P<info>\w*)[ \t]+(?P<code>[^`\s][^`]*)```\s*$")
# Before a fence within a quotation or a list.
_MARKERS = re.compile(r"(?:\s*>)*\s*(?:(?:[-*+]|\d{1,9}[.)])\s+)*")
_QUOTE = re.compile(r"\s*>[ ]?")
_LANGUAGE = re.compile(r"\s*\{?\s*\.?([\w+#-]*)")
_PLAIN_INFO = re.compile(r"\s*[\w+#-]*\s*")
_STATEMENT = re.compile(r"(?:async )?(?:def|class) \w|import \w|from [\w.]+ import|@\w")
_BEGIN_DONE = re.compile(r"\[BEGIN\](.*?)(?:\[DONE\]|\Z)", re.DOTALL)
_MAX_PARSED_LINES = 100


class CodeBlock(NamedTuple):
    """A fenced block.

    Attributes:
        language: The first word behind the opening fence, in small letters.
        code: The lines between the fences, without the indentation of the fence.
        is_closed: False if the text ends before a closing fence.
    """

    language: str
    code: str
    is_closed: bool


def code_blocks(text: str) -> list[CodeBlock]:
    """Return the fenced blocks of a text.

    Args:
        text: The text of a model.

    Returns:
        The blocks in their order.

    Example:
        >>> code_blocks("1. Run:\\n   ``` python\\n   x = 1\\n   ```")
        [CodeBlock(language='python', code='x = 1', is_closed=True)]
    """
    blocks: list[CodeBlock] = []
    fence: _Fence | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if fence is None:
            one_line = _ONE_LINE.match(line)
            if one_line:
                language = one_line["info"].lower()
                blocks.append(CodeBlock(language, one_line["code"].strip(), True))
                continue
            fence = _opening_fence(line)
            lines = [fence.first_line] if fence and fence.first_line else []
            continue
        code, rest = _closing_fence(line, fence)
        lines += [line] if code is None else [code] if code.strip() else []
        if code is not None:
            blocks.append(_block(fence, lines, is_closed=True))
            fence, lines = _opening_fence(rest), []
    if fence is not None:
        blocks.append(_block(fence, lines, is_closed=False))
    return blocks


class _Fence(NamedTuple):
    """An opening fence: its sign and length, and how the lines after it begin."""

    sign: str
    length: int
    language: str
    quotes: int
    indent: int
    first_line: str


def _opening_fence(line: str) -> _Fence | None:
    """The fence that a line opens, if it does."""
    match = _OPENER.match(line.rstrip())
    if match is None:
        return None
    prefix, info = match["prefix"], match["info"]
    is_prose = _MARKERS.fullmatch(prefix) is None
    if is_prose and (match["fence"][0] == "~" or not _PLAIN_INFO.fullmatch(info)):
        return None
    language_match = _LANGUAGE.match(info)
    assert language_match is not None
    attributes = info[language_match.end() :].strip()
    quotes = 0 if is_prose else prefix.count(">")
    return _Fence(
        sign=match["fence"][0],
        length=len(match["fence"]),
        language=language_match[1].lower(),
        quotes=quotes,
        indent=_width(prefix)
        if is_prose
        else len(_unquoted(prefix, quotes).expandtabs(4)),
        # Code may begin behind the name of the language.
        first_line=attributes if _STATEMENT.match(attributes) else "",
    )


def _closing_fence(line: str, fence: _Fence) -> tuple[str | None, str]:
    """The code before a closing fence, and what follows it; None if it goes on."""
    inner = _unquoted(line, fence.quotes)
    mark = fence.sign * fence.length
    stripped = inner.strip()
    if stripped.startswith(mark) and _width(inner) <= fence.indent + 3:
        rest = stripped.lstrip(fence.sign)
        opened = _opening_fence(stripped)
        is_reopened = opened is not None and opened.language in PYTHON
        return "", stripped if is_reopened else rest
    # At the end of a line of code, but not within a string or a comment.
    is_inline = fence.sign == "`" and inner.count("```") == 1
    before, _, rest = inner.partition("```")
    is_code = before.strip() and not re.search("[\"'#]", before)
    if is_inline and is_code and not rest.strip():
        return before, ""
    return None, ""


def _unquoted(line: str, quotes: int) -> str:
    """A line without the signs of a quotation before it."""
    for _ in range(quotes):
        line = _QUOTE.sub("", line, count=1) if _QUOTE.match(line) else line
    return line


def _block(fence: _Fence, lines: Sequence[str], is_closed: bool) -> CodeBlock:
    """A block of the lines after a fence."""
    inner = [_unquoted(line, fence.quotes) for line in lines]
    widths = [_width(line) for line in inner if line.strip()]
    indent = min([fence.indent, *widths])
    inner = [_unindented(line, indent) for line in inner]
    code = "\n".join(inner).strip("\r\n")
    dedented = textwrap.dedent(code)
    if fence.indent and _STATEMENT.match(dedented):
        # In a list, lines are often further in than the fence.
        code = dedented
    return CodeBlock(fence.language, code, is_closed)


def _width(line: str) -> int:
    """Columns of the space that a line begins with."""
    columns = line.expandtabs(4)
    return len(columns) - len(columns.lstrip())


def _unindented(line: str, columns: int) -> str:
    """A line without so many columns of the space before it."""
    while columns > 0 and line[:1] in (" ", "\t"):
        columns -= 1 if line[0] == " " else 4
        line = line[1:]
    return line


def last_python_block(text: str) -> str:
    """Return the code of the last block that is marked as Python.

    Args:
        text: The text of a model.

    Returns:
        The code without line ends around it; empty if there is no such block. A block
        that is never closed ends with the text.
    """
    blocks = [block for block in code_blocks(text) if block.language in PYTHON]
    return blocks[-1].code if blocks else ""


def published_python_block(text: str) -> str:
    """Return the code of the last block as the paper's evaluation finds it.

    The opening fence must read ```` ```python ````, without a space, and the block ends
    with the next fence wherever it stands; a block that is never closed does not count,
    and code in a list keeps its indentation.

    Args:
        text: The text of a model.

    Returns:
        The code without line ends around it; empty if there is no such block.

    Source:
        The evaluation code of FreeDave (arXiv 2510.00294), which has it from dLLM-RL.
    """
    blocks = _PUBLISHED_BLOCK.findall(text)
    return blocks[-1].strip("\r\n") if blocks else ""


def first_code_block(text: str) -> str:
    """Return the code of the first fenced block that holds Python, closed or not.

    A block is Python by its mark, or, where it has none, if it parses as a program. If
    none is, the first one counts, whatever its language. lm-eval, OpenCompass and
    Dream's evaluation take the first block in any case, so that an answer with a
    command to install something before its program fails there.

    Args:
        text: The text of a model.

    Returns:
        The code without line ends around it; the whole text if there is no fence.
    """
    blocks = code_blocks(text)
    for block in blocks:
        if block.language in PYTHON or (not block.language and _is_program(block.code)):
            return block.code
    return blocks[0].code if blocks else text.strip("\r\n")


def _is_program(code: str) -> bool:
    """True if a code is more than one expression, which output might be as well."""
    tree = parse_code(textwrap.dedent(code))
    return tree is not None and any(not isinstance(n, ast.Expr) for n in tree.body)


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

    This drops demonstrations and prose around a solution. A name brings along every
    top-level statement that defines or changes it. If the code does not parse, the
    longest run of its lines that does is used instead; only the first 100 lines are
    looked at, as the search is quadratic in them.

    Args:
        code: The code that was extracted from a text.
        entry: Name of the function that the tests call.

    Returns:
        The reduced code, without its comments and in a uniform layout; empty if nothing
        parses.

    Source:
        Dream's evaluation of HumanEval, which reduces answers like this. It keeps of
        every name the last definition by `def`, `class` or `name = ...` only; the
        programs that need `A, B = 0, 1`, `N += 1` or `table[0] = 1` fail there, and are
        kept whole here.

    Example:
        >>> reachable_code("k = 1\nu = 2\ndef f(x):\n    return x + k\nThe end.", "f")
        'k = 1\ndef f(x):\n    return x + k'
    """
    tree = parse_code(code)
    if tree is None:
        lines = code.replace("\t", "    ").splitlines()[:_MAX_PARSED_LINES]
        tree = _longest_parsable(lines)
    statements: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for name in _changed_names(node):
            statements.setdefault(name, []).append(node)
    needed: set[str] = set()
    # By identity: two names may have been defined by equal statements.
    kept: set[int] = set()
    pending = [entry]
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        needed.add(name)
        for node in statements.get(name, ()):
            kept.add(id(node))
            pending += [*_used_names(node), *_changed_names(node)]
    imports = (ast.Import, ast.ImportFrom)
    return "\n".join(
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, imports) or id(node) in kept
    )


def _changed_names(node: ast.stmt) -> set[str]:
    """The top-level names that a top-level statement defines or changes."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return set()
    changed = {
        part.name
        for part in ast.walk(node)
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    for part in ast.walk(node):
        if isinstance(part, (ast.Name, ast.Subscript, ast.Attribute)):
            if not isinstance(part.ctx, ast.Load):
                changed.add(_root(part))
        # `table.append(1)` changes a table.
        call = part.value if isinstance(part, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            changed.add(_root(call.func))
    return changed - {""}


def _root(node: ast.expr) -> str:
    """The name that an expression such as `a.b[0]` begins with."""
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _used_names(node: ast.stmt) -> Iterator[str]:
    """Yield the top-level names that a statement reads, also from within functions."""
    try:
        tables = [symtable.symtable(ast.unparse(node), "answer", "exec")]
    except (SyntaxError, ValueError, RecursionError):
        return
    while tables:
        table = tables.pop()
        tables += table.get_children()
        at_top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() if at_top else symbol.is_global():
                yield symbol.get_name()


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
