"""The line of least absolute deviations: a true minimiser, whatever the samples, and the arithmetic that finds it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rejection_case import printed_with_and_without_compiler, run

from zemosaic_phase3.rejection import least_absolute_line

SAMPLES = {
    "noise": lambda rng, n: rng.normal(0.0, 30.0, n),
    "few levels": lambda rng, n: rng.integers(0, 4, n) * 25.0,
    "integers": lambda rng, n: np.round(rng.normal(0.0, 6.0, n)),
    "half constant": lambda rng, n: np.where(rng.random(n) < 0.5, 7.0, rng.normal(0.0, 30.0, n)),
    "skew": lambda rng, n: rng.exponential(2000.0, n) ** 2,
    "a line": lambda rng, n: np.arange(n) * 3.0 + 5.0,
    "constant": lambda rng, n: np.full(n, 321.0),
}


def found_line(y):
    """Ranks of the two samples through which the line is found to pass."""
    n = len(y)
    column = np.full((n + 63) // 64 * 64, np.float32(np.nan))
    column[:n] = y
    line = np.full(5 * 96, -1, np.int64)
    words, value, place = np.empty(n // 64 + 1, np.int64), np.empty(n + 8), np.empty(n + 8, np.int64)
    with np.errstate(all="ignore"):  # of numbers that are not used, without Numba
        least_absolute_line.line_least_absolute(column, 7, 0, n, line, words, value, place)
    return int(line[7]), int(line[96 + 7])


def exact_cost(y, p, q):
    """Sum of the distances from the line through two samples, times q - p, exactly."""
    a, b = Fraction(float(y[p])), Fraction(float(y[q]))
    return sum(abs((Fraction(float(v)) - a) * (q - p) - (b - a) * (i - p)) for i, v in enumerate(y))


def least_cost(y):
    """The least of all pairs of samples, in exact numbers."""
    return min(exact_cost(y, p, q) / (q - p) for p in range(len(y)) for q in range(p + 1, len(y)))


def is_best(y, p, q):
    """True if no line near the one through two samples is better: it falls in no direction of a kink.

    The sum of distances is convex, and linear between the directions that turn the line about a sample on it.
    """
    a, b = Fraction(float(y[p])), Fraction(float(y[q]))
    residual = [(Fraction(float(v)) - a) * (q - p) - (b - a) * (i - p) for i, v in enumerate(y)]
    signs = [(r > 0) - (r < 0) for r in residual]
    on_line = [i for i, r in enumerate(residual) if r == 0]
    return all(abs(sum(s * (i - z) for i, s in enumerate(signs))) <= sum(abs(c - z) for c in on_line) for z in on_line)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("n", [5, 6, 7, 11, 18])
def test_no_line_through_two_samples_is_better(kind, n):
    for seed in range(4):
        y = np.sort(SAMPLES[kind](np.random.default_rng([n, seed]), n).astype(np.float32))
        p, q = found_line(y)
        assert exact_cost(y, p, q) / (q - p) == least_cost(y)
        assert is_best(y, p, q)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("n", [63, 64, 65, 200, 1000])
def test_no_line_near_it_is_better(kind, n):
    y = np.sort(SAMPLES[kind](np.random.default_rng(n), n).astype(np.float32))
    assert is_best(y, *found_line(y))


def test_a_worse_line_is_told_from_the_best():
    y = np.sort(SAMPLES["noise"](np.random.default_rng(0), 30).astype(np.float32))
    p, q = found_line(y)
    assert is_best(y, p, q) and not is_best(y, p, q - 1) and not is_best(y, p + 1, q)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-12, 12), min_size=5, max_size=13), st.sampled_from([1.0, 1e-40, 0.1, 1e30]))
def test_ties_end_in_a_line_that_is_best(levels, step):
    y = np.sort((np.array(levels) * step).astype(np.float32))
    p, q = found_line(y)
    # Where samples are no multiples of one step, three that nearly lie on a line count as if they did.
    assert float(exact_cost(y, p, q) / (q - p)) == pytest.approx(float(least_cost(y)), rel=1e-12)


def test_what_is_known_of_a_line_follows_its_window():
    rng = np.random.default_rng(5)
    for ties in (False, True):
        y = np.sort((np.round(rng.normal(0, 4, 70)) if ties else rng.normal(0, 4, 70)).astype(np.float32))
        column = np.zeros(128, np.float32)
        column[:70] = y
        p, q = found_line(y)
        line = np.zeros(5 * 96, np.int64)
        line[0::96] = (p, q, *least_absolute_line.balance_of(column, 0, 70, p, q))
        least_absolute_line.leave_line(column, 0, 0, 3, line)
        least_absolute_line.leave_line(column, 0, 64, 70, line)
        assert tuple(line[192::96]) == tuple(least_absolute_line.balance_of(column, 3, 64, p, q))
        least_absolute_line.leave_line(column, 0, p, p + 1, line)
        assert line[0] == -1


def test_many_frames_reject_as_a_line_found_anew():
    rng = np.random.default_rng(9)
    cube = (1000.0 + 30.0 * rng.standard_normal((1000, 6))).astype(np.float32)
    cube[:40] += rng.exponential(500.0, (40, 6)).astype(np.float32)
    out = run(cube, "least_absolute_line", par=(5.0, 2.5, 0, 0))
    for j in range(6):
        y = np.sort(cube[:, j])
        first, last = 0, len(y)
        while True:
            window = y[first:last].astype(float)
            p, q = found_line(window)
            residual = window - (window[p] + (window[q] - window[p]) / (q - p) * (np.arange(len(window)) - p))
            sigma = 2.0 * np.abs(residual).mean()
            low, high = np.flatnonzero(residual <= -5.0 * sigma), np.flatnonzero(residual >= 2.5 * sigma)
            half = len(window) // 2
            f = first + max([int(i) + 1 for i in np.r_[low, high] if i < half], default=0)
            g = first + min([int(i) for i in np.r_[low, high] if i >= half], default=len(window))
            if (f, g) == (first, last):
                break
            first, last = f, g
        assert (out["low"][j], out["high"][j]) == (first, 1000 - last)
        assert last < 1000


@pytest.mark.parametrize(
    ("first", "last"), [(0, 64), (0, 1), (3, 3), (63, 64), (-70, 10), (60, 200), (70, 90), (-9, -2)]
)
def test_ranges_of_bits(first, last):
    word = least_absolute_line.range_of_ones(64, 64 + first, 64 + last)
    assert [k for k in range(64) if word >> k & 1] == [k for k in range(64) if first <= k < last]


def test_compiled_lines_equal_their_uncompiled_text():
    """The same Python text, run by the interpreter, finds the same lines, in columns of several words too."""
    program = (
        "import sys; sys.path[:0] = ['tests/support', 'tests/rejection']\n"
        "import numpy as np, test_least_absolute_line as t\n"
        "for kind, samples in t.SAMPLES.items():\n"
        "    for n in (5, 64, 150):\n"
        "        y = np.sort(samples(np.random.default_rng(n), n).astype(np.float32))\n"
        "        print(kind, n, *t.found_line(y))\n"
    )
    texts = printed_with_and_without_compiler(program)
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 3 * len(SAMPLES)
