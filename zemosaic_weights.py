"""What a frame's levels are, and the table of scale, offset and weight that the stack applies to every frame.

Levels are measured on the frame's own pixels, before registration. A Bayer frame is measured on its 2x2 cells (red,
mean of
the two greens, blue), so that no demosaicing correlates the noise. Frames of more than ``MAX_SAMPLES`` pixels are
measured on every k-th row; the median of a quarter of a million pixels is good to 0.0025 of the noise of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_spec import FrameStats, FrameTable, NoFramesError, StackSpec

if TYPE_CHECKING:
    from zemosaic_utils import FrameSource

MAX_SAMPLES: Final = 1 << 18  # pixels per channel that are looked at
MAD_TO_SIGMA: Final = 1.4826  # deviation of a Gaussian in units of its median absolute deviation
MIN_SPAN: Final = 1e-5  # ADU; a percentile span below this has no slope to match
LUMINANCE: Final = (0.299, 0.587, 0.114)  # Rec. 601

# --------------------------------------------------------------------------- one frame


def measuring_view(source: FrameSource) -> np.ndarray:
    """Read a whole frame as it is measured: ``(h, w, C) float32``, ADU, NaN where invalid.

    For a Bayer mosaic the 2x2 cells, so h = H // 2 and w = W // 2: red, mean green, blue. Otherwise the pixels.
    """
    pixels = source.read_rows(0, source.height)
    if source.cfa is not None:
        return cell_view(pixels, source.cfa)
    view = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return np.ascontiguousarray(view, dtype=np.float32)


def cell_view(mosaic: np.ndarray, cfa: str) -> np.ndarray:
    """Return the 2x2 cells of a mosaic ``(H, W)`` as ``(H // 2, W // 2, 3) float32``: red, mean of the greens, blue.

    The mean of the two greens is centred on the cell, at (2 x + 0.5, 2 y + 0.5) of the mosaic.
    """
    h, w = mosaic.shape[0] // 2, mosaic.shape[1] // 2
    view = np.empty((h, w, 3), np.float32)
    corner = {(row, column): mosaic[row : 2 * h : 2, column : 2 * w : 2] for row in (0, 1) for column in (0, 1)}
    colours = dict(zip(((0, 0), (0, 1), (1, 0), (1, 1)), cfa, strict=True))
    greens = [place for place, colour in colours.items() if colour == "G"]
    view[:, :, 0] = next(corner[place] for place, colour in colours.items() if colour == "R")
    view[:, :, 2] = next(corner[place] for place, colour in colours.items() if colour == "B")
    np.add(corner[greens[0]], corner[greens[1]], out=view[:, :, 1], dtype=np.float32)
    view[:, :, 1] *= np.float32(0.5)
    return view


def quanta(source: FrameSource) -> tuple[float, ...]:
    """Return the step between levels of each channel of :func:`measuring_view`, ADU; 0 where they are continuous."""
    if source.dtype != np.uint16:
        return (0.0,) * source.channels
    return (1.0, 0.5, 1.0) if source.cfa is not None else (1.0,) * source.channels


def _ungrouped(ordered: np.ndarray, quantum: float) -> np.ndarray:
    """Spread equal levels of sorted, quantised samples evenly over their step.

    The median and MAD of a camera's integers are integers too, good to half a step; a scale taken from a MAD of 21
    would be wrong by 2 %. Samples of one level are assumed to be spread evenly over it: the median of grouped data (any
    textbook; Kenney and Keeping, "Mathematics of Statistics", part 1).
    """
    if quantum == 0.0:
        return ordered
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    counts = np.diff(np.append(starts, ordered.size))
    rank = np.arange(ordered.size) - np.repeat(starts, counts)
    return ordered + quantum * ((rank + 0.5) / np.repeat(counts, counts) - 0.5)


def _percentile(ordered: np.ndarray, percent: float) -> float:
    """Linear-interpolated percentile of sorted samples."""
    at = percent / 100.0 * (ordered.size - 1)
    k = min(int(at), ordered.size - 2) if ordered.size > 1 else 0
    low, high = float(ordered[k]), float(ordered[min(k + 1, ordered.size - 1)])
    return low + (at - k) * (high - low)


def clipped_variance(ordered: np.ndarray, sigma: float = 3.0, rounds: int = 5) -> float:
    """Return the population variance of sorted samples after median-centred sigma clipping, ADU^2.

    Parameters
    ----------
    ordered : ndarray (n,) float32
        Valid samples, ascending.
    sigma : float
        Limit on either side, units of the population standard deviation.
    rounds : int
        Most rounds made.
    """
    first, last = 0, ordered.size
    variance = float("nan")
    for r in range(rounds + 1):
        kept = ordered[first:last]
        if kept.size == 0:
            return float("nan")
        variance = float(np.var(kept, dtype=np.float64))
        if r == rounds:
            break
        middle, reach = _percentile(kept, 50.0), sigma * variance**0.5
        a = first + int(np.searchsorted(kept, middle - reach, side="left"))
        b = first + int(np.searchsorted(kept, middle + reach, side="right"))
        if (a, b) == (first, last):
            break
        first, last = a, b
    return variance


def measure_levels(
    view: np.ndarray, *, quantum: Sequence[float] | None = None, max_samples: int | None = MAX_SAMPLES
) -> FrameStats:
    """Measure the levels of one frame.

    Parameters
    ----------
    view : ndarray (h, w, C) float32, ADU
        NaN and infinity are left out.
    quantum : sequence of float, optional
        Step between levels of each channel, from :func:`quanta`; None: continuous.
    max_samples : int or None
        Look at every k-th row, so that at most about this many pixels count; None looks at all.

    Returns
    -------
    FrameStats
        All NaN for a channel without a valid pixel.
    """
    h, w, channels = view.shape
    step = 1 if max_samples is None else max(1, -(-h * w // max_samples))
    rows = view[::step]
    names = ("median", "mad_sigma", "p25", "p90", "variance")
    levels = {name: np.full(channels, np.nan) for name in names}
    for c in range(channels):
        samples = rows[:, :, c].ravel()
        ordered = np.sort(samples[np.isfinite(samples)])
        if ordered.size == 0:
            continue
        levels["variance"][c] = clipped_variance(ordered)
        ordered = _ungrouped(ordered, quantum[c] if quantum is not None else 0.0)
        median = _percentile(ordered, 50.0)
        levels["median"][c] = median
        levels["mad_sigma"][c] = MAD_TO_SIGMA * float(np.median(np.abs(ordered - np.float64(median))))
        levels["p25"][c] = _percentile(ordered, 25.0)
        levels["p90"][c] = _percentile(ordered, 90.0)
    return FrameStats(luminance_p25=_luminance_p25(rows), **levels)


def _luminance_p25(rows: np.ndarray) -> float:
    luminance = rows @ np.asarray(LUMINANCE, np.float32) if rows.shape[2] == 3 else rows[:, :, 0]
    valid = luminance[np.isfinite(luminance)]
    return float(np.percentile(valid, 25.0)) if valid.size else float("nan")


# --------------------------------------------------------------------------- all frames


def _linear_fit(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset that bring percentiles 25 and 90 onto the reference's; only an offset where a span vanishes."""
    span, wanted = stats.p90 - stats.p25, reference.p90 - reference.p25
    flat = (np.abs(span) < MIN_SPAN) | (np.abs(wanted) < MIN_SPAN)
    scale = np.where(flat, 1.0, wanted / np.where(flat, 1.0, span))
    return scale, reference.p25 - scale * stats.p25


def _sky_mean(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    """One offset for all channels, from the 25th percentile of luminance."""
    shift = reference.luminance_p25 - stats.luminance_p25
    return np.ones_like(stats.median), np.full_like(stats.median, shift)


def _additive_scaling(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    """Scale by 1.4826 MAD, then shift the median, per channel."""
    flat = (stats.mad_sigma < MIN_SPAN) | (reference.mad_sigma < MIN_SPAN)
    scale = np.where(flat, 1.0, reference.mad_sigma / np.where(flat, 1.0, stats.mad_sigma))
    return scale, reference.median - scale * stats.median


def _unchanged(stats: FrameStats, _reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    return np.ones_like(stats.median), np.zeros_like(stats.median)


_NORMALISATIONS: Final = {
    "none": _unchanged,
    "linear_fit": _linear_fit,
    "sky_mean": _sky_mean,
    "additive_scaling": _additive_scaling,
}


def normalisation(spec: StackSpec, stats: Sequence[FrameStats], reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of every frame, two ``(N, C) float64`` arrays; offset in ADU."""
    pairs = [_NORMALISATIONS[spec.normalize](s, stats[reference]) for s in stats]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def noise_variance_weights(variance: np.ndarray) -> np.ndarray:
    """``min(v) / v`` over all frames and channels, ``(N, C) float64``; NaN for a frame that cannot be measured.

    Only the ratio between frames of one channel enters a mean. A frame is not measurable when a variance is not finite,
    or is zero while others are not (a constant frame has no noise, but no sky either). All zero: equal weights.
    """
    if (variance == 0.0).all():
        return np.ones_like(variance)
    usable = np.isfinite(variance) & (variance > 0.0)
    smallest = variance[usable].min() if usable.any() else np.nan
    return np.where(usable.all(axis=1)[:, None], smallest / np.where(usable, variance, np.nan), np.nan)


def build_frame_table(
    names: Sequence[str],
    transforms: Sequence[np.ndarray],
    stats: Sequence[FrameStats],
    spec: StackSpec,
    reference: int = 0,
) -> tuple[FrameTable, list[int], list[tuple[str, str]]]:
    """Compute scale, offset and weight of every frame.

    Parameters
    ----------
    names, transforms, stats : sequences of length N
        Name, (3, 3) map from reference to frame pixels, and levels of each frame.
    spec : StackSpec
    reference : int
        Frame the others are normalised to.

    Returns
    -------
    table : FrameTable
        Rows of the frames that can be stacked.
    used : list of int
        Their positions among the frames given.
    dropped : list of (name, reason)
        Frames that could not be measured.

    Raises
    ------
    NoFramesError
        None could be measured.
    """
    channels = stats[0].median.size
    measured = spec.normalize != "none" or spec.weight != "none"
    weight = np.ones((len(names), channels))
    scale, offset = normalisation(spec, stats, reference)
    notes: list[str] = []
    if spec.weight == "noise_variance":
        variance = np.stack([s.variance for s in stats]) * scale**2
        weight = noise_variance_weights(variance)
    if spec.combine != "mean" and spec.weight != "none":
        notes.append(f"weights ({spec.weight}) do not apply to combine = {spec.combine}; they were not used")
    good = np.isfinite(scale).all(axis=1) & np.isfinite(offset).all(axis=1) & np.isfinite(weight).all(axis=1)
    used = [i for i in range(len(names)) if good[i] or not measured]
    dropped = [
        (names[i], "its levels or its noise could not be measured (blank, constant or without valid pixels)")
        for i in range(len(names))
        if i not in set(used)
    ]
    if not used:
        raise NoFramesError(f"none of {len(names)} frames could be measured: all are blank or constant")
    table = FrameTable(
        names=[names[i] for i in used],
        transform=np.stack([transforms[i] for i in used]),
        scale=scale[used],
        offset=offset[used],
        weight=weight[used],
        weight_method=spec.weight if spec.combine == "mean" else "none",
        notes=notes,
    )
    return table, used, dropped
