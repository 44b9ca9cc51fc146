"""What robust statistics of several wings share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

MAD_TO_SIGMA: Final = 1.4826  # standard deviation of a Gaussian over its median absolute deviation
FLOORED: Final = 0.05  # of the samples, that have the lowest number where what lay below was cut off
_UPPER: Final = ((0.5, 0.6915), (1.0, 0.8413), (1.5, 0.9332))  # sigmas above the mean, and the share below them


def median_of(values: np.ndarray) -> float:
    """Return the median of numbers ``(n,)``, none of them NaN, n at least 1, as ``numpy.median`` would.

    That one looks for NaN too, and takes 30 microseconds to begin with: much, of the few residuals of a fit.
    """
    half = values.size // 2
    if values.size % 2:
        return float(np.partition(values, half)[half])
    parted = np.partition(values, (half - 1, half))
    return float((parted[half - 1] + parted[half]) / parted.dtype.type(2.0))


def sky_above_floor(at: Callable[[int], float], size: int, floor: float) -> tuple[float, float] | None:
    """Return level and noise (ADU) of samples whose low side was cut off, from the high one; None if it does not tell.

    Parameters
    ----------
    at : callable
        Returns sample i in ascending order, ADU.
    size : int
        Samples.
    floor : float
        Lowest number, ADU, that those cut off have.

    Notes
    -----
    From the quantiles at 0.5, 1 and 1.5 sigma of a Gaussian. Three that differ are asked for: numbers in steps as wide
    as the noise have many samples on the lowest too, and nothing was cut off.
    """
    values = [at(int(share * (size - 1))) for _, share in _UPPER]
    if not values[0] < values[1] < values[2]:
        return None
    first = 0 if values[0] > floor else 1
    if not values[first] > floor:
        return None
    noise = 2.0 * (values[first + 1] - values[first])
    return values[first + 1] - _UPPER[first + 1][0] * noise, noise
