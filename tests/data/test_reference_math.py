"""The references of the questions in mathematics: every figure that they state is computed here from those of the question."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from itertools import combinations_with_replacement, pairwise, product
from math import comb

from tests.data.references import asked, figures, numbers, reference, texts


def bisect(f: Callable[[float], float], low: float, high: float) -> float:
    """A zero of a function that rises from ``low`` to ``high``."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return low


def test_figures_are_read_whole() -> None:
    assert figures("1,347 of 2/9, -32; C(10, 4) = 0.40 and 5.") == ["1347", "2/9", "-32", "10", "4", "0.40", "5"]


def test_increasing_codes() -> None:
    length, low, high, _ = numbers(asked(231, 1))
    codes = [f"{code:0{length}d}" for code in range(low, high + 1)]
    strict = sum(all(a < b for a, b in pairwise(code)) for code in codes)
    loose = sum(all(a <= b for a, b in pairwise(code)) for code in codes)
    share, given = Fraction(strict, len(codes)), Fraction(strict, loose)
    assert (strict, loose) == (comb(10, 4), comb(13, 4))
    assert figures(reference(231, 1)) == texts(share, f"{float(100 * share):.1f}", 4, 10, 10, 4, strict, len(codes))
    assert figures(reference(231, 2)) == [
        *texts(Fraction(loose, len(codes)), f"{100 * loose / len(codes):.2f}", given, f"{float(100 * given):.2f}"),
        *texts(4, 13, 4, loose, strict, f"{strict}/{loose}", given),
    ]


def test_trapezium() -> None:
    long, short, leg = numbers(asked(232, 1))
    overhang = (long - short) // 2
    height = math.isqrt(leg**2 - overhang**2)
    assert 2 * overhang == long - short
    assert height**2 + overhang**2 == leg**2
    assert figures(reference(232, 1)) == texts((long + short) * height // 2, overhang, leg, overhang, height)
    # A (0, 0), B (long, 0), C (overhang + short, height), D (overhang, height): AC and BD meet where x = long/2.
    distance = Fraction(long, 2) * Fraction(height, overhang + short)
    area = distance * long / 2
    ratio = Fraction(long, short)
    assert figures(reference(232, 2)) == [
        *texts(distance, f"{float(distance):.2f}", area, f"{float(area):.2f}", ratio.numerator, ratio.denominator),
        *texts(distance / height, height),
    ]


def test_remainders() -> None:
    remainders = numbers(asked(233, 1))
    pairs = list(zip(remainders[1::2], remainders[::2], strict=True))
    low, high = numbers(asked(233, 2))
    found = [n for n in range(low, high + 1) if all(n % divisor == rest for divisor, rest in pairs)]
    divisors = [divisor for divisor, _ in pairs]
    assert figures(reference(233, 1)) == texts(found[0], *divisors, math.prod(divisors))
    assert found[1] - found[0] == math.prod(divisors)
    assert figures(reference(233, 2)) == texts(len(found), found[0], found[1], found[-1], sum(found))


def test_curve() -> None:
    def f(x: float) -> float:
        return x * math.exp(-x / 3)

    assert "x·exp(-x/3)" in asked(234, 1)
    steps = 400_000
    width = 100 / steps
    area = sum(f((i + 0.5) * width) for i in range(steps)) * width  # beyond 100 less than 1e-11 is left
    top = max(range(steps), key=lambda i: f(i * width)) * width
    half = bisect(lambda a: 0.5 - (1 + a / 3) * math.exp(-a / 3), 0, 100)
    below = int(half / width)
    assert abs(sum(f((i + 0.5) * width) for i in range(below)) * width - area / 2) < 1e-3
    assert abs(top - 3) < 1e-3
    assert abs(area - 9) < 1e-6
    assert abs(f(top) - 3 / math.e) < 1e-6
    for x in (0.5, 2.0, 7.0):  # the antiderivative
        slope = [-(3 * t + 9) * math.exp(-t / 3) for t in (x - 1e-5, x + 1e-5)]
        assert abs((slope[1] - slope[0]) / 2e-5 - f(x)) < 1e-6
    assert figures(reference(234, 1)) == texts(round(top), 3, f"{f(top):.3f}", round(area), 3, 9, 3)
    assert "-(3x + 9)·exp(-x/3)" in reference(234, 1)
    assert "to the right" in reference(234, 2)
    assert half > top
    assert figures(reference(234, 2)) == texts(f"{half:.2f}", 1, 3, 3, "1/2", 3, f"{half / 3:.3f}")


def pay_back(loan: Decimal, rate: Decimal, payment: Decimal, extra: Decimal, when: int) -> tuple[int, Decimal, Decimal]:
    """Payments, the last of them, and all of the interest."""
    balance, interest, count, paid = loan, Decimal(0), 0, Decimal(0)
    while balance > 0:
        charged = (balance * rate).quantize(Decimal("0.01"), ROUND_HALF_UP)
        count, interest, balance = count + 1, interest + charged, balance + charged
        paid = min(payment, balance)
        balance -= paid
        if count == when:
            balance -= extra
    return count, paid, interest


def test_loan() -> None:
    loan, percent, payment = (Decimal(figure) for figure in figures(asked(235, 1)))
    extra, when = numbers(asked(235, 2))
    plain = pay_back(loan, percent / 100, payment, Decimal(0), 0)
    sooner = pay_back(loan, percent / 100, payment, Decimal(extra), when)
    assert figures(reference(235, 1)) == texts(*plain)
    assert plain[2] == (plain[0] - 1) * payment + plain[1] - loan
    assert figures(reference(235, 2)) == texts(plain[0] - sooner[0], *sooner, plain[2] - sooner[2])


def test_strings_without_neighbours() -> None:
    [length] = numbers(asked(236, 1))
    [wanted] = numbers(asked(236, 2))

    def counted(n: int) -> list[str]:
        return [text for letters in product("ABC", repeat=n) if "AA" not in (text := "".join(letters))]

    s = [0, *(len(counted(n)) for n in range(1, length + 1))]
    assert all(s[n] == 2 * s[n - 1] + 2 * s[n - 2] for n in range(3, length + 1))
    assert figures(reference(236, 1)) == texts(s[length], 2, 1, 2, 2, 1, s[1], 2, s[2], *s[3:])
    hits = sum(text.count("A") == wanted for text in counted(length))
    share = Fraction(hits, s[length])
    places, rest = comb(length - wanted + 1, wanted), 2 ** (length - wanted)
    assert places * rest == hits
    assert figures(reference(236, 2)) == texts(
        share, f"{float(100 * share):.2f}", length - wanted + 1, wanted, places, rest, hits, s[length]
    )


def test_matrix() -> None:
    a, b, c, d = numbers(asked(237, 1))
    eigen = [value for value in range(a + d, -a - d, -1) if (a - value) * (d - value) == b * c]
    vectors = [(b, value - a) for value in eigen]
    assert len(eigen) == 2
    for value, (x, y) in zip(eigen, vectors, strict=True):
        assert (a * x + b * y, c * x + d * y) == (value * x, value * y)
    assert figures(reference(237, 1)) == texts(eigen[0], *vectors[0], eigen[1], *vectors[1])
    power = int(asked(237, 2).partition("A^8")[1][2:])
    m = [[a, b], [c, d]]
    result = m
    for n in range(1, power + 1):
        p, q = 5**n, 2**n
        closed = [[2 * p + q, p - q], [2 * p - 2 * q, p + 2 * q]]
        assert [[3 * value for value in row] for row in result] == closed
        if n < power:
            result = [[sum(result[i][k] * m[k][j] for k in (0, 1)) for j in (0, 1)] for i in (0, 1)]
    assert reference(237, 2) == (
        f"A^n = 1/3 · [[2·5^n + 2^n, 5^n - 2^n], [2·5^n - 2·2^n, 5^n + 2·2^n]]\n\nA^{power} = {result}"
    )


def test_pool() -> None:
    a, b, leak, start, _, stop, _ = numbers(asked(238, 1).replace(":", " "))
    full = numbers(asked(238, 2).replace(":", " "))[0]
    both, one, closed = Fraction(1, a) + Fraction(1, b) - Fraction(1, leak), Fraction(1, b) - Fraction(1, leak), Fraction(1, b)
    there = both * (stop - start)
    end = stop + (1 - there) / one
    with_leak = (closed * (full - stop) - (1 - there)) / (closed - one)
    assert figures(reference(238, 1).replace(":00", "")) == texts(end, stop, both, there, one, 1 - there, (1 - there) / one)
    assert figures(reference(238, 2).replace(":00", "")) == texts(
        stop + with_leak, stop, one, closed, with_leak, full - stop - with_leak, 1 - there
    )
    assert with_leak * one + (full - stop - with_leak) * closed == 1 - there


def test_seven_integers() -> None:
    mean, median, mode = numbers(asked(239, 1))
    assert asked(239, 1).startswith("Seven positive integers")
    total = 7 * mean
    found = []
    for low in combinations_with_replacement(range(1, median + 1), 3):
        for middle in combinations_with_replacement(range(median, total), 2):
            row = (*low, median, *middle, total - sum(low) - median - sum(middle))
            if row[-1] >= row[-2] and all(row.count(value) < row.count(mode) for value in set(row) - {mode}):
                found.append(row)
    largest, smallest = max(row[-1] for row in found), min(row[-1] for row in found)
    assert [row for row in found if row[-1] == largest] == [tuple(numbers(reference(239, 1))[1:8])]
    assert numbers(reference(239, 1)) == [largest, *next(row for row in found if row[-1] == largest), total, median, mode]
    second = numbers(reference(239, 2))
    example, rest = tuple(second[1:8]), second[8:]
    assert second[0] == smallest == example[-1]
    assert example in found

    def most(times: int) -> tuple[int, ...]:
        """The row of the largest sum whose largest number is one less than the smallest possible."""
        rows = []
        for low in combinations_with_replacement(range(1, median + 1), 3):
            for high in combinations_with_replacement(range(median, smallest), 3):
                row = (*low, median, *high)
                if row.count(mode) == times and all(row.count(value) < times for value in set(row) - {mode}):
                    rows.append(row)
        return max(rows, key=sum)

    twice, thrice = most(2), most(3)
    assert sum(twice) < total
    assert sum(thrice) < total
    assert rest == [total, mode, smallest - 1, *twice, sum(twice), mode, smallest - 1, *thrice, sum(thrice)]


def test_polynomial() -> None:
    given = numbers(asked(240, 1))
    points = dict(zip(given[1:-1:2], given[2:-1:2], strict=True))
    at = given[-1]

    def p(x: Fraction) -> Fraction:
        """Lagrange's form."""
        terms = (y * math.prod((x - other) / Fraction(a - other) for other in points if other != a) for a, y in points.items())
        return Fraction(sum(terms, Fraction(0)))

    assert figures(reference(240, 1)) == texts(at, p(Fraction(at)), 1, 2, 3, 4, 1, 1, 2, 3)
    assert all(p(Fraction(x)) == x**2 + (x - 1) * (x - 2) * (x - 3) == x**3 - 5 * x**2 + 11 * x - 6 for x in range(-5, 6))
    assert "p(x) = x² + (x - 1)(x - 2)(x - 3)" in reference(240, 1)
    zero = bisect(lambda x: x**3 - 5 * x**2 + 11 * x - 6, 0, 1)
    discriminant = 10**2 - 4 * 3 * 11
    assert discriminant < 0
    assert p(Fraction(0)) < 0 < p(Fraction(1))
    assert reference(240, 2) == (
        f"p(x) = x³ - 5x² + 11x - 6. It has exactly 1 real zero, at about {zero:.3f}: the derivative 3x² - 10x + 11 has the "
        f"discriminant {discriminant}, so p only rises, and the sign of p changes between 0 and 1."
    )
