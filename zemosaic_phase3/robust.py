"""What robust statistics of several wings share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MAD_TO_SIGMA: Final = 1.4826  # standard deviation of a Gaussian over its median absolute deviation
FLOORED: Final = 0.05  # of the samples, that have the lowest number where what lay below was cut off
_UPPER: Final = ((0.5, 0.6915), (1.0, 0.8413), (1.5, 0.9332))  # sigmas above the mean, and the share below them


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
