"""What robust statistics of several wings share."""

from typing import Final

MAD_TO_SIGMA: Final = 1.4826  # standard deviation of a Gaussian over its median absolute deviation
