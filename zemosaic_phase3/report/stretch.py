"""Linear images made visible: the autostretch, and block means.

Linear data are nearly black on a screen. The stretch is the one astronomers know as STF: black a little below the sky,
then a midtones transfer function that puts the sky at a fifth of full brightness. It is for looking only; nothing that
is measured or saved as data passes through here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from zemosaic_phase3.robust import MAD_TO_SIGMA

StretchName = Literal["unlinked", "linked", "neutral"]
"""How colours share the curve. "unlinked": each has its own, which makes the sky grey and balances colours that no one
calibrated. "linked": one for all, which shows the cast of the sky. "neutral": one for all, after the sky of each was
brought to one level, which keeps the colours of stars and nebulae as they are."""
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


def sky_levels(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    image: np.ndarray, *, target_background: float = 0.2, clip_sigma: float = -2.8, colours: StretchName = "unlinked"
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
    colours : StretchName
        How the channels share the curve.

    Raises
    ------
    ValueError
        Not an image, ``target_background`` outside (0, 1), or another name.
    """
    if not 0.0 < target_background < 1.0:
        raise ValueError(f"target_background = {target_background!r} is outside (0, 1); 0.2 is usual")
    if colours not in get_args(StretchName):
        raise ValueError(f"colours = {colours!r}; choose one of: {', '.join(get_args(StretchName))}")
    median, sigma, top = sky_levels(planes_of(image))
    if colours != "unlinked":
        above = (top - median).max()
        if colours == "linked":
            median = np.full(median.size, median.mean())
            above = top.max() - median
        sigma, top = np.full(sigma.size, sigma.mean()), median + above
    return curve(median, sigma, top, target_background, clip_sigma)


def curve(
    median: np.ndarray, sigma: np.ndarray, top: np.ndarray, target_background: float, clip_sigma: float
) -> StretchLevels:
    """Return the curve for the sky's median and sigma and the maximum of each channel, ADU."""
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
    image: np.ndarray, *, target_background: float = 0.2, clip_sigma: float = -2.8, colours: StretchName = "unlinked"
) -> np.ndarray:
    """Stretch a linear image for the screen; see :func:`stretch_levels` for the arguments.

    Returns
    -------
    ndarray uint8
        Same shape as ``image``; NaN becomes black, a constant image becomes ``target_background`` everywhere.
    """
    levels = stretch_levels(image, target_background=target_background, clip_sigma=clip_sigma, colours=colours)
    return apply_stretch(image, levels)


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Return float32 block means so that no side is longer than ``max_side``, px; see :func:`block_means`."""
    return block_means(image, -(-max(np.shape(image)[:2]) // max_side))


def block_means(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of blocks of ``factor`` x ``factor`` pixels, float32.

    A mean is NaN only where its block has no valid pixel. A remainder smaller than a block at the far edges is left
    out.
    """
    planes = planes_of(image)
    height, width, channels = planes.shape
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
