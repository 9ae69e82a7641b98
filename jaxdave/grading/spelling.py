r"""One spelling for mathematical answers: markup, Unicode signs and LaTeX commands.

What is written here as `\frac{1}{2}`, `½`, `**1/2**` or `$1/2$` differs in spelling
only. Spaces are kept, since they tell apart `1 1/2` and `11/2`.
"""

import re
from fractions import Fraction

DOLLAR = "¤"
"""Stands for a currency sign, as `$` also delimits mathematics."""
MAX_LAYERS = 12
"""Most layers of markup around an answer that are removed."""
_DASHES = "−–‐‑‒﹣－"
_SPACES = "\t\r\n\u00a0\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\ufe0f"
_SIGNS = {
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*",
    "÷": "/", "∕": "/", "⁄": "/", "π": r"\pi ", "𝜋": r"\pi ", "∞": r"\infty ",
    "°": r"^\circ ", "º": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
    "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ", "…": "...", "，": ",", "；": ";",
    "：": ":", "％": "%", "（": "(", "）": ")", "．": ".", "＝": "=", "＋": "+",
    "’": "'", "‘": "'", "“": '"', "”": '"', "￥": "¥",
    "ℝ": r"\mathbb{R}", "∅": r"\emptyset ", "＄": "$",
}  # fmt: skip
_TABLE = str.maketrans(
    {
        **dict.fromkeys(_DASHES, "-"),
        **dict.fromkeys(_SPACES, " "),
        **dict.fromkeys(_INVISIBLE, ""),
        **_SIGNS,
    }
)
_VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5),
    "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7),
    "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8), "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
# A long dash is a minus only where nothing is before it.
_LEADING_DASH = re.compile(r"^\s*[—―](?=\s*[\d\\.(])")
_SPACE_COMMANDS = re.compile(r"(?<!\\)\\(?:[,;: ]|quad(?![a-z])|qquad(?![a-z]))|~")
# `\left` is not the start of `\leftarrow`.
_LAYOUT = re.compile(
    r"\\(?:left|right|middle|displaystyle|textstyle|limits|[bB]igg?[lr]?|rm|bf|it"
    r"|normalsize|large|Large|strut)(?![A-Za-z])|\\!"
)
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|emph|mbox|hbox|mathrm|"
    r"operatorname\*?)\s*\{"
)
_STYLE = re.compile(
    r"\\(?:mathbf|mathit|mathsf|mathtt|boldsymbol|bm|underline|boxed|fbox|"
    r"(?:text)?color\s*\{\w*\})\s*\{"
)
_THOUSANDS_MARK = re.compile(r"(?<=\d)(?:\{,\}|,\\!)\s*(?=\d{3})")
_REPEATED = re.compile(
    r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot|overbar|widebar)\s*(?:\{(\d+)\}|(\d))"
)
# Dots over the first and the last digit that repeat.
_DOTS = re.compile(r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?")
_COMBINED_BAR = re.compile(r"((?:\d[\u0305\u0304\u0307])+)")
_DOTTED = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?:\.\.\.|\\[lc]?dots)")
_IN_BRACKETS = re.compile(r"(-?\s*)(\d*)\.(\d*)\((\d+)\)")
_DEGREES = re.compile(
    r"\^\s*\{?\s*\\circ\s*\}?|\\deg(?:ree)?(?![a-z])|(?<=\d)\s*\^\s*\{?o\b\}?"
)
_PERCENT = re.compile(r"\\?%|\bper ?cent\b|\bpct\b")
_LABEL = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct )?"
    r"(?:answer|result|solution|total|ans)\s*(?:is\s*:?|[:=])\s*",
    re.IGNORECASE,
)
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le",
    "geq": "ge", "geqslant": "ge", "neq": "ne", "lbrace": "{", "rbrace": "}",
    "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "ast": "cdot",
    "minus": "-", "langle": "(", "rangle": ")",
    "dbinom": "binom", "tbinom": "binom", "lt": "<", "gt": ">",
    "varnothing": "emptyset", "infin": "infty",
}  # fmt: skip
_LOOSE_SPACES = re.compile(
    r"(?<![0-9])(?<![0-9],) (?=[0-9])|(?<![A-Za-z]) (?=[A-Za-z])| (?![0-9A-Za-z])"
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")


def clean(text: str) -> str:
    r"""Give answers that differ in markup only one spelling.

    Args:
        text: An answer, in LaTeX or plain.

    Returns:
        The answer with ASCII signs and few LaTeX commands, single spaces, and
        without delimiters of mathematics, emphasis, and punctuation around it.

    Example:
        >>> clean(r"**$\dfrac{1}{2}$**,"), clean("1½"), clean("−5.")
        ('\\frac{1}{2}', '1 \\frac{1}{2}', '-5')
    """
    text = _plain_signs(_LEADING_DASH.sub("-", text))
    text = _THOUSANDS_MARK.sub("", text)
    text = _SPACE_COMMANDS.sub(" ", _LAYOUT.sub("", text))
    text = _COMMAND.sub(_renamed, text)
    text = _math_delimiters(text)
    text = _unwrapped(text, _TEXT, " {} ")
    text = _unwrapped(text, _STYLE, "{}")
    text = _repeating_decimals(text)
    text = _DEGREES.sub(" degrees ", text)
    text = _PERCENT.sub(" percent ", text)
    text = strip_markup(text)
    text = _LABEL.sub("", text, count=1) if _LABEL.match(text) else text
    return strip_markup(text)


def without_spaces(text: str) -> str:
    """Remove all spaces but those that separate two numbers or two words.

    Args:
        text: A text of `clean`.

    Returns:
        The text with single spaces, and only between two digits or two letters, or
        behind a comma between two digits.
    """
    return _LOOSE_SPACES.sub("", re.sub(r"\s+", " ", text))


def closing_brace(text: str, start: int) -> int:
    """Return the index of the brace that closes a group.

    Args:
        text: Any text.
        start: Index behind the opening brace.

    Returns:
        The index; -1 if the group does not end.
    """
    depth, index = 1, start
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    return -1


def _plain_signs(text: str) -> str:
    """Replace Unicode signs by ASCII ones and LaTeX commands."""
    text = _COMBINED_BAR.sub(
        lambda match: f"\\overline{{{re.sub(r'[^0-9]', '', match[1])}}}", text
    )
    for sign, (numerator, denominator) in _VULGAR.items():
        text = text.replace(sign, f" \\frac{{{numerator}}}{{{denominator}}}")
    text = re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPT)}}}", text
    )
    text = re.sub("[₀-₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPT)}}}", text)
    # Over a number the sign covers all of it, unlike `\sqrt`, which takes one digit.
    text = re.sub(r"([√∛])\s*(\d+(?:\.\d+)?|[A-Za-zπ])", r"\1{\2}", text)
    text = text.replace("√", r"\sqrt ").replace("∛", r"\sqrt[3] ")
    return text.translate(_TABLE)


def _renamed(match: re.Match[str]) -> str:
    """The usual name of a command, where it has several."""
    name = _RENAMED.get(match[1])
    if name is None:
        return match[0]
    if name in "[]()-<>":
        return name
    return "\\" + name


def _math_delimiters(text: str) -> str:
    r"""Remove `$`, `\(` and `\[`; write `\$`, and `$` before a price, as `DOLLAR`."""
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text).replace(r"\$", DOLLAR)
    if text.count("$") % 2:
        text = re.sub(r"\$(?=\s*-?[\d.])", DOLLAR, text)
    return text.replace("$", " ")


def _unwrapped(text: str, command: re.Pattern[str], form: str) -> str:
    """Replace every use of a command by its argument."""
    match = command.search(text)
    while match:
        end = closing_brace(text, match.end())
        if end < 0:
            return text
        inner = form.format(text[match.end() : end].replace("{}", ""))
        text = text[: match.start()] + inner + text[end + 1 :]
        match = command.search(text, match.start())
    return text


def _repeating_decimals(text: str) -> str:
    r"""Write `0.1\overline{6}`, `0.1666...` and `0.1(6)` as fractions."""
    text = _DOTS.sub(lambda m: f"\\overline{{{''.join(m.groups())}}}", text)
    text = _REPEATED.sub(lambda m: _as_fraction(m[1], m[2], m[3] or m[4]), text)
    text = _DOTTED.sub(_dotted, text)
    match = _IN_BRACKETS.fullmatch(text.strip())
    return match[1] + _as_fraction(*match.groups()[1:]) if match else text


def _dotted(match: re.Match[str]) -> str:
    """A decimal that ends in dots, as a fraction if its last digits repeat."""
    whole, digits = match.groups()
    for period in range(1, min(len(digits) // 2, 30) + 1):
        block = digits[-period:]
        repeats = 3 if period == 1 and len(digits) > 2 else 2
        if digits.endswith(block * repeats):
            fixed = digits
            while fixed.endswith(block):
                fixed = fixed[:-period]
            return _as_fraction(whole, fixed, block)
    return match[0]


def _as_fraction(whole: str, fixed: str, block: str) -> str:
    """A repeating decimal as a fraction in brackets."""
    value = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    value += Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(fixed))
    return f"({value})"


def strip_markup(text: str) -> str:
    """Remove emphasis, quotation marks and punctuation around a text.

    Args:
        text: Any text.

    Returns:
        The text within them, with single spaces.

    Example:
        >>> strip_markup("**13**,")
        '13'
    """
    text = re.sub(r"\s+", " ", text)
    for _ in range(MAX_LAYERS):
        stripped = _strip_once(text)
        if stripped == text:
            break
        text = stripped
    return text


def _strip_once(text: str) -> str:
    text = text.strip().rstrip(",;:").strip()
    # Three dots at the end mean that digits follow, one is the end of a sentence.
    text = text if text.endswith("..") else text.removesuffix(".")
    text = re.sub(r"^[=:]\s*|\\+\s*$", "", text)
    for mark in ("**", "__", "*", "_", "`", '"', "'"):
        is_marked = text.startswith(mark) and text.endswith(mark)
        if is_marked and len(text) > 2 * len(mark):
            return text[len(mark) : -len(mark)]
    text = re.sub(r"^\*\*|\*\*$", "", text)
    if text.startswith("{") and closing_brace(text, 1) == len(text) - 1:
        return text[1:-1]
    return text
