"""What the levels of a frame are: median, deviation, percentiles and clipped variance of each channel.

Levels are measured on the frame's own pixels, before registration. Samples are sorted into distinct levels and how
often each occurs, which is all that any of these needs: a camera's 130,000 samples have some thousand levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from zemosaic_phase3.detection.planes import Planes, planes_of
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.runtime.workspace import Workspace

MAX_SAMPLES: Final = 1 << 17  # pixels per channel that are looked at


def no_levels(channels: int) -> FrameStats:
    """Return the levels of a frame that nobody measured: all 0."""
    median, mad_sigma, p25, p90, variance = (np.zeros(channels) for _ in range(5))
    return FrameStats(median=median, mad_sigma=mad_sigma, p25=p25, p90=p90, variance=variance, luminance_p25=0.0)


def measure_levels(
    view: np.ndarray, *, quantum: Sequence[float] | None = None, max_samples: int | None = MAX_SAMPLES
) -> FrameStats:
    """Measure the levels of one frame.

    Parameters
    ----------
    view : ndarray (h, w, C) float32, ADU
        NaN and infinity are left out.
    quantum : sequence of float, optional
        Step between levels of each channel as stored, from :func:`photometry.measure.quanta`; quantised samples are
        then spread over the step that is found in them, and a sky whose low side was cut off is measured from its high
        side. None: every sample counts as it is.
    max_samples : int or None
        Look at every k-th row, so that at most about this many pixels count; None looks at all.

    Returns
    -------
    FrameStats
        All NaN for a channel without a valid pixel.

    Notes
    -----
    The median and MAD of a camera's integers are integers too, good to half a step; a scale taken from a MAD of 21
    would be wrong by 2 %. Samples of one level are assumed to be spread evenly over it: the median of grouped data (any
    textbook; Kenney and Keeping, "Mathematics of Statistics", part 1).
    """
    frame = np.ascontiguousarray(view, np.float32)
    return levels_of_planes(frame, planes_of(frame.shape), quantum=quantum, max_samples=max_samples)


def levels_of_planes(
    frame: np.ndarray,
    planes: Planes,
    *,
    quantum: Sequence[float] | None = None,
    max_samples: int | None = MAX_SAMPLES,
    workspace: Workspace | None = None,
) -> FrameStats:
    """Measure the levels of the planes of a frame (H, W, C) float32 where they lie; see :func:`measure_levels`."""
    from zemosaic_phase3.photometry import level_kernels as kernels

    step = 1 if max_samples is None else max(1, -(-planes.height * planes.width // max_samples))
    found = np.empty((len(planes.table), kernels.COLUMNS))
    steps = np.zeros(len(planes.table)) if quantum is None else np.array(quantum, np.float64)
    sides = (planes.height, planes.width)
    space, size = workspace or Workspace(), -(-planes.height // step) * planes.width
    luminance = kernels.frame_levels(
        frame, planes.table, sides, step, steps, quantum is not None, space.array("samples", (2, size), np.float32),
        space.array("levels", (4, size), np.float64), found,
    )  # fmt: skip
    median, mad_sigma, p25, p90, variance = found.T.copy()
    return FrameStats(
        median=median, mad_sigma=mad_sigma, p25=p25, p90=p90, variance=variance,
        luminance_p25=luminance if len(found) == 3 else float(p25[0]),
    )  # fmt: skip
