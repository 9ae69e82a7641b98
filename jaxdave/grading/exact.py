"""Exact arithmetic of closed-form numbers and polynomials.

A value is a quotient of sums of terms. A term is a rational number times powers of
atoms: prime numbers under a root, pi, e, the imaginary unit, and variables. Roots of
distinct square-free numbers are linearly independent over the rationals (Besicovitch,
1940), so equal values have equal terms, and no comparison depends on rounding.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

Monomial = tuple[tuple[str, Fraction], ...]
"""Pairs (atom, exponent), sorted by atom; digits name a prime under a root."""
Terms = Mapping[Monomial, Fraction]
"""A sum: the coefficient of every monomial in it, none of them zero."""

MAX_TERMS = 100
MAX_POWER = 24
"""Largest power of a sum that is expanded."""
MAX_BITS = 300_000
"""Size of the largest integer that is computed."""
MAX_FACTORIAL = 10_000
MAX_DIVISOR = 10**5
"""Largest divisor that is tried for a prime factor."""
POSITIVE_CONSTANTS = frozenset(("pi", "e"))


class UndecidedError(ValueError):
    """A value has no exact form here, or it would be too large to compute."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A quotient of two sums.

    Attributes:
        numerator: Terms of the numerator.
        denominator: Terms of the denominator, at least one.
        is_opaque: True if an atom stands for the root of a sum. Different terms may
            then be equal values.
    """

    numerator: Terms
    denominator: Terms
    is_opaque: bool = False


def rational(number: Fraction | int) -> Value:
    """Return a rational number as a value.

    Args:
        number: Any rational number.

    Returns:
        The value.
    """
    terms = {(): Fraction(number)} if number else {}
    return Value(numerator=terms, denominator={(): Fraction(1)})


def atom(name: str) -> Value:
    """Return a constant or a variable as a value.

    Args:
        name: "pi", "e", "i" (the imaginary unit), or the name of a variable.

    Returns:
        The value.
    """
    monomial = ((name, Fraction(1)),)
    return Value(numerator={monomial: Fraction(1)}, denominator={(): Fraction(1)})


def add(left: Value, right: Value) -> Value:
    """Return the sum of two values.

    Args:
        left: First summand.
        right: Second summand.

    Returns:
        The sum.

    Raises:
        UndecidedError: It has too many terms.
    """
    if left.denominator == right.denominator:
        numerator = _sum(left.numerator, right.numerator)
        return _quotient(numerator, left.denominator, (left, right))
    numerator = _sum(
        _product(left.numerator, right.denominator),
        _product(right.numerator, left.denominator),
    )
    denominator = _product(left.denominator, right.denominator)
    return _quotient(numerator, denominator, (left, right))


def multiply(left: Value, right: Value) -> Value:
    """Return the product of two values.

    Args:
        left: First factor.
        right: Second factor.

    Returns:
        The product.

    Raises:
        UndecidedError: It has too many terms.
    """
    return _quotient(
        _product(left.numerator, right.numerator),
        _product(left.denominator, right.denominator),
        (left, right),
    )


def negate(value: Value) -> Value:
    """Return the value with the other sign.

    Args:
        value: Any value.

    Returns:
        The negative.
    """
    return multiply(rational(-1), value)


def divide(left: Value, right: Value) -> Value:
    """Return the quotient of two values.

    Args:
        left: Dividend.
        right: Divisor.

    Returns:
        The quotient.

    Raises:
        UndecidedError: The divisor is zero, or the quotient has too many terms.
    """
    if not right.numerator:
        raise UndecidedError("division by zero")
    return _quotient(
        _product(left.numerator, right.denominator),
        _product(left.denominator, right.numerator),
        (left, right),
    )


def as_fraction(value: Value) -> Fraction | None:
    """Return a value as a rational number.

    Args:
        value: Any value.

    Returns:
        The number; None if the value is not rational.
    """
    if set(value.numerator) | set(value.denominator) <= {()}:
        return value.numerator.get((), Fraction(0)) / value.denominator[()]
    return None


def factorial(value: Value) -> Value:
    """Return the factorial of a value.

    Args:
        value: A natural number.

    Returns:
        The factorial.

    Raises:
        UndecidedError: The value is no natural number, or too large.
    """
    number = as_fraction(value)
    if number is None or number.denominator != 1 or not 0 <= number <= MAX_FACTORIAL:
        raise UndecidedError("no factorial")
    return rational(math.factorial(number.numerator))


def power(base: Value, exponent: Value) -> Value:
    """Return a value raised to a rational power.

    Of several roots the principal one is taken, but that of odd order of a negative
    number is real.

    Args:
        base: Any value.
        exponent: A rational number.

    Returns:
        The power.

    Raises:
        UndecidedError: The exponent is not rational, or the power too large.
    """
    number = as_fraction(exponent)
    if number is None:
        raise UndecidedError("power of unknown exponent")
    if number < 0:
        return power(divide(rational(1), base), rational(-number))
    is_single = len(base.numerator) <= 1 and len(base.denominator) == 1
    if is_single:
        numerator = _monomial_power(base.numerator, number)
        denominator = _monomial_power(base.denominator, number)
        return _quotient(numerator, denominator, (base,))
    if number.denominator == 1:
        if number > MAX_POWER:
            raise UndecidedError("large power of a sum")
        result = rational(1)
        for _ in range(number.numerator):
            result = multiply(result, base)
        return result
    return _opaque(base, number)


def equal(left: Value, right: Value) -> bool | None:
    """Compare two values.

    Args:
        left: First value.
        right: Second value.

    Returns:
        True or False; None where that is not known, as roots of sums are compared by
        their terms only.

    Raises:
        UndecidedError: The comparison needs too many terms.
    """
    crossed = (
        _product(left.numerator, right.denominator),
        _product(right.numerator, left.denominator),
    )
    if crossed[0] == crossed[1]:
        return True
    return None if left.is_opaque or right.is_opaque else False


def _quotient(numerator: Terms, denominator: Terms, parts: Iterable[Value]) -> Value:
    """A quotient whose denominator is 1 where it has a single term."""
    is_opaque = any(part.is_opaque for part in parts)
    if not denominator:
        raise UndecidedError("division by zero")
    if len(denominator) == 1:
        ((monomial, coefficient),) = denominator.items()
        inverse = tuple((name, -exponent) for name, exponent in monomial)
        numerator = _product(numerator, _reduced(inverse, 1 / coefficient))
        denominator = {(): Fraction(1)}
    return Value(numerator=numerator, denominator=denominator, is_opaque=is_opaque)


def _sum(left: Terms, right: Terms) -> Terms:
    terms = dict(left)
    for monomial, coefficient in right.items():
        terms[monomial] = terms.get(monomial, Fraction(0)) + coefficient
    return {m: c for m, c in terms.items() if c}


def _product(left: Terms, right: Terms) -> Terms:
    if len(left) * len(right) > MAX_TERMS**2:
        raise UndecidedError("too many terms")
    terms: dict[Monomial, Fraction] = {}
    for one, one_coefficient in left.items():
        for other, other_coefficient in right.items():
            exponents = dict(one)
            for name, exponent in other:
                exponents[name] = exponents.get(name, Fraction(0)) + exponent
            monomial = tuple(sorted(exponents.items()))
            reduced = _reduced(monomial, one_coefficient * other_coefficient)
            for key, coefficient in reduced.items():
                terms[key] = terms.get(key, Fraction(0)) + coefficient
                _check_size(terms[key])
    terms = {monomial: c for monomial, c in terms.items() if c}
    if len(terms) > MAX_TERMS:
        raise UndecidedError("too many terms")
    return terms


def _check_size(number: Fraction) -> None:
    size = number.numerator.bit_length() + number.denominator.bit_length()
    if size > MAX_BITS:
        raise UndecidedError("large number")


def _reduced(monomial: Monomial, coefficient: Fraction) -> Terms:
    """A term with exponents of primes in 0..1, and of the imaginary unit in 0..1."""
    kept: list[tuple[str, Fraction]] = []
    for name, exponent in monomial:
        if name.isdigit():
            whole = math.floor(exponent)
            coefficient *= _integer_power(Fraction(int(name)), whole)
            exponent -= whole
        elif name == "i":
            if exponent.denominator != 1:
                raise UndecidedError("root of the imaginary unit")
            coefficient *= -1 if exponent % 4 >= 2 else 1
            exponent = Fraction(exponent % 2)
        if exponent:
            kept.append((name, exponent))
    return {tuple(kept): coefficient}


def _integer_power(base: Fraction, exponent: int) -> Fraction:
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size > 1 and size * abs(exponent) > MAX_BITS:
        raise UndecidedError("large power")
    return base**exponent


def _monomial_power(terms: Terms, exponent: Fraction) -> Terms:
    """A sum of at most one term to a power that is not negative."""
    if not terms or exponent == 0:
        return {(): Fraction(1)} if exponent == 0 else {}
    ((monomial, coefficient),) = terms.items()
    if exponent.denominator == 1:
        raised = tuple((name, old * exponent) for name, old in monomial)
        factor = _integer_power(coefficient, exponent.numerator)
        return _reduced(raised, factor)
    powers: dict[str, Fraction] = {}
    for name, old in monomial:
        is_positive = name.isdigit() or name in POSITIVE_CONSTANTS
        # The root of a square is an absolute value, not the variable itself.
        if not is_positive and old.numerator % 2 == 0:
            raise UndecidedError("root of a square of a variable")
        powers[name] = old * exponent
    sign = Fraction(1)
    if coefficient < 0 and exponent.denominator % 2:
        sign = Fraction(-1) ** exponent.numerator
    elif coefficient < 0:
        if exponent.denominator != 2 or monomial:
            raise UndecidedError("root of a negative number")
        powers["i"] = Fraction(exponent.numerator)
    for number, direction in (
        (coefficient.numerator, 1),
        (coefficient.denominator, -1),
    ):
        for prime, count in _prime_factors(abs(number)).items():
            name = str(prime)
            old = powers.get(name, Fraction(0))
            powers[name] = old + direction * count * exponent
    return _reduced(tuple(sorted(powers.items())), sign)


def _prime_factors(number: int) -> dict[int, int]:
    factors: dict[int, int] = {}
    divisor = 2
    while divisor * divisor <= number and divisor <= MAX_DIVISOR:
        while number % divisor == 0:
            factors[divisor] = factors.get(divisor, 0) + 1
            number //= divisor
        divisor += 1
    root, count = math.isqrt(number), 1
    if root * root == number > 1:
        number, count = root, 2
    if number > MAX_DIVISOR**2:
        raise UndecidedError("root of a large number")
    return {**factors, number: count} if number > 1 else factors


def _opaque(base: Value, exponent: Fraction) -> Value:
    """An atom that stands for a root of a sum."""
    name = "".join(
        f"{sorted(terms.items())}" for terms in (base.numerator, base.denominator)
    )
    root = atom(f"root {exponent} of {name}")
    return dataclasses.replace(root, is_opaque=True)
