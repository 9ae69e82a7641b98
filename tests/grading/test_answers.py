"""What counts as an answer, and when two answers are the same."""

import importlib.util
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdave.grading import extract, mathematics
from jaxdave.grading.math_equal import same

needs_verifier = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None,
    reason="needs math-verify (pip install math-verify)",
)

READ = {
    r"so \boxed{5}.": "5",
    r"\boxed{1} then \boxed{\frac{1}{2}}": r"\frac{1}{2}",
    r"\boxed{\{1, \{2\}\}} and more": r"\{1, \{2\}\}",
    r"\boxed{3} but \boxed{4": "3",
    r"\boxed{a\}b}": r"a\}b",
    r"\fbox{7}": "7",
    r"\boxed{}": "",
    "####": "",
    "so\n#### 1,234": "1,234",
    "#### -5.\nDone 8": "-5",
    "#### $18": "$18",
    "#### three": "three",
    "Final Answer: The final answer is $x^2$. I hope it is 1.": "x^2",
    "it costs $1,000,000.": "$1,000,000",
    "16-3, so -3": "-3",
    "that is 16-3": "3",
    "f(2)-4": "4",
    "half is .5": ".5",
    "": "",
    "none": "",
    "#### 5 and \\boxed{6}": "6",
}
BLOCKS = {
    "```python\nx = 1\n```": ("x = 1", "x = 1"),
    "```python\na\n``` ```python\nb\n```": ("b", "a"),
    "```\na\n```": ("", "a"),
    "```py\na\n```": ("", "a"),
    "```python\n  a\n": ("", "  a"),
    "x = 1": ("", "x = 1"),
    "Here:\n```python\ndef f():\n    pass\n\n": ("", "def f():\n    pass"),
    "```python\r\na\r\nb\r\n```": ("a\r\nb", "a\r\nb"),
}
BEGUN = {
    "[BEGIN]\n 'x = 1' \n[DONE] \n\n ": "x = 1",
    "[BEGIN]\nx = 1\n[DONE] [BEGIN]\ny": "x = 1",
    "[BEGIN]\n```python\nx = 1\n```\n": "x = 1",
    "x = 1": "x = 1",
}


@pytest.mark.parametrize("text", READ)
def test_math_answer(text: str) -> None:
    assert extract.math_answer(text) == READ[text]


def test_boxed_only_as_published() -> None:
    assert extract.boxed_only(r"\boxed{3} #### 4") == "3"
    assert extract.boxed_only("#### 4") == "Can not extract the answer!"


@pytest.mark.parametrize("text", BLOCKS)
def test_blocks(text: str) -> None:
    assert (extract.last_block(text), extract.first_block(text)) == BLOCKS[text]


@pytest.mark.parametrize("text", BEGUN)
def test_begun(text: str) -> None:
    assert extract.begun(text) == BEGUN[text]


def test_reachable_keeps_what_the_entry_needs() -> None:
    code = (
        "import os\nK = 3\nL = 4\ndef help(x):\n    return x + K\n"
        "def f(x):\n    return help(x)\ndef other():\n    return L\nprint(f(1))\n"
        "And that is all."
    )
    plain = extract.reachable(code, "f").replace("\n\n", "\n")
    assert plain == "\n".join(code.split("\n")[:2] + code.split("\n")[3:7])
    assert extract.reachable("no code here", "f") == ""


def test_endless_repetition_is_read_in_one_pass() -> None:
    begun = time.monotonic()
    for part in ("\\boxed{", "final answer is $x ", "```python\n", "#### ", "1,"):
        assert isinstance(extract.math_answer(part * 20_000), str)
        assert isinstance(extract.last_block(part * 20_000), str)
        assert isinstance(extract.first_block(part * 20_000), str)
    assert time.monotonic() - begun < 20


@given(st.text(max_size=60))
def test_no_text_breaks_the_readers(text: str) -> None:
    for read in (extract.math_answer, extract.boxed_only, extract.last_block):
        assert isinstance(read(text), str)
    assert isinstance(extract.begun(extract.first_block(text)), str)
    same(text, text[::-1])
    extract.reachable(text, "f")


SAME = (
    ("18", "18.0"), ("1234", "1,234"), ("1234", "$1,234"), ("25", "025"),
    ("70000", r"\$70,000"), (r"\frac{1}{2}", "0.5"), (r"\frac12", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", "1/2"), ("90^\\circ", "90"), (r"50\%", "50"), ("x=5", "5"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})"), ("10,080", r"10,\!080"),
    (r"\text{Evelyn}", "Evelyn"), (r"\sqrt3", r"\sqrt{3}"), ("-3", "-3."),
    ("18", "18 dollars"), ("18", r"18\text{ gold coins}"), ("-\\frac{2}{3}", "-2/3"),
    (".5", "0.50"), ("2,000,000", "2000000"),
)  # fmt: skip
OTHER = (
    ("18", "19"), ("18", ""), ("1234", "12,34"), ("3", "-3"), ("1/2", "2/1"),
    ("5", "1/0"), ("113", "1130"), ("0.5", "0.05"), ("3", "3" * 5000), ("25", "0250"),
)  # fmt: skip
# For math-verify: by spelling and value these are not told apart.
ASKED = {
    ("(x+1)^2", "x^2+2x+1"): True,
    ("\\sqrt{8}", "2\\sqrt{2}"): True,
    ("2\\pi", "6"): False,
    ("\\{1,2\\}", "\\{2,1\\}"): True,
    ("[2,5)", "(2,5]"): False,
    ("x", "Evelyn"): False,
    ("0.5", "50\\%"): True,
}


@pytest.mark.parametrize(("gold", "found"), SAME)
def test_same(gold: str, found: str) -> None:
    assert same(gold, found) is True


@pytest.mark.parametrize(("gold", "found"), OTHER)
def test_not_the_same(gold: str, found: str) -> None:
    assert not same(gold, found)


def boxes(*answers: str) -> list[str]:
    return [f"\\boxed{{{answer}}}" for answer in answers]


@needs_verifier
def test_math_verify_is_asked_for_the_rest() -> None:
    golds, found = zip(*ASKED, strict=True)
    assert all(same(*pair) is None for pair in ASKED)
    told = mathematics.grade(golds, boxes(*found), extract.math_answer)
    assert [v.right for v in told] == list(ASKED.values())
    assert told[2].reason == "not 2\\pi" and told[2].extracted == "6"


def test_without_math_verify_what_cannot_be_told_is_wrong(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = mathematics.grade(
        ["4", "(x+1)^2"], boxes("4.0", "x^2+2x+1"), extract.math_answer
    )
    assert [v.right for v in told] == [True, False]


SLOW = ["9^{9^{9^{9}}}", "100000000!", r"\prod_{i=1}^{10^{10}} i"]
ODD = ["x/0", "\\int " * 300, "(" * 1900, "\ud800 x", "x\n2\r3\u2028 4"]


def check_hostile(slow: list[str], odd: list[str]) -> None:
    """They are wrong, and what comes after them is graded all the same."""
    hostile = [*slow, *odd]
    golds = [r"\sqrt{8}"] * (2 * len(hostile))
    found = [x for bad in hostile for x in (bad, r"2\sqrt{2}")]
    begun = time.monotonic()
    told = mathematics.grade(golds, boxes(*found), extract.math_answer, seconds=1.5)
    assert [v.right for v in told] == [False, True] * len(hostile)
    assert [v.reason for v in told[0:-1:2]][: len(slow)] == (
        ["took too long"] * len(slow)
    )
    assert time.monotonic() - begun < 60


@needs_verifier
def test_no_expression_hangs_or_ends_the_grading() -> None:
    check_hostile(SLOW[:1], ODD[2:])


@pytest.mark.slow
@needs_verifier
def test_nor_do_these() -> None:
    check_hostile(SLOW, ODD)
