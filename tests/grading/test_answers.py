"""Extraction of answers, and equality of mathematical answers."""

import importlib.util
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdave.grading import extract, mathematics
from jaxdave.grading.math_equal import answers_equal

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None,
    reason="needs math-verify (pip install math-verify)",
)

MATH_ANSWERS = {
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


@pytest.mark.parametrize("text", MATH_ANSWERS)
def test_math_answer(text: str) -> None:
    assert extract.math_answer(text) == MATH_ANSWERS[text]


def test_boxed_answer_as_published() -> None:
    assert extract.boxed_answer(r"\boxed{3} #### 4") == "3"
    assert extract.boxed_answer("#### 4") == "Can not extract the answer!"


def test_endless_repetition_is_read_in_one_pass() -> None:
    start = time.monotonic()
    for part in ("\\boxed{", "final answer is $x ", "```python\n", "#### ", "1,"):
        assert isinstance(extract.math_answer(part * 20_000), str)
        assert isinstance(extract.last_python_block(part * 20_000), str)
        assert isinstance(extract.first_code_block(part * 20_000), str)
    assert time.monotonic() - start < 20


@given(st.text(max_size=60))
def test_no_text_breaks_the_extraction(text: str) -> None:
    for extract_answer in (
        extract.math_answer,
        extract.boxed_answer,
        extract.last_python_block,
    ):
        assert isinstance(extract_answer(text), str)
    assert isinstance(extract.begin_done_block(extract.first_code_block(text)), str)
    answers_equal(text, text[::-1])
    extract.reachable_code(text, "f")


EQUAL = (
    ("18", "18.0"), ("1234", "1,234"), ("1234", "$1,234"), ("25", "025"),
    ("70000", r"\$70,000"), (r"\frac{1}{2}", "0.5"), (r"\frac12", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", "1/2"), ("90^\\circ", "90"), (r"50\%", "50"), ("x=5", "5"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})"), ("10,080", r"10,\!080"),
    (r"\text{Evelyn}", "Evelyn"), (r"\sqrt3", r"\sqrt{3}"), ("-3", "-3."),
    ("18", "18 dollars"), ("18", r"18\text{ gold coins}"), ("-\\frac{2}{3}", "-2/3"),
    (".5", "0.50"), ("2,000,000", "2000000"),
)  # fmt: skip
UNEQUAL = (
    ("18", "19"), ("18", ""), ("1234", "12,34"), ("3", "-3"), ("1/2", "2/1"),
    ("5", "1/0"), ("113", "1130"), ("0.5", "0.05"), ("3", "3" * 5000), ("25", "0250"),
)  # fmt: skip
# Values and structures that need no computer algebra.
DECIDED = {
    ("(x+1)^2", "x^2+2x+1"): True,
    ("\\sqrt{8}", "2\\sqrt{2}"): True,
    ("2\\pi", "6"): False,
    ("\\{1,2\\}", "\\{2,1\\}"): True,
    ("[2,5)", "(2,5]"): False,
    ("x", "Evelyn"): False,
    ("0.5", "50\\%"): True,
}
# For math-verify: functions, equations, and roots of sums.
UNDECIDED = {
    ("\\cot x", "\\frac{\\cos x}{\\sin x}"): True,
    ("\\sin 1", "1"): False,
    ("x + y = 4", "2x + 2y = 8"): True,
    ("\\sqrt{3+2\\sqrt{2}}", "1+\\sqrt{2}"): True,
    ("(\\ln 4, 3)", "(2 \\ln 2, 3)"): True,
    ("2^{n+1}", "2 \\cdot 2^n"): True,
    ("2^{n+1}", "2^n + 1"): False,
}


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_answers(gold: str, answer: str) -> None:
    assert answers_equal(gold, answer) is True


@pytest.mark.parametrize(("gold", "answer"), UNEQUAL)
def test_unequal_answers(gold: str, answer: str) -> None:
    assert not answers_equal(gold, answer)


def boxes(*answers: str) -> list[str]:
    return [f"\\boxed{{{answer}}}" for answer in answers]


@pytest.mark.parametrize(("gold", "answer"), DECIDED)
def test_values_are_decided_exactly(gold: str, answer: str) -> None:
    assert answers_equal(gold, answer) is DECIDED[gold, answer]


@needs_math_verify
def test_math_verify_decides_the_rest() -> None:
    golds, answers = zip(*UNDECIDED, strict=True)
    assert all(answers_equal(*pair) is None for pair in UNDECIDED)
    verdicts = mathematics.grade_math(golds, boxes(*answers), extract.math_answer)
    assert [v.correct for v in verdicts] == list(UNDECIDED.values())
    assert verdicts[1].reason == "not \\sin 1" and verdicts[1].extracted == "1"


def test_without_math_verify_undecided_answers_are_wrong(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    verdicts = mathematics.grade_math(
        ["4", "\\sin 1"], boxes("4.0", "\\cos(\\frac{\\pi}{2}-1)"), extract.math_answer
    )
    assert [v.correct for v in verdicts] == [True, False]


SLOW = ["9^{9^{9^{9}}}", "100000000!", r"\prod_{i=1}^{10^{10}} i"]
ODD = ["x/0", "\\int " * 300, "(" * 1900, "\ud800 x", "x\n2\r3\u2028 4"]


def check_hostile(slow: list[str], odd: list[str]) -> None:
    """Checks that these are wrong, and that the answers between them are graded."""
    hostile = [*slow, *odd]
    golds = [r"\sqrt{8}"] * (2 * len(hostile))
    answers = [x for bad in hostile for x in (bad, r"2\sqrt{2}")]
    start = time.monotonic()
    verdicts = mathematics.grade_math(
        golds, boxes(*answers), extract.math_answer, seconds=1.5
    )
    assert [v.correct for v in verdicts] == [False, True] * len(hostile)
    assert [v.reason for v in verdicts[0:-1:2]][: len(slow)] == (
        ["took too long"] * len(slow)
    )
    assert time.monotonic() - start < 60


@needs_math_verify
def test_no_expression_hangs_or_ends_the_grading() -> None:
    check_hostile(SLOW[:1], ODD[2:])


@pytest.mark.slow
@needs_math_verify
def test_no_slow_expression_hangs_or_ends_the_grading() -> None:
    check_hostile(SLOW, ODD)
