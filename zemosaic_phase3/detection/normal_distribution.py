"""The normal distribution and its inverse, inside kernels, to the last digits of float64."""

from __future__ import annotations

import math

from zemosaic_phase3.runtime.jit import kernel


@kernel
def normal_share(z: float) -> float:
    """Return the share of a normal distribution that lies below z sigmas."""
    return 0.5 * math.erfc(-z * math.sqrt(0.5))


@kernel
def normal_quantile(share: float) -> float:
    """Return the sigmas below which a share, above 0 and below 1, of a normal distribution lies.

    A formula good to 4.5e-4, two steps of Halley's method after it. Source: Abramowitz and Stegun, "Handbook of
    Mathematical Functions", 26.2.23.
    """
    tail = min(share, 1.0 - share)
    t = math.sqrt(-2.0 * math.log(tail))
    above = 2.515517 + t * (0.802853 + t * 0.010328)
    z = above / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))) - t  # of the lower tail
    for _ in range(2):
        step = (normal_share(z) - tail) * math.sqrt(2.0 * math.pi) * math.exp(0.5 * z * z)
        z -= step / (1.0 + 0.5 * z * step)
    return z if share <= 0.5 else -z
