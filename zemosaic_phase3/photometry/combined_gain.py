"""Gains of frames whose own stars tell too little: what they tell, and what the frames before and after them say.

Transparency changes slowly: thin clouds, dew and the air mass take minutes, a frame seconds. So the logarithm of the
gain is taken for a random walk along the list of frames, whose step is measured on the frames that know their gain
well, and each frame's own gain is one observation of it, with its error. The best estimate of all of them together is
that of the Kalman filter run forward and backward (Rauch, Tung and Striebel 1965). No frame falls over a limit: one
with an error of 4 % leans a little on its neighbours, one without stars lies between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from zemosaic_phase3.photometry.star_gain import Gain, drawn_together

MAX_COMBINED_ERROR: Final = 0.10  # relative standard error, up to which a gain is better than none
FEWEST_KNOWN: Final = 0.5  # of the frames must know something of their gain, else nothing is said of the others
SMALLEST_STEP: Final = 0.003  # of the logarithm from frame to frame; steadier air is hardly ever seen
UNKNOWN: Final = 1e6  # variance that stands for no observation


def combined_gains(gains: Sequence[Gain], reference: int) -> list[Gain]:
    """Return the gains, those that stand on too few or too faint stars replaced by the best estimate there is.

    Parameters
    ----------
    gains : sequence of Gain
        Of the frames in the order of the session, the reference's 1 among them.
    reference : int

    Returns
    -------
    list of Gain
        Supported ones as they were; others with ``factor`` and ``error`` of the estimate, NaN and infinity where the
        session as a whole knows too little.
    """
    if all(gain.supported for gain in gains) or not gains[reference].supported:
        return list(gains)
    factor = np.stack([gain.factor for gain in gains])
    known = np.isfinite(factor) & (factor > 0.0)
    if np.count_nonzero(known.all(axis=1)) < max(2.0, FEWEST_KNOWN * len(gains)):
        return list(gains)
    level = np.log(np.where(known, factor, 1.0))
    variance = np.where(known, np.stack([gain.error for gain in gains]) ** 2, UNKNOWN)
    variance = np.clip(variance, 1e-8, UNKNOWN)
    step = _step_variance(level, variance, np.array([gain.supported for gain in gains]))
    smooth = [_smoothed(level[:, c], variance[:, c], step) for c in range(level.shape[1])]
    best, spread = np.stack([s[0] for s in smooth], axis=1), np.stack([s[1] for s in smooth], axis=1)
    result = []
    for i, gain in enumerate(gains):
        if gain.supported:
            result.append(gain)
            continue
        error = np.sqrt(spread[i])
        result.append(gain._replace(factor=drawn_together(np.exp(best[i]), error), error=error))
    return result


def usable(gain: Gain) -> bool:
    """Return whether a gain, measured or combined, is good enough to match a frame by."""
    return gain.supported or bool(np.all(gain.error <= MAX_COMBINED_ERROR) and np.all(np.isfinite(gain.factor)))


def _step_variance(level: np.ndarray, variance: np.ndarray, supported: np.ndarray) -> float:
    """Return the variance of the random walk's step, from neighbours that both know their gain well.

    ``level``, ``variance (N, C)``. The median of the squares withstands the few jumps at the edge of a cloud; 0.4549 is
    that of the square of a standard normal number.
    """
    both = supported[1:] & supported[:-1]
    if np.count_nonzero(both) < 3:
        both = np.ones(len(both), bool)
    steps = np.diff(level, axis=0)[both].mean(axis=1)
    noise = (variance[1:] + variance[:-1])[both].mean(axis=1) / level.shape[1]
    found = float(np.median(steps**2)) / 0.4549 - float(np.median(noise))
    return max(found, SMALLEST_STEP**2)


def _smoothed(level: np.ndarray, variance: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimates of a random walk and their variances, ``(N,)`` each, from observations with variances."""
    n = len(level)
    mean, spread = np.empty(n), np.empty(n)
    m, p = 0.0, UNKNOWN
    for i in range(n):
        p += step
        share = p / (p + variance[i])
        m, p = m + share * (level[i] - m), (1.0 - share) * p
        mean[i], spread[i] = m, p
    for i in range(n - 2, -1, -1):
        back = spread[i] / (spread[i] + step)
        mean[i] += back * (mean[i + 1] - mean[i])
        spread[i] += back**2 * (spread[i + 1] - (spread[i] + step))
    return mean, spread
