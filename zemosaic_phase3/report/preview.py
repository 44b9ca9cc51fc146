"""Pictures of linear images: the autostretch, a PNG writer without dependencies, before beside after.

Linear data are nearly black on a screen. The stretch is the one astronomers know as STF: black a little below the sky,
then a midtones transfer function that puts the sky at a fifth of full brightness. It is for looking only; nothing that
is measured or saved as data passes through here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from zemosaic_phase3.pipeline.outputs import PREVIEW_SIDE_PX
from zemosaic_phase3.report.png import write_png
from zemosaic_phase3.robust import MAD_TO_SIGMA

SEPARATOR_PX: Final = 4  # width of the line between the two halves of a comparison
SEPARATOR_GREY: Final = 255
STATISTICS_SAMPLES: Final = 1_000_000  # pixels that medians are taken of, at most


@dataclass(frozen=True)
class StretchLevels:
    """How one picture is stretched; arrays (C,) float64.

    ``black``, ``white``: levels that become 0 and 1, ADU. ``midtone``: balance m of the transfer function
    ``mtf(m, x) = (m - 1) x / ((2 m - 1) x - m)``, which maps 0, m, 1 to 0, 1/2, 1.
    """

    black: np.ndarray
    white: np.ndarray
    midtone: np.ndarray


def planes_of(image: np.ndarray) -> np.ndarray:
    """Return the image as (H, W, C) float32, C 1 or 3.

    Raises
    ------
    ValueError
        Not (H, W), (H, W, 1) or (H, W, 3), or empty.
    """
    data = np.asarray(image)
    if data.ndim == 2:
        data = data[..., None]
    if data.ndim != 3 or data.shape[2] not in (1, 3) or data.size == 0:
        raise ValueError(f"image of shape {np.shape(image)} is not (H, W) or (H, W, 3); move the channels last")
    return data.astype(np.float32, copy=False)


def _transfer(midtone: np.ndarray | float, x: np.ndarray | float) -> np.ndarray:
    """Midtones transfer function of x in [0, 1], midtone in (0, 1)."""
    return np.asarray((midtone - 1.0) * x / ((2.0 * midtone - 1.0) * x - midtone))


def _sky(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, sigma (1.4826 MAD) and maximum of the finite pixels of each channel; 0, 0, 0 where there are none."""
    step = max(1, int(np.sqrt(planes.shape[0] * planes.shape[1] / STATISTICS_SAMPLES)))
    figures = []
    for c in range(planes.shape[2]):
        plane = planes[..., c]
        finite = plane[np.isfinite(plane)]
        if finite.size == 0:
            figures.append((0.0, 0.0, 0.0))
            continue
        thin = planes[::step, ::step, c]
        thin = thin[np.isfinite(thin)] if step > 1 else finite
        sample = (thin if thin.size else finite).astype(np.float64)
        median = float(np.median(sample))
        sigma = MAD_TO_SIGMA * float(np.median(np.abs(sample - median)))
        # more than half of the pixels equal: the MAD says nothing, the standard deviation at least the scale
        figures.append((median, sigma if sigma > 0 else float(sample.std()), float(finite.max())))
    median_, sigma_, top = np.array(figures).T
    return median_, sigma_, top


def stretch_levels(
    image: np.ndarray, *, target_background: float = 0.2, clip_sigma: float = -2.8, linked: bool = False
) -> StretchLevels:
    """Find how to stretch a linear image.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3) float
        ADU; NaN and infinities are ignored.
    target_background : float
        Brightness of the sky's median in the picture, in (0, 1).
    clip_sigma : float
        Black point relative to the median, units of the sky's sigma; negative is below.
    linked : bool
        True: one curve for all channels, which keeps a colour cast of the sky. False: each channel has its own,
        which makes the sky grey.

    Raises
    ------
    ValueError
        Not an image, or ``target_background`` outside (0, 1).
    """
    if not 0.0 < target_background < 1.0:
        raise ValueError(f"target_background = {target_background!r} is outside (0, 1); 0.2 is usual")
    median, sigma, top = _sky(planes_of(image))
    if linked:
        median, sigma, top = np.full(median.size, median.mean()), np.full(sigma.size, sigma.mean()), top * 0 + top.max()
    return _levels(median, sigma, top, target_background, clip_sigma)


def _levels(
    median: np.ndarray, sigma: np.ndarray, top: np.ndarray, target_background: float, clip_sigma: float
) -> StretchLevels:
    black = median + clip_sigma * sigma
    span = top - black
    # a constant channel has no span; any white above it will do, its sky still becomes the target
    flat = span <= 0
    black = np.where(flat, median - 1.0, black)
    white = np.where(flat, median + 1.0, top)
    sky = np.clip((median - black) / (white - black), 1e-9, 1.0 - 1e-9)
    return StretchLevels(black, white, _transfer(target_background, sky))  # mtf(mtf(t, x), x) = t


def apply_stretch(image: np.ndarray, levels: StretchLevels) -> np.ndarray:
    """Return the picture, uint8 of the image's shape; invalid pixels (NaN, infinite) are black in all channels."""
    planes = planes_of(image)
    out = np.empty(planes.shape, np.uint8)
    invalid = ~np.isfinite(planes).all(axis=2)
    for c in range(planes.shape[2]):
        black, white, midtone = (float(v[c]) for v in (levels.black, levels.white, levels.midtone))
        x = np.where(invalid, np.float32(black), planes[..., c])
        x = np.clip((x - np.float32(black)) / np.float32(white - black), 0.0, 1.0)
        out[..., c] = np.rint(255.0 * np.clip(_transfer(midtone, x), 0.0, 1.0))
    return out[..., 0] if np.ndim(image) == 2 else out


def stretch(
    image: np.ndarray, *, target_background: float = 0.2, clip_sigma: float = -2.8, linked: bool = False
) -> np.ndarray:
    """Stretch a linear image for the screen; see :func:`stretch_levels` for the arguments.

    Returns
    -------
    ndarray uint8
        Same shape as ``image``; NaN becomes black, a constant image becomes ``target_background`` everywhere.
    """
    levels = stretch_levels(image, target_background=target_background, clip_sigma=clip_sigma, linked=linked)
    return apply_stretch(image, levels)


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Return float32 block means so that no side is longer than ``max_side``.

    A mean is NaN only where its block has no valid pixel. Blocks are square; a remainder smaller than a block at the
    far edges is left out.
    """
    planes = planes_of(image)
    height, width, channels = planes.shape
    factor = -(-max(height, width) // max_side)
    if factor == 1:
        return planes[..., 0] if np.ndim(image) == 2 else planes
    rows, columns = max(height // factor, 1), max(width // factor, 1)
    tall, wide = min(factor, height), min(factor, width)  # an image thinner than a block is one block thick
    cut = planes[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide, channels)
    valid = np.isfinite(cut)
    count = valid.sum(axis=(1, 3), dtype=np.float32)
    total = np.where(valid, cut, np.float32(0.0)).sum(axis=(1, 3))
    small = np.where(count > 0, total / np.maximum(count, 1.0), np.float32(np.nan)).astype(np.float32)
    return small[..., 0] if np.ndim(image) == 2 else small


def side_by_side(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Stretch two linear images of the same field alike and set them beside each other.

    The sky of ``before`` is shifted to the sky of ``after`` per channel (levels differ from frame to frame), nothing
    is scaled, and both pass through **one** curve with white and midtone from ``after`` and a black point below the
    noise of both: noise, stars and nebula are then shown at the same contrast on both sides.

    Parameters
    ----------
    before, after : ndarray (H, W) or (H, W, 3) float
        Left and right half, same shape; ADU.

    Returns
    -------
    ndarray uint8 (H, 2 W + 4) or (H, 2 W + 4, 3)

    Raises
    ------
    ValueError
        The shapes differ.
    """
    if np.shape(before) != np.shape(after):
        raise ValueError(f"before {np.shape(before)} and after {np.shape(after)} differ in shape; show the same field")
    median_before, sigma_before, _ = _sky(planes_of(before))
    median, sigma, top = _sky(planes_of(after))
    levels = _levels(median, np.maximum(sigma, sigma_before), top, 0.2, -2.8)
    shift = (median - median_before).astype(np.float32)
    matched = planes_of(before) + shift
    left = apply_stretch(matched if np.ndim(before) == 3 else matched[..., 0], levels)
    right = apply_stretch(after, levels)
    return _beside(left, right)


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    line = np.full((left.shape[0], SEPARATOR_PX, *left.shape[2:]), SEPARATOR_GREY, np.uint8)
    return np.concatenate([left, line, right], axis=1)


def save_png(
    image: np.ndarray,
    path: Path | str,
    *,
    max_side: int = PREVIEW_SIDE_PX,
    before: np.ndarray | None = None,
    flip_vertical: bool = False,
) -> Path:
    """Write a preview of a linear image, or a picture that is already uint8, as an 8-bit PNG.

    A linear image is shrunk by block means to at most ``max_side`` pixels a side, then stretched channel by channel.
    The file appears complete or not at all.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3)
        uint8: written as it is. Anything else: linear, ADU, NaN where invalid.
    path : path
        File to write, replaced if it exists.
    max_side : int
        Longest side of a linear image's preview.
    before : ndarray, optional
        Shown at the left of ``image`` as :func:`before_after_png` does.
    flip_vertical : bool
        False: array row 0 is the top of the picture, right for cameras that store from the top down (Seestar).
        True: row 0 is the bottom, the FITS convention of most viewers.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        The file cannot be written.
    ValueError
        Not an image, or ``max_side`` below 1.
    """
    if before is not None:
        return before_after_png(before, image, path, max_side=max_side, flip_vertical=flip_vertical)
    if max_side < 1:
        raise ValueError(f"max_side = {max_side!r} must be at least 1 pixel")
    picture = image if np.asarray(image).dtype == np.uint8 else stretch(shrink(image, max_side))
    planes_of(picture)  # refuse what is not an image before a file is made
    return write_png(picture, Path(path), flip_vertical)


def before_after_png(
    before: np.ndarray,
    after: np.ndarray,
    path: Path | str,
    *,
    max_side: int = PREVIEW_SIDE_PX,
    flip_vertical: bool = False,
) -> Path:
    """Write one frame and the master beside each other, stretched alike (:func:`side_by_side`).

    Both halves are cut to the same middle part so that the picture is at most ``max_side`` wide; they are never
    shrunk, because block means would hide the noise that the picture is there to show.

    Parameters
    ----------
    before, after : ndarray (H, W) or (H, W, 3) float
        A single frame on the master's grid, and the master; ADU.
    path, max_side, flip_vertical
        As for :func:`save_png`.

    Raises
    ------
    OutputError
        The file cannot be written.
    ValueError
        The shapes differ, or ``max_side`` is too small for two halves.
    """
    wide = (max_side - SEPARATOR_PX) // 2
    if wide < 1:
        raise ValueError(f"max_side = {max_side!r} leaves no room for two halves; use at least {SEPARATOR_PX + 2}")
    height, width = np.shape(after)[:2]
    rows, columns = min(height, max_side), min(width, wide)
    y, x = (height - rows) // 2, (width - columns) // 2
    whole = side_by_side(before, after)  # stretched before it is cut: a part may be all nebula, without sky to go by
    halves = whole[:, :width], whole[:, width + SEPARATOR_PX :]
    cut = [half[y : y + rows, x : x + columns] for half in halves]
    return write_png(_beside(*cut), Path(path), flip_vertical)
