r"""Parser of closed-form expressions, in LaTeX and plain, to exact values.

It reads sums, products, fractions, mixed numbers, roots, powers, factorials and
binomials of numbers, pi, e, the imaginary unit and variables. Functions such as sines,
and all else, are left to a computer algebra system.
"""

import math
import re
from fractions import Fraction

from jaxdave.grading import exact
from jaxdave.grading.exact import UndecidedError, Value

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![A-Za-z]))?)"
    r"|(?P<command>\\[A-Za-z]+|\\[{}])|(?P<word>[A-Za-z]+)|(?P<sign>\*\*|\S))"
)
_MIXED = re.compile(
    r"(?<!\d)(\d+)\s*(?:\\frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))"
    r"|(?<=\d)\s+(\d+)\s*/\s*(\d+)(?![\d.]))(?!\s*[\^!])"
)
_TIMES_TEN = re.compile(r"(?<=\d)\s*x\s*(?=10\s*\^)")
_NAMES = {"pi": "pi", "sqrt": "sqrt", "infinity": "infty", "inf": "infty"}
_LETTER_COMMANDS = frozenset(
    "alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi psi omega ell "
    "Gamma Delta Theta Lambda Sigma Phi Psi Omega varphi varepsilon".split()
)
MAX_VALUE_DIGITS = 5_000
MAX_DEPTH = 60


class WordsError(ValueError):
    """A text contains plain words, or numbers that nothing joins."""


def parse_expression(text: str) -> Value:
    r"""Return the value of an expression.

    Args:
        text: A text of `spelling.clean` without its unit.

    Returns:
        The exact value.

    Raises:
        UndecidedError: The expression is not of a kind that is read here.
        WordsError: The text is not one expression.

    Example:
        >>> value = parse_expression(r"1 1/2 + \frac12")
        >>> exact.as_fraction(value)
        Fraction(2, 1)
    """
    if not text.strip():
        raise UndecidedError("no expression")
    text = _MIXED.sub(_mixed, _TIMES_TEN.sub(r" \\cdot ", text))
    parser = _Parser(text)
    value = parser.sum()
    if parser.peek():
        raise UndecidedError("unknown syntax")
    return value


def _mixed(match: re.Match[str]) -> str:
    """A mixed number as a sum; an improper fraction behind a number is a factor."""
    whole, *parts = match.groups()
    numerator, denominator = (part for part in parts if part is not None)
    if not 0 < int(numerator) < int(denominator):
        return match[0]
    start = match.start()
    if re.search(r"[.\d_^/{]\s*$", match.string[:start]):
        return match[0]
    return f"({whole}+{numerator}/{denominator})"


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        matches = [match for match in _TOKEN.finditer(text) if match.lastgroup]
        self._tokens = _split_words(matches)
        self._index = 0
        self._depth = 0

    def peek(self) -> str:
        """The next token; empty at the end."""
        return self._tokens[self._index] if self._index < len(self._tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise UndecidedError("unfinished expression")
        self._index += 1
        return token

    def expect(self, *tokens: str) -> None:
        if self.take() not in tokens:
            raise UndecidedError("unknown syntax")

    def sum(self) -> Value:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UndecidedError("deep nesting")
        value = self.product()
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product()
            value = exact.add(value, exact.negate(term) if sign == "-" else term)
        self._depth -= 1
        return value

    def product(self) -> Value:
        if self.peek() in ("+", "-"):
            sign = self.take()
            value = self.product()
            return exact.negate(value) if sign == "-" else value
        value = self.power()
        was_number = self._ended_in_number()
        while True:
            token = self.peek()
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                value = exact.multiply(value, self.signed_power())
            elif token in ("/", r"\div"):
                self.take()
                value = exact.divide(value, self.signed_power())
            elif not token or token in ("+", "-", ")", "}", r"\}", "]", ","):
                return value
            elif was_number and _is_number(token):
                raise WordsError("two numbers side by side")
            else:
                value = exact.multiply(value, self.power())
            was_number = self._ended_in_number()

    def _ended_in_number(self) -> bool:
        return _is_number(self._tokens[self._index - 1])

    def signed_power(self) -> Value:
        if self.peek() in ("+", "-"):
            sign = self.take()
            value = self.signed_power()
            return exact.negate(value) if sign == "-" else value
        return self.power()

    def power(self) -> Value:
        value = self.atom()
        while self.peek() in ("^", "**", "!"):
            if self.take() == "!":
                value = exact.factorial(value)
            else:
                value = exact.power(value, self.argument())
        return value

    def argument(self) -> Value:
        """A group in braces, or the one token that LaTeX takes in their place."""
        token = self.peek()
        if token == "{":
            self.take()
            value = self.sum()
            self.expect("}")
            return value
        if token in ("+", "-"):
            return self.signed_power()
        if re.fullmatch(r"\d{2,}", token) and self._tokens[self._index - 1] != "^":
            # `\frac12` and `\sqrt3` take one digit each, `2^10` is plain text.
            self._tokens[self._index] = token[1:]
            return exact.rational(int(token[0]))
        return self.atom()

    def atom(self) -> Value:
        token = self.take()
        if _is_number(token):
            return exact.rational(_number(token))
        if token in ("(", "{", "["):
            value = self.sum()
            self.expect({"(": ")", "{": "}", "[": "]"}[token])
            return value
        if token == r"\frac":
            return exact.divide(self.argument(), self.argument())
        if token in (r"\sqrt", "sqrt"):
            return self.root()
        if token == r"\binom":
            return _binomial(self.argument(), self.argument())
        if token in (r"\pi", "pi"):
            return exact.atom("pi")
        if token.isalpha() and len(token) == 1:
            return self.variable(token)
        if token[1:] in _LETTER_COMMANDS:
            return self.variable(token)
        raise UndecidedError("unknown syntax")

    def root(self) -> Value:
        degree = exact.rational(2)
        if self.peek() == "[":
            self.take()
            degree = self.sum()
            self.expect("]")
        exponent = exact.divide(exact.rational(1), degree)
        return exact.power(self.argument(), exponent)

    def variable(self, name: str) -> Value:
        if self.peek() == "_":
            self.take()
            if self.peek() == "{":
                self.take()
                name += "_" + self.take()
                self.expect("}")
            else:
                name += "_" + self.take()
        return exact.atom(name)


def _split_words(matches: list[re.Match[str]]) -> list[str]:
    """The tokens, with a run of letters as the product of its variables."""
    tokens: list[str] = []
    for match in matches:
        word = match["word"]
        if word is None:
            tokens.append(match[0].strip())
        elif word in _NAMES:
            tokens.append(_NAMES[word])
        elif word.startswith(("sqrt", "pi")) or word.endswith(("sqrt", "pi")):
            tokens += re.findall(r"sqrt|pi|[A-Za-z]", word)
        elif len(word) > 3:
            raise WordsError("words")
        else:
            tokens += list(word)
    return tokens


def _is_number(token: str) -> bool:
    return re.match(r"\.?[0-9]", token) is not None


def _number(token: str) -> Fraction:
    mantissa, _, exponent = token.lower().partition("e")
    if len(mantissa) > MAX_VALUE_DIGITS or abs(int(exponent or 0)) > MAX_VALUE_DIGITS:
        raise UndecidedError("large number")
    return Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)


def _binomial(top: Value, bottom: Value) -> Value:
    numbers = exact.as_fraction(top), exact.as_fraction(bottom)
    if any(n is None or n.denominator != 1 or not 0 <= n <= 10_000 for n in numbers):
        raise UndecidedError("no binomial")
    upper, lower = (n.numerator for n in numbers if n is not None)
    return exact.rational(math.comb(upper, lower))
