"""Defective photosites learned from the lights themselves: what stands still on the sensor and is narrower than a star.

Two things stand still on a sensor: its defects, and, where nothing dithers and the mount tracks well, the stars. A star
lights the photosites around its brightest one too, however sharp it is; a hot or dead photosite does not. So a
photosite is defective if it stands out from its own colour in most frames, and the four beside it provably do not.

The method is that of this library. Siril ("Cosmetic correction") and PixInsight (CosmeticCorrection, "auto detect")
compare with neighbours in a single frame, at limits a user sets; they cannot tell a sharp star from a hot photosite.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from zemosaic_phase3.calibrate.cosmetic import DefectMap
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.robust import MAD_TO_SIGMA
from zemosaic_phase3.runtime.threads import parallel_map

logger = logging.getLogger("ZeMosaicWorker")

MOST_FRAMES: Final = 25  # lights that are looked at, spread over the session
FEW_FRAMES: Final = 64  # of which all are chosen from
FEWEST_FRAMES: Final = 5  # with fewer nothing is learned
STANDS_OUT: Final = 2.2  # sigma of the difference from the neighbours, in more than half of the frames
SHARE: Final = 0.10  # of a defect's excess that the photosites beside it stay below; of a star of 1.3 px: 0.28
SURE_SHARE: Final = 0.14  # and below which they stay with a few errors added; more where all stars are wider:
STAR_SHARE: Final = 0.5  # of what the sharper stars of the session share
MOST_SHARE: Final = 0.3
BRIGHT: Final = 30.0  # sigma of stars that tell how sharp the session is
FEWEST_STARS: Final = 20  # of them
DOUBT: Final = 1.5  # errors of the share that are taken from it before it is compared with SHARE
SURE: Final = 3.5  # errors of the share that are added
MOST_DEFECTS: Final = 0.02  # of all photosites; more are no defects but, for example, a mosaic that no card declares
LINE_SIGMAS: Final = 6.0  # scatter of all columns (rows) that a bad one exceeds
LINE_NOISE: Final = 0.4  # and sigmas of a sample
LINE_FRAMES: Final = 9  # about as many of the lights tell the levels of columns and rows
LINE_SAMPLES: Final = 96  # rows of each colour that a column's level is taken from
BAND: Final = 64  # rows worked on at a time, so that they stay in the processor's cache
AT_ONCE: Final = 10_000  # candidates: 25 MB of samples around them
CLUSTER_ROUNDS: Final = 2  # looking again beside what was found

RING: Final = ((-2, -2), (-2, 0), (-2, 2), (0, -2), (0, 2), (2, -2), (2, 0), (2, 2))
BESIDE: Final = ((0, 1), (0, -1), (1, 0), (-1, 0))
BESIDE_RING_X: Final = ((0, 3), (0, -3), (2, 3), (2, -3), (-2, 3), (-2, -3))  # colour of the two beside in the row
BESIDE_RING_Y: Final = tuple((dx, dy) for dy, dx in BESIDE_RING_X)


@dataclass(frozen=True)
class _Look:
    """What one frame shows: places that stand out, noise of each colour of the cell, levels of columns and rows."""

    hot: np.ndarray
    cold: np.ndarray
    sigma: np.ndarray  # (step, step)
    columns: np.ndarray  # (step, W), row parity first
    rows: np.ndarray  # (step, H), column parity first


def chosen_frames(count: int, most: int = MOST_FRAMES) -> list[int]:
    """Return which of so many frames are looked at: at most ``most``, spread evenly.

    Of many, over the first power of two: frames of a further night leave the choice, and so the map and all that was
    measured with it, as they were.
    """
    count = count if count <= FEW_FRAMES else 1 << (count.bit_length() - 1)
    return sorted({round(k) for k in np.linspace(0, count - 1, min(most, count))})


def learn_defects(sources: Sequence[FrameSource], workers: int = 1) -> DefectMap | None:
    """Find the photosites, columns and rows that stand out on the sensor in most of a few frames.

    Parameters
    ----------
    sources : sequence of FrameSource
        Frames of one sensor as it stores them: grey or mosaics, all of one size and pattern.
    workers : int
        Threads.

    Returns
    -------
    DefectMap or None
        None where nothing was found, where too few frames can be read, or where more stands out than defects do.

    Notes
    -----
    Of a sample c, its 8 neighbours at 2 pixels (same colour on any sensor) and the four samples beside it, each with 6
    samples of its own colour at 3 pixels around: A = c - median of 8; B = mean of the middle two of the four
    differences from the lower part of their 6. Medians over the frames decide: A beyond 2.2 sigma, B not above 0.10 A,
    and with 3.5 times its error below 0.14 A, or below half of what the sharper stars of these frames share, up to
    0.30 A. Of a star of 1.3 px FWHM in the middle of a photosite B is 0.28 A, of a wider one more.
    """
    every = max(1, len(sources) // LINE_FRAMES)
    asked = [(source, k % every == 0) for k, source in enumerate(sources)]
    looks = [look for look in parallel_map(_look_or_none, asked, workers) if look is not None]
    if len(looks) < FEWEST_FRAMES:
        return None
    height, width = sources[0].height, sources[0].width
    step = 2 if sources[0].cfa else 1
    candidates = [_seen_often([getattr(look, kind) for look in looks], height * width) for kind in ("hot", "cold")]
    count = sum(map(len, candidates))
    if count > 2 * MOST_DEFECTS * height * width:
        logger.info("%d photosites stand out: no defects of a sensor", count)
        return None
    defect = np.zeros((height, width), bool)
    noise = np.median([look.sigma for look in looks], axis=0)
    sigma = float(np.mean(noise))
    if count:
        shown = [(source, look.hot) for source, look in zip(sources, looks, strict=False)][:: max(1, len(looks) // 2)]
        sure = _sure_share(shown, (height, width), sigma) if len(looks) == len(sources) else SURE_SHARE
        _confirm(defect, candidates[0], candidates[1], sources, noise, sure, workers)
    if np.count_nonzero(defect) > MOST_DEFECTS * height * width:
        logger.info("%d photosites stand out: no defects of a sensor", np.count_nonzero(defect))
        return None
    columns = _bad_lines([look.columns for look in looks if look.columns.size], sigma, step)
    rows = _bad_lines([look.rows for look in looks if look.rows.size], sigma, step)
    defect[:, columns] = True
    defect[rows, :] = True
    return DefectMap(defect, step, len(columns), len(rows)) if defect.any() else None


def outlying_photosites(image: np.ndarray, step: int, limit: float = 8.0) -> np.ndarray:
    """Return where a master dark stands out from its own colour by more than ``limit`` sigma, ``(H, W) bool``."""
    found = np.zeros(image.shape, bool)
    for a in range(step):
        for b in range(step):
            plane = np.ascontiguousarray(image[a::step, b::step], np.float32)
            low, high = _middle_two(np.pad(plane, 1, mode="reflect"), 0, plane.shape[0])
            difference = plane - (low + high) * np.float32(0.5)
            sigma = _sigma(difference[np.isfinite(difference)])
            if sigma > 0.0:
                found[a::step, b::step] = np.abs(difference) > limit * sigma
    return found


def _look_or_none(asked: tuple[FrameSource, bool]) -> _Look | None:
    try:
        return _look(*asked)
    except FrameError as exc:  # measuring it will say what is wrong
        logger.debug("no defects are learned from it: %s", exc)
        return None


def _look(source: FrameSource, with_lines: bool) -> _Look | None:  # noqa: FBT001 - a pair of a map
    """Look over one frame, and at the levels of its columns and rows where asked; None where it is blank."""
    step = 2 if source.cfa else 1
    pixels = source.read_rows(0, source.height)
    hot: list[np.ndarray] = []
    cold: list[np.ndarray] = []
    sigma = np.zeros((step, step))
    columns, rows = (np.full((step, n if with_lines else 0), np.nan) for n in (source.width, source.height))
    for a in range(step):
        for b in range(step):
            plane = np.ascontiguousarray(pixels[a::step, b::step])
            if with_lines:
                columns[a, b::step] = _line_levels(plane)
                rows[b, a::step] = _line_levels(np.ascontiguousarray(plane.T))
            padded = np.pad(plane, 1, mode="reflect")
            sigma[a, b] = _plane_sigma(padded)
            if not sigma[a, b] > 0.0:
                return None
            for found, into in zip(_standing_out(padded, STANDS_OUT * sigma[a, b]), (hot, cold), strict=True):
                y, x = np.divmod(found, plane.shape[1])
                into.append(((step * y + a) * source.width + step * x + b).astype(np.int32))
    return _Look(np.concatenate(hot), np.concatenate(cold), sigma, columns, rows)


def _line_levels(plane: np.ndarray) -> np.ndarray:
    """Medians of the columns of a plane, from some of its rows, less their own median."""
    levels = np.median(plane[:: max(1, plane.shape[0] // LINE_SAMPLES)], axis=0).astype(np.float64)
    return np.asarray(levels - np.nanmedian(levels)) if np.isfinite(levels).any() else levels


def _middle_two(padded: np.ndarray, y0: int, y1: int) -> tuple[np.ndarray, np.ndarray]:
    """Second and third smallest of the four samples beside each one of rows y0 .. y1 - 1; ``padded`` by one."""
    above, below = padded[y0:y1, 1:-1], padded[y0 + 2 : y1 + 2, 1:-1]
    left, right = padded[y0 + 1 : y1 + 1, :-2], padded[y0 + 1 : y1 + 1, 2:]
    low = np.maximum(np.minimum(above, below), np.minimum(left, right))
    high = np.minimum(np.maximum(above, below), np.maximum(left, right))
    return np.minimum(low, high), np.maximum(low, high)


def _plane_sigma(padded: np.ndarray) -> float:
    """Noise of the difference of a sample from the middle of the four beside it."""
    rows, differences = padded.shape[0] - 2, []
    for y in range(0, rows, max(1, rows // 32)):
        low, high = _middle_two(padded, y, y + 1)
        differences.append(padded[y + 1, 1:-1] - (low[0].astype(np.float32) + high[0]) * np.float32(0.5))
    found = np.concatenate(differences)
    return _sigma(found[np.isfinite(found)])


def _sigma(difference: np.ndarray) -> float:
    """Robust standard deviation about 0: from the MAD, and from the 80th percentile where that tells more.

    It does where the sky is cut off at 0, so that half of the differences are next to none, or lies on few levels.
    """
    if difference.size == 0:
        return 0.0
    size = np.abs(difference)
    middle, upper = np.percentile(size, (50.0, 80.0))
    return float(max(MAD_TO_SIGMA * middle, upper / 1.2816)) or 1.2533 * float(np.mean(size))


def _standing_out(padded: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of samples above and below the middle of the four beside them by more than a limit."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    whole = padded.dtype == np.uint16
    hot, cold = [], []
    for y in range(0, height, BAND):
        end = min(y + BAND, height)
        low, high = _middle_two(padded, y, end)
        sample = padded[y + 1 : end + 1, 1:-1]
        if whole:
            middle = (low >> 1) + (high >> 1)
            step = np.uint16(min(np.ceil(limit), 65535))
            above = sample > np.minimum(middle, 65535 - step) + step
            below = sample < np.maximum(middle, step) - step
        else:
            middle = (low + high) * np.float32(0.5)
            above, below = sample > middle + np.float32(limit), sample < middle - np.float32(limit)
        hot.append(np.flatnonzero(above) + y * width)
        cold.append(np.flatnonzero(below) + y * width)
    return np.concatenate(hot), np.concatenate(cold)


def _seen_often(found: list[np.ndarray], size: int) -> np.ndarray:
    """Return the indices, below ``size``, that stand in more than half of the lists; none stands in a list twice."""
    counts = np.zeros(size, np.uint8)
    for places in found:
        counts[places] += 1
    return np.flatnonzero(counts > len(found) // 2)


def _sure_share(shown: list[tuple[FrameSource, np.ndarray]], shape: tuple[int, int], sigma: float) -> float:
    """Return the share below which the photosites beside a defect surely stay, from the stars of a few frames.

    Parameters
    ----------
    shown : list of (FrameSource, ndarray)
        Frames, and the flat indices of what stands out in each.
    shape : tuple of int
        (H, W).
    sigma : float
        Noise of one sample.
    """
    shares = []
    for source, places in shown:
        pixels = source.read_rows(0, source.height)
        bright = np.sort(places[pixels.reshape(-1)[places] > _level(pixels) + BRIGHT * sigma])
        places = bright[:: 1 + bright.size // AT_ONCE]
        if not places.size:
            continue
        middle, _ = _around(places, shape, [source], 1)
        own, beside = _excess(middle, np.ones(places.size, bool))
        share = np.sort(beside, axis=1)[:, 1:3].mean(axis=1) / np.maximum(own, 1e-9)
        shares.append(share[(own > BRIGHT * sigma) & (share > SURE_SHARE)])
    stars = np.concatenate(shares) if shares else np.empty(0)
    if stars.size < FEWEST_STARS:
        return SURE_SHARE
    return float(np.clip(STAR_SHARE * np.percentile(stars, 10.0), SURE_SHARE, MOST_SHARE))


def _confirm(
    defect: np.ndarray,
    hot: np.ndarray,
    cold: np.ndarray,
    sources: Sequence[FrameSource],
    noise: np.ndarray,
    sure: float,
    workers: int,
) -> None:
    """Mark those of the candidates, flat indices of what is too bright or too dark, that are narrower than any star."""
    height, width = defect.shape
    places = np.concatenate((hot, cold))
    sign = np.repeat((1.0, -1.0), (hot.size, cold.size))
    order = np.argsort(places, kind="stable")
    places, sign = places[order], sign[order]
    parts = [
        _around(places[k : k + AT_ONCE], (height, width), sources, workers) for k in range(0, places.size, AT_ONCE)
    ]
    middle = np.concatenate([part[0] for part in parts]) * sign[:, None]
    scatter = np.concatenate([part[1] for part in parts])
    own, beside = _excess(middle, sign > 0)
    y, x = np.divmod(places, width)
    step = len(noise)
    least = STANDS_OUT * noise[y % step, x % step]
    scatter = np.maximum(scatter, float(np.mean(noise))) / len(sources) ** 0.5
    sound = np.ones((places.size, 4), bool)
    for _ in range(1 + CLUSTER_ROUNDS):
        share, error = _shared(beside, sound, scatter)
        share[sign < 0] = np.abs(share[sign < 0])
        found = (own > least) & (share - DOUBT * error < SHARE * own) & (share + SURE * error < sure * own)
        defect[y[found], x[found]] = True
        now = ~np.stack([defect[_mirrored(y + dy, height), _mirrored(x + dx, width)] for dy, dx in BESIDE], axis=1)
        if np.array_equal(now, sound):
            break
        sound = now


def _around(
    places: np.ndarray, shape: tuple[int, int], sources: Sequence[FrameSource], workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Medians over the frames of the samples around each place, and the scatter of those beside it.

    Returns
    -------
    middle : ndarray (n, 1 + 8 + 4 + 6 + 6) float32
        The place itself, ``RING``, ``BESIDE`` and the rings of these; each frame less its own median level of that
        colour. Mirrored at the border of the frame, which keeps the colour.
    scatter : ndarray (n,) float32
        Noise of one sample, ADU.
    """
    height, width = shape
    y, x = np.divmod(places, width)
    top, bottom = max(int(y[0]) - 3, 0), min(int(y[-1]) + 4, height)
    top, bottom = min(top, max(height - 8, 0)), max(bottom, min(8, height))
    offsets = np.array(((0, 0), *RING, *BESIDE, *BESIDE_RING_X, *BESIDE_RING_Y))
    v, u = _mirrored(y[:, None] + offsets[:, 0], height), _mirrored(x[:, None] + offsets[:, 1], width)
    at = (v - top) * width + u
    cell = 2 * (v % 2) + u % 2

    def samples(source: FrameSource) -> np.ndarray | None:
        try:
            pixels = source.read_rows(top, bottom)
        except FrameError:
            return None
        level = np.array([_level(pixels[(a - top) % 2 :: 2, b::2]) for a in (0, 1) for b in (0, 1)], np.float32)
        if not source.cfa:
            level[:] = level.mean()
        return np.asarray(pixels.reshape(-1)[at].astype(np.float32) - level[cell])

    known = np.stack([found for found in parallel_map(samples, sources, workers) if found is not None])
    middle = np.median(known, axis=0)
    first = 1 + len(RING)
    beside = known[:, :, first : first + len(BESIDE)]
    spread = np.median(np.abs(beside - middle[:, first : first + len(BESIDE)]), axis=0)
    return middle, np.asarray(MAD_TO_SIGMA * spread.mean(axis=1))


def _level(plane: np.ndarray) -> float:
    """Median of a few of the finite samples, 0 where there is none."""
    some = plane[:: max(1, plane.shape[0] // 16)]
    some = some[np.isfinite(some)] if some.dtype.kind == "f" else some
    return float(np.median(some)) if some.size else 0.0


def _excess(middle: np.ndarray, is_hot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Excess of each place over its own colour, ``(n,)``, and of the four beside it over theirs, ``(n, 4)``.

    Stars around must not make a star look narrower: the place counts above the middle of its ring, what is too dark
    below nearly all of it; those beside count above the lower part of theirs.
    """
    ring = np.sort(middle[:, 1:9], axis=1)
    own = middle[:, 0] - np.where(is_hot, 0.5 * (ring[:, 3] + ring[:, 4]), ring[:, 6])
    beside = middle[:, 9:13].copy()
    for k, pair in enumerate((slice(0, 2), slice(2, 4))):
        around = np.sort(middle[:, 13 + 6 * k : 19 + 6 * k], axis=1)
        low = np.where(is_hot, around[:, 1:3].mean(axis=1), around[:, 2:4].mean(axis=1))
        beside[:, pair] -= low[:, None]
    return own, beside


def _shared(beside: np.ndarray, sound: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Excess of the four beside, of those that are sound, and its error; infinite where fewer than two are.

    Parameters
    ----------
    beside : ndarray (n, 4) float32
    sound : ndarray (n, 4) bool
    noise : ndarray (n,) float
        Of a sample's mean over the frames.
    """
    count = sound.sum(axis=1)
    values = np.where(sound, beside, np.float32(np.inf))
    values.sort(axis=1)
    line = np.arange(len(count))
    low, high = values[line, np.maximum(count - 1, 0) // 2], values[line, np.minimum(count // 2, 3)]
    share = np.where(count < 2, np.inf, 0.5 * (low + high))
    return share, 1.2533 * np.where(count > 2, 0.66, 0.85) * noise


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Return indices inside 0 .. size - 1, those beyond mirrored at the border."""
    index = np.abs(index)
    return np.where(index >= size, 2 * (size - 1) - index, index)


def _bad_lines(levels: list[np.ndarray], sigma: float, step: int) -> np.ndarray:
    """Return the columns (or rows) that stand out from those beside them, in both parities of a mosaic.

    Parameters
    ----------
    levels : list of ndarray (step, n) float64
        Of each frame, from :func:`_line_levels`.
    sigma : float
        Noise of one sample.
    step : int
        Between lines of one colour.
    """
    if not levels:
        return np.empty(0, np.intp)
    level = np.median(levels, axis=0)
    if not np.isfinite(level).any():
        return np.empty(0, np.intp)
    away, rough, wide = (np.empty_like(level) for _ in range(3))
    for parity, line in enumerate(level):
        for b in range(step):
            own = np.pad(line[b::step], 2, mode="reflect")
            n = own.size - 4
            near = np.sort([own[k : k + n] for k in (0, 1, 3, 4)], axis=0)
            value = own[2 : 2 + n]
            # Of what is wider than one line, those on both sides differ more from each other than the line from them.
            sides = [np.abs(own[k : k + n] - own[m : m + n]) for k, m in ((0, 1), (3, 4))]
            wide[parity, b::step] = 2.0 * np.minimum(sides[0], sides[1])
            rough[parity, b::step] = np.abs(value - 0.5 * (near[1] + near[2]))
            away[parity, b::step] = np.maximum(value - near[2], 0.0) + np.minimum(value - near[1], 0.0)
    # The tail counts too: medians of samples that are cut off at 0, or of half a bright disc, are not Gaussian.
    scatter = max(MAD_TO_SIGMA * float(np.nanmedian(rough)), float(np.nanpercentile(rough, 95.0)) / 1.96)
    limit = max(LINE_SIGMAS * scatter, LINE_NOISE * sigma)
    limits = np.maximum(limit, wide)
    bad = (away > limits).all(axis=0) | (away < -limits).all(axis=0)
    found = np.flatnonzero(bad)
    return found if found.size <= MOST_DEFECTS * bad.size else found[:0]
