r"""Extraction of the answer from a model's text: a value, or a block of code.

Benchmarks disagree about which part of a text is the answer, so there is one function
for each convention. All of them take time linear in the text for any input, because a
model may repeat one fragment thousands of times. Code is read by `code_blocks`.
"""

import re

from jaxdave.grading.code_blocks import begin_done_block as begin_done_block
from jaxdave.grading.code_blocks import first_code_block as first_code_block
from jaxdave.grading.code_blocks import last_python_block as last_python_block
from jaxdave.grading.code_blocks import parse_code as parse_code
from jaxdave.grading.code_blocks import published_python_block as published_python_block
from jaxdave.grading.code_blocks import reachable_code as reachable_code

NO_BOXED_ANSWER = "Can not extract the answer!"
r"""The answer that the paper's evaluation assigns to a text without `\boxed{...}`."""

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
# `\boxed5`: without braces LaTeX takes one sign, and models mean one number.
_BARE_BOX = re.compile(r"\\boxed\s*(-?\d[\d,.]*|[A-Za-z])")
# An escaped character is consumed as a pair, so that `\{` and `\}` do not nest.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DASH = "[-\u2212\u2013\u2010\u2011\u2012\ufe63\uff0d]"
_NUMBER = r"(?:\d(?:[\d,]|\\!\s?(?=\d)|\{,\}(?=\d))*(?:\.\d+)?|\.\d+)"
_ARGUMENT = r"(?:\{(?:[^{}]|\{[^{}]{0,40}\}){1,60}\}|\d)"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"
_ROOT = rf"(?:\\sqrt(?:\[\d\])?\s*{_ARGUMENT}|[√∛]\s*\(?\d+\)?)"
_FRACTION = rf"\\[dtc]?frac\s*{_ARGUMENT}\s*{_ARGUMENT}"
_SUFFIX = (
    r"(?:\s*\\?%|\s+(?:per ?cent|squared|cubed|factorial)\b"
    r"|(?:\s+(?:hundred|thousand|million|billion|trillion|dozen)\b)+"
    r"|\s+out of\s+(?:\d+|[a-z]+)|\s+or (?:more|less|fewer|greater|above|below)\b)"
)
_QUANTITY = re.compile(
    # A minus after a digit, a letter or a closing bracket is a subtraction.
    rf"(?:(?<![\w)}}\]]){_DASH})?\\?\$?(?:"
    rf"(?:\d+\s*)?{_FRACTION}(?:\s*(?:\\pi(?![a-z])|π|{_ROOT}))?"
    rf"|(?:{_NUMBER}\s*)?{_ROOT}(?:\s*/\s*\d+)?"
    rf"|(?:{_NUMBER}\s*)?(?:\\pi(?![a-z])|π)(?:\s*/\s*\d+)?"
    r"|\d*\.\d*\\(?:overline|bar)\s*\{\d+\}"
    rf"|(?:\d+\s*)?{_VULGAR}|\d+\s+\d+/\d+"
    r"|\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)(?:\.\d+)?"
    rf"|{_NUMBER}(?:[eE][+-]?\d+(?!\w)|\s*(?:\\times|×|\*)\s*10\s*\^\s*"
    rf"(?:\{{{_DASH}?\d+\}}|{_DASH}?\d+)|\^(?:\{{-?\d+\}}|-?\d+)"
    rf"|[ ]?/[ ]?{_NUMBER})?"
    rf"){_SUFFIX}?"
)
# The bound of 300 characters keeps the search linear where no dollar sign closes.
_FINAL_ANSWER = re.compile(r"[Ff]inal answer is:?\s*\$([^$]{1,300})\$")
_ANSWER_SENTENCE = re.compile(
    r"\b(?:answer|result)\**\s{0,3}(?:(?:is|are|was|equals|would be)\b(?!\s+not\b)"
    r"\s{0,3}:?|[:=])",
    re.IGNORECASE,
)
_DELIMITED = re.compile(
    r"\$\$([^$]{1,300})\$\$|\$((?:\\\$|[^$\n]){1,300})\$|\\\((.{1,300}?)\\\)"
    r"|\\\[(.{1,300}?)\\\]|\*\*([^*\n]{1,300})\*\*|`([^`\n]{1,300})`",
    re.DOTALL,
)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?;](?=\s|\*|$)|\n")
_WORD = re.compile(r"(?<![A-Za-z\\])(?!and\b|or\b|sqrt|pi\b)[A-Za-z]{2,}")
_LABEL = re.compile(
    r"(?:the |so |thus,? |hence,? )*(?:final |correct )?answer\**\s*"
    r"(?:is\b\s*:?|[:=]|$)",
    re.IGNORECASE,
)
# What makes a quantity the beginning of an expression, or of a list.
_GOES_ON = re.compile(
    r"[A-Za-z](?![A-Za-z])|\s*(?:[-+*/=^<>×·÷]|\\(?!text|mbox|mathrm|[,;! %$])"
    r"|!(?=\s*[=+*/])|x\s*\d|[A-Za-z]\s*[-+*/=^]|(?:and|or|,)\s*-?\d)"
)
_WITH_UNITS = re.compile(r"\s+[A-Za-z]{2,20}[A-Za-z ]{0,20}[-+*/×]\s*\$?\d")
_COMMAND_WORDS = re.compile(
    r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_LEFT_SIDE = re.compile(r"(?:.*=)?\s*[A-Za-z]\w?\s*(?:\([A-Za-z]\))?\s*")
_NUMBERED_HEADING = re.compile(r"\d+[.)]\s+[A-Za-z]")
_MAX_SENTENCE = 400


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


def _bare_box(text: str) -> str | None:
    """The number or letter behind the last box without braces."""
    bare = _BARE_BOX.findall(text)
    return bare[-1].rstrip(",.") if bare else None


def answer_after_hashes(text: str) -> str | None:
    """Return the answer after the last `####`, GSM8K's answer mark.

    Emphasis and a label such as `Answer:` before it are passed over. Some models head
    their steps with the same mark: a line of words that text follows is no answer.

    Args:
        text: The text of a model, or a reference solution.

    Returns:
        The quantity that the rest of that line begins with (a number with its
        fraction, power, or word of quantity, without its unit), else the whole rest of
        the line; None if there is no mark, or it marks a heading.

    Example:
        >>> answer_after_hashes("3 * 6 = 18 #### 1,234 dollars")
        '1,234'
        >>> answer_after_hashes("#### **Answer: 2 million**")
        '2 million'
    """
    _, mark, rest = text.rpartition("####")
    lines = [line.strip() for line in rest.split("\n") if line.strip()] if mark else []
    if not lines:
        return None
    line = _without_label(lines[0])
    if not line and len(lines) > 1:
        return answer_in_line(_without_label(lines[1])) or None
    is_words = not _QUANTITY.search(line) or re.match("(?i)step|part|case", line)
    if len(lines) > 1 and (is_words or _NUMBERED_HEADING.match(line)):
        return None
    return answer_in_line(line) or None


def answer_in_line(line: str) -> str:
    r"""Return the answer that a line begins with.

    Args:
        line: A line or sentence that states an answer.

    Returns:
        What stands between the delimiters that the line begins with (`$`, `\(`, `**`);
        else the quantity that it begins with, or the expression up to its first word;
        else the last quantity in it; else the whole line.

    Example:
        >>> answer_in_line("18 dollars"), answer_in_line("3 * 6 = 18")
        ('18', '18')
        >>> answer_in_line("(3, 4) by symmetry"), answer_in_line("three")
        ('(3, 4)', 'three')
    """
    line = line.strip()
    content = _delimited(line)
    if content:
        return _right_side(content)
    word = _WORD.search(_without_commands(line))
    expression = line[: word.start()] if word else line
    expression = re.sub(r"\s+(?:and|or)\s*$|,\s*$", "", expression).strip()
    quantity = _QUANTITY.match(line)
    rest = line[quantity.end() :] if quantity else ""
    if quantity and "=" in rest and _WITH_UNITS.match(rest):
        return answer_in_line(rest.rpartition("=")[2])
    if quantity and not quantity[0].endswith(",") and not _GOES_ON.match(rest):
        return _tidy(line, quantity)
    if expression and not re.fullmatch(r"[\W_]*", expression):
        return _right_side(expression)
    quantities = list(_QUANTITY.finditer(line))
    return _tidy(line, quantities[-1]) if quantities else line


def _delimited(line: str) -> str:
    """What stands between the delimiters that a line begins with; empty if nothing."""
    match = _DELIMITED.match(line)
    if match is None:
        return ""
    content = next(part for part in match.groups() if part is not None).strip()
    # Two prices in one sentence enclose words.
    is_price = line.startswith("$") and _WORD.search(_without_commands(content))
    return "" if is_price else content


def _without_commands(text: str) -> str:
    """A text of the same length without LaTeX commands and the words in them."""
    return _COMMAND_WORDS.sub(lambda match: "0" * len(match[0]), text)


def _right_side(expression: str) -> str:
    """What stands behind the last equals sign, if the one before it is no equation."""
    left, _, right = expression.rpartition("=")
    is_equation = re.search(r"[a-z]", _without_commands(left), re.IGNORECASE)
    if is_equation and not _LEFT_SIDE.fullmatch(left):
        return expression.strip()
    has_one = not re.search(r"[,;<>!]|\b(?:and|or)\b", left)
    return (right if has_one else expression).strip()


def _tidy(text: str, match: re.Match[str]) -> str:
    """A quantity without a comma at its end, and without half a pair of dollars."""
    found = match[0].rstrip(",")
    is_pair = text[match.end() : match.end() + 1] == "$"
    return found.replace("$", "") if is_pair else found


def _without_label(line: str) -> str:
    """A line without markup around it and a label such as `Answer:` before it."""
    line = re.sub(r"^[*_#\s]+|[*_\s]+$", "", line)
    match = _LABEL.match(line)
    line = line[match.end() :] if match else line
    return re.sub(r"^[*_:=\s]+", "", line)


def answer_sentence(text: str) -> str | None:
    """Return the answer of the last sentence that says `the answer is`.

    Args:
        text: The text of a model.

    Returns:
        The answer, as `answer_in_line` reads it; None if there is no such sentence.

    Example:
        >>> answer_sentence("The answer is 1/2. I checked it in 2 ways.")
        '1/2'
    """
    matches = list(_ANSWER_SENTENCE.finditer(text))
    if not matches:
        return None
    rest = text[matches[-1].end() :][:_MAX_SENTENCE].lstrip("*_: \n\t")
    if _delimited(rest):
        return answer_in_line(rest) or None
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0]
    return answer_in_line(sentence.strip("*_ ")) or None


def last_number(text: str) -> str | None:
    """Return the last number of a text as it is written there.

    Args:
        text: The text of a model.

    Returns:
        The sign, an optional dollar sign, and the number with all that belongs to it:
        commas, a fraction, a root, a power of ten, a word of quantity, a per cent
        sign; without a comma at the end. None if the text has no number.

    Example:
        >>> last_number("That is $1,000, or 16-3."), last_number("It is 1 1/2 cups.")
        ('3', '1 1/2')
    """
    matches = list(_QUANTITY.finditer(text))
    return _tidy(text, matches[-1]) if matches else None


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

    The rules, in order: the last `\boxed{...}`; the last `\boxed5` without braces; the
    answer after the last `####`; the last "final answer is $...$"; the last "answer is
    ..."; the last number. A rule whose answer is empty is passed over.

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
        _bare_box(text),
        answer_after_hashes(text),
        sentences[-1] if sentences else None,
        answer_sentence(text),
    )
    for candidate in candidates:
        if candidate:
            return candidate
    return last_number(text) or ""
