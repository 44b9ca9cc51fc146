"""The map of radial weights, under the name that ZeMosaic calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def make_radial_weight_map(
    height: int,
    width: int,
    feather_fraction: float = 0.8,
    shape_power: float = 2.0,
    min_weight_floor: float = 0.05,
    progress_callback: Callable[..., None] | None = None,
) -> np.ndarray:
    """Return weights that fall from the centre of a frame to its corners.

    ``w = max(cos(pi/2 clip(d / feather, 0, 1)) ** power, floor)`` with d the distance from the centre
    ((H - 1)/2, (W - 1)/2), in units of half the diagonal, hypot(H, W)/2.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    feather_fraction : float
        Distance at which the weight reaches its floor; taken into [0.1, 1].
    shape_power : float
        Steepness; a negative one counts as 0 (no fall).
    min_weight_floor : float
        Least weight; taken into [0, 0.99].
    progress_callback : callable, optional
        Accepted for existing calls; nothing here takes long.

    Returns
    -------
    ndarray (height, width) float32, dimensionless, in [0, 1]

    Raises
    ------
    ValueError
        A side below 1 pixel, or a number that is not finite.

    Notes
    -----
    The limits on feather and floor are those of ZeMosaic's map, found from its recorded numbers.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a weight map of {height} x {width} pixels is impossible; both sides must be at least 1")
    if not np.all(np.isfinite([feather_fraction, shape_power, min_weight_floor])):
        given = (feather_fraction, shape_power, min_weight_floor)
        raise ValueError(f"feather, power, floor = {given} must be finite")
    feather = np.clip(feather_fraction, 0.1, 1.0)
    floor = np.clip(min_weight_floor, 0.0, 0.99)
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    distance = np.hypot(y, x) / (0.5 * np.hypot(height, width))
    weight = np.cos(np.pi / 2 * np.clip(distance / feather, 0.0, 1.0)) ** max(shape_power, 0.0)
    return np.maximum(weight, floor).astype(np.float32)
