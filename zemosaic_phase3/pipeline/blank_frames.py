"""Frames that show nothing: every pixel equal, or none valid in a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.photometry.measure import cell_view
from zemosaic_phase3.pipeline.samples import refuse_rounded_level

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import FrameSource

LOOK_ROWS: Final = 16  # of the middle of a frame: nearly always enough to see that it is not blank


def middle_rows(source: FrameSource) -> np.ndarray:
    """Read ``LOOK_ROWS`` rows from the middle of a frame, as :func:`photometry.measure.shown` gives them."""
    first = source.height // 4 * 2  # a whole cell of a mosaic
    pixels = source.read_rows(first, min(first + LOOK_ROWS, source.height))
    return cell_view(pixels, source.cfa) if source.cfa is not None else pixels.reshape(*pixels.shape[:2], -1)


def shows_something(view: np.ndarray) -> bool:
    """Return True if every channel has a valid pixel, and not all of them are equal in every channel."""
    channels = [plane[np.isfinite(plane)] for plane in np.moveaxis(view, -1, 0)]
    return all(valid.size for valid in channels) and any(valid.min() < valid.max() for valid in channels)


def refuse_blank(source: FrameSource, view: np.ndarray) -> None:
    """Raise FrameError for a frame, seen whole, that is blank or has no valid pixel in a channel."""
    if shows_something(view[view.shape[0] // 2 :][:LOOK_ROWS]) or shows_something(view):
        return
    valid = [plane[np.isfinite(plane)] for plane in np.moveaxis(view, -1, 0)]
    if all(values.size for values in valid):
        refuse_rounded_level(source, max(float(np.abs(values[0])) for values in valid), 0.0)
    if not all(values.size for values in valid):
        raise FrameError(source.name, "no valid pixel in at least one channel (all NaN); leave it out")
    levels = ", ".join(f"{values[0]:g}" for values in valid)
    raise FrameError(source.name, f"blank frame: every pixel is {levels}; leave it out")
