"""How many matches as good as one found unrelated fields would give: the number of false alarms.

A match is believed by what it leaves over and by what was known before, not by a count alone. Five pairs that agree to
a tenth of a pixel where a WCS puts them are no chance; twenty of two thousand within three pixels may be.

The frame's stars are taken to lie at random with their own density (Poisson). The number of false alarms is the
expected number of matches, among all that were tried, with as many pairs and as small residuals. It bounds the
probability of one (a-contrario reasoning: Moisan & Stival 2004, IJCV 57, 201, for pairs of points).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

TESTS: Final = 10.0  # by count and by residuals, in each of the five batches of hypotheses that a search goes through
FINEST: Final = 0.05  # px, rms of pairs below which a smaller one proves nothing more


class Tried(NamedTuple):
    """What hypotheses were looked through before a match was found.

    ``weighed``: hypotheses that were looked at; ``segments``: pairs of two stars of one and two of the other that could
    have made one, where they came from the stars; 0: they came from a prior, which the stars had no part in.
    """

    weighed: float
    segments: float = 0.0


class Evidence(NamedTuple):
    """A match in numbers; distances in pixels.

    ``matched`` pairs of ``candidates`` stars that both fields show; ``free``: pairs that the model can always satisfy;
    ``density`` of the frame's stars, px^-2; ``squares``: sum of squared residuals, px^2; ``radius`` within which pairs
    were made; ``reach``: how far the match may lie from its hypothesis.
    """

    matched: int
    candidates: int
    free: int
    density: float
    squares: float
    radius: float
    reach: float


def log10_of_false_alarms(found: Evidence, tried: Tried) -> float:
    """Return log10 of the expected number of matches as good as this one in unrelated fields.

    With n candidates, k pairs, s free ones, m = k - s and density d, it is ``TESTS N min(B, V)``:

    - ``B``, by count: the binomial upper tail of m or more of n - s, each with probability ``1 - exp(-pi d radius^2)``.
    - ``V``, by residuals: ``C(n - s, m) (pi d S)^m / m!``. The residuals of a least-squares fit have 2 m dimensions,
      and ``pi^m S^m / m!`` is the volume of the ball that holds all fits with as small a sum S of squares.
    - ``N``, models that were tried. From stars: the pairs of segments that could have made a similarity, and, around
      each hypothesis weighed, every choice of two from its three stars and the chance pairs within reach of it. From a
      prior: the chance of s pairs within reach, ``C(n, s) (pi d reach^2)^s``, for each hypothesis weighed.
    """
    m = found.matched - found.free
    if m <= 0:
        return 0.0
    candidates = max(found.candidates, found.matched)
    cell = math.pi * found.density
    squares = max(found.squares, found.matched * FINEST**2)
    by_residuals = (
        _log_choose(candidates - found.free, m) + m * math.log(max(cell * squares, 1e-300)) - math.lgamma(m + 1.0)
    ) / math.log(10.0)
    by_count = log10_of_tail(m, candidates - found.free, 1.0 - math.exp(-cell * found.radius**2))
    near = candidates * cell * found.reach**2  # chance pairs within reach of a hypothesis
    if tried.segments > 0.0:
        models = tried.segments + tried.weighed * 0.5 * (3.0 + near) * (2.0 + near)
        models *= (found.matched + near) ** (found.free - 2)
    else:
        chance = _log_choose(candidates, found.free) + found.free * math.log(max(cell * found.reach**2, 1e-300))
        models = tried.weighed * math.exp(min(chance, 600.0))
    return math.log10(TESTS) + math.log10(max(models, 1e-300)) + min(by_count, by_residuals)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1.0) - math.lgamma(k + 1.0) - math.lgamma(n - k + 1.0)


def log10_of_tail(confirmed: int, candidates: int, probability: float) -> float:
    """Return log10 of the probability that of so many candidates so many or more are confirmed by chance.

    The terms of the binomial distribution are added up from the nearest to the mean outwards, on the side where they
    fall: that takes a tenth of the time of a general incomplete beta function with its imports.
    """
    if confirmed <= 0 or candidates < confirmed:
        return 0.0
    p = max(probability, 1e-300)
    if p >= 1.0:
        return 0.0
    rises = confirmed > candidates * p  # above the mean: the upper tail is added up, else the lower one
    k = confirmed if rises else confirmed - 1
    odds = p / (1.0 - p)
    term = math.exp(_log_choose(candidates, k) + k * math.log(p) + (candidates - k) * math.log1p(-p))
    total = 0.0
    while term > 1e-17 * total:
        total += term
        term *= (candidates - k) / (k + 1.0) * odds if rises else k / ((candidates - k + 1.0) * odds)
        k += 1 if rises else -1
    return math.log10(max(total if rises else 1.0 - total, 1e-300))


def log10_of_chance(confirmed: int, candidates: int, probability: float, trials: float) -> float:
    """Return log10 of how many hypotheses, of so many tried, as many candidates confirm by chance."""
    if confirmed <= 0 or candidates < confirmed:
        return 0.0
    return log10_of_tail(confirmed, candidates, probability) + math.log10(max(trials, 1.0))
