"""The noise of frames from pixel to pixel: of stacks among them, and of a typical one beside the tile."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from zemosaic_phase3.engine.slab import frame_block
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.finish.noise import noise_rows, typical_noise
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.methods import InterpolationName
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.pipeline.scan import Scan
from zemosaic_phase3.records import FrameTable
from zemosaic_phase3.runtime.threads import parallel_map

logger = logging.getLogger("ZeMosaicWorker")

PLACES: Final = ((0.125, 0.375), (0.375, 0.875), (0.625, 0.125), (0.875, 0.625))  # between pixels, down and right


def noise_bands(source: FrameSource) -> list[np.ndarray]:
    """Read the bands of a frame that its noise is measured on, demosaiced: each (h, W) or (h, W, C) float32, ADU."""

    def band(rows: slice) -> np.ndarray:
        shape = (rows.stop - rows.start, *source.shape[1:])
        return frame_block(source, rows.start, rows.stop)[: math.prod(shape)].reshape(shape)

    return [band(rows) for rows in noise_rows(source.height, source.width)]


def measure_noise_of_stacks(group: Group, workers: int) -> int:
    """Measure anew the noise of all frames where some are stacks of different depth; return how many were.

    The variance of a frame's pixels holds its noise and what the sky shows: gradient, nebula, faint stars. In single
    exposures noise prevails, and the weights follow from it. A stack of 200 has a fourteenth of the noise and the same
    sky, so that one of 200 exposures and one of 57 seem alike. There the differences of pixels 4 apart tell, in which
    the sky cancels (``finish.noise``); they replace ``FrameStats.variance`` of every frame, so that all are measured
    alike. Frames that are all single exposures stay as they are, and cost nothing.
    """
    usable = [i for i in group.usable if group.scan(i).stats is not None]
    if max((group.scan(i).exposure.count for i in usable), default=1) < 2 or len(usable) < 2:
        return 0

    def measured(i: int) -> Scan:
        scan = group.scan(i)
        if scan.stats is None:
            return scan
        try:
            noise = np.array(typical_noise(noise_bands(group.source(i))))
        except FrameError as exc:  # whoever reads its pixels for the stack leaves it out
            logger.debug("%s", exc)
            return scan
        known = np.isfinite(noise) & (noise > 0.0)
        return replace(scan, stats=replace(scan.stats, variance=np.where(known, noise**2, scan.stats.variance)))

    for i, scan in zip(usable, parallel_map(measured, usable, workers), strict=True):
        group.rows[i].scan = scan
    return len(usable)


def noise_once_moved(bands: Sequence[np.ndarray], interpolation: InterpolationName) -> list[float]:
    """Return the noise of a frame as the stack sees it: interpolated at places between its pixels.

    Interpolation smooths, and a stack compared with a frame that was not interpolated seems calmer than its number of
    frames allows. Registered frames lie at any place, so that the variance is averaged over a few.

    Parameters
    ----------
    bands : sequence of ndarray (h, W) or (h, W, C) float32
        From :func:`noise_bands`, ADU.
    interpolation : InterpolationName

    Returns
    -------
    list of float
        One standard deviation per channel, ADU.
    """
    from zemosaic_phase3.resample.interpolation import PHASES, weight_table

    table = weight_table(interpolation)
    variances = []
    for down, right in PLACES:
        rows, columns = (table[round(part * PHASES)] for part in (down, right))
        moved = [_between(_between(band, rows).swapaxes(0, 1), columns).swapaxes(0, 1) for band in bands]
        variances.append(np.square(typical_noise(moved)))
    return np.sqrt(np.mean(variances, axis=0)).tolist()


def _between(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Return an image interpolated between its rows, without those at the edges."""
    last = len(image) - len(taps) + 1
    total = taps[0] * image[:last]
    for k in range(1, len(taps)):
        total += taps[k] * image[k : last + k]
    return np.asarray(total)


def _sigmas(group: Group, table: FrameTable) -> np.ndarray | None:
    """Return the noise of the frames stacked at the levels of the tile, ``(N, C)`` ADU; None: not measured."""
    scans = {row.name: row.scan for row in group.rows}
    sigmas = []
    for name, scale in zip(table.names, table.scale, strict=True):
        scan = scans[name]
        if scan is None or scan.stats is None:
            return None
        sigmas.append(np.abs(scale) * np.sqrt(scan.stats.variance))
    return np.stack(sigmas)


def factor_expected(group: Group, table: FrameTable) -> list[float]:
    """Return by how much a mean of these frames with their weights is expected to be calmer than a typical one.

    Per channel. The square root of the number of frames only where all have one noise and one weight; sharp frames with
    more weight and hazy ones that add little make it less. The noise of a frame is the spread of its pixels, in which a
    gradient counts too: where gradients are as strong as the noise, the figure may be a tenth off.
    """
    sigmas = _sigmas(group, table)
    if sigmas is None:
        return [math.sqrt(len(table.names))] * table.scale.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.sqrt(np.sum((table.weight * sigmas) ** 2, axis=0)) / np.sum(table.weight, axis=0)
        return np.asarray(np.median(sigmas, axis=0) / mean).tolist()


def typical_noise_of_frame(noise_of_reference: list[float], group: Group, table: FrameTable) -> list[float]:
    """Return the noise of a typical frame at the levels of the tile, to be compared with that of the tile.

    Both are measured alike, by the differences of pixels (``finish.noise``), which takes a demosaiced frame: that is
    done for the reference alone. How much noisier or calmer the others are is known from their levels.

    Parameters
    ----------
    noise_of_reference : list of float, length C
        ADU.
    group : Group
        With the levels of the frames.
    table : FrameTable
        What the levels of the frames were multiplied by.

    Returns
    -------
    list of float, length C
        ADU: the noise of the reference, times the median over the frames stacked of (scale x sigma), over that of the
        reference; the noise of the reference itself where levels were not measured.
    """
    sigmas = _sigmas(group, table)
    if sigmas is None:
        return noise_of_reference
    reference = group.rows[group.reference].scan
    if reference is None or reference.stats is None:
        return noise_of_reference
    known = np.array(noise_of_reference)
    with np.errstate(invalid="ignore", divide="ignore"):
        matched = known * (np.median(sigmas, axis=0) / np.sqrt(reference.stats.variance))
    return np.where(np.isfinite(matched), matched, known).tolist()
