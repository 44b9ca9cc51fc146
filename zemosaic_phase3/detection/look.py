"""What is seen of a frame before it is measured, in one look at all its pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Look(NamedTuple):
    """What one look at a frame tells.

    ``shows``: every channel has a valid sample, and not all are equal; ``may_have_filler``, ``may_have_floor``,
    ``may_be_clipped``: it takes a closer look to tell; ``highest (C,) float32``: the highest number of each channel,
    -infinity where there is none; ``lie_together (C,) bool``: enough pixels have it, side by side, so that it is the
    level that clips.
    """

    shows: bool
    may_have_filler: bool
    may_have_floor: bool
    may_be_clipped: bool
    highest: np.ndarray
    lie_together: np.ndarray


def look_at(frame: np.ndarray, *, is_mosaic: bool) -> Look:
    """Look at all pixels of a frame ``(H, W, C) float32``, NaN = invalid."""
    from zemosaic_phase3.detection import look_kernels

    highest, together = np.empty(frame.shape[2], np.float32), np.empty(frame.shape[2], np.bool_)
    shows, filler, floor, clipped = look_kernels.look(frame, 2 if is_mosaic else 1, highest, together)
    return Look(shows, filler, floor, clipped, highest, together)
