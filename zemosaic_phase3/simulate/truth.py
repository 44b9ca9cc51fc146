"""A finished tile of simulated frames beside their truth: registration, noise, photometry, widths, trails as figures.

:func:`compare_with_truth` needs the image and, for some figures, what the run says of it; it knows nothing of how the
tile was made, so any program's result can be judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from zemosaic_phase3.robust import MAD_TO_SIGMA
from zemosaic_phase3.simulate.paint import MOFFAT_FWHM_PER_ALPHA, distance_to_line, map_points
from zemosaic_phase3.simulate.scene import noiseless_signal
from zemosaic_phase3.simulate.session import FULL_SCALE, SimulationTruth, load_truth

APERTURE_FWHM: Final = 2.0  # radius of the photometric aperture, units of FWHM
ANNULUS_FWHM: Final = (3.0, 5.0)  # its background annulus
MIN_STAR_SNR: Final = 30.0  # photometry uses stars whose ideal aperture signal-to-noise is at least this
MAX_NEIGHBOUR: Final = 0.3  # and whose neighbours within 4 FWHM add up to less than this fraction of their flux
THIN: Final = 0.25  # share of the frames below which a place counts as thinly covered
STRIP_OFFSETS_PX: Final = tuple(side * step for side in (-1, 1) for step in range(16, 112, 8))  # beside a trail


Figures = dict[str, float | int | list[float]]
"""Figures of merit by name; see :func:`compare_with_truth`."""


@dataclass(frozen=True)
class _Scene:
    """A result beside the truth on its own grid. All images (H, W, C) float32 ADU."""

    truth: SimulationTruth
    reference: int  # frame whose grid the result lies on
    image: np.ndarray  # the result
    stars: np.ndarray  # noiseless stars at the reference frame's transparency
    signal: np.ndarray  # stars and nebula at the reference frame's transparency
    residual: np.ndarray  # image - signal - plane fitted to the sky of each channel
    coverage: np.ndarray  # (H, W, C) frames that contribute to each pixel
    fwhm: float  # mean FWHM of the frames


def compare_with_truth(
    image: np.ndarray,
    truth: SimulationTruth | Path | str,
    *,
    transforms: Mapping[str, np.ndarray] | None = None,
    coverage: np.ndarray | None = None,
    reference_name: str | None = None,
    block: int = 8,
) -> Figures:
    """Judge a stack of simulated frames by the truth.

    The result may lie on the grid of any frame: stars and nebula are rendered afresh on that grid, at the mean seeing
    and multiplied by that frame's transparency (they are what a noiseless stack matched to the reference should show).
    The residual is result - that signal - a plane per channel (the sky and its gradient, least squares over starless
    blocks together with a factor for the nebula, so that an error of scale is charged to the photometry alone).

    Figures, scalars unless "list" (one per channel); nan where nothing could be measured:

    ``registration_rms_px``, ``registration_worst_px``
        Distance between where the given transforms and the true ones put every star that falls inside a frame, nothing
        fitted away: rms over all stars and frames but the reference; rms of the worst frame. Only with ``transforms``.
    ``sky_noise_adu``, ``sky_noise_ideal_adu``, ``sky_noise_over_ideal`` (lists)
        Robust sigma (1.4826 MAD) of the residual's means over ``block`` x ``block`` pixels that are starless
        (the brightest true star light in the block is below the ideal noise of a pixel) and covered by at least half
        of the frames. Ideal: the raw samples that fall into such a block, 8 x 8 / 4 red ones per Bayer frame for
        instance, each with its photon, read-out and rounding noise, brought to the reference's transparency and
        averaged with inverse variances, for the coverage of that block. No method of debayering enters the ideal.
        A ratio may lie a little below 1: interpolation shares samples over the edges of blocks, so that a perfect
        mean after bilinear debayering has 0.91 in red and blue at 8 x 8 (0.95 at 16 x 16).
    ``nebula_error`` (list)
        The factor for the nebula in that fit: brightness of what is extended over the truth's, minus 1.
    ``border_level_sigma``
        Level where less than a quarter of the frames contribute: mean residual of starless blocks in units of the ideal
        noise of one of their pixels; the 90th percentile of its absolute value over blocks, worst channel.
    ``photometric_error`` (list), ``photometric_error_worst``, ``photometric_scatter``
        Per star: (flux in an aperture of radius 2 FWHM) / (the same of the truth) - 1, background from an annulus of 3
        to 5 FWHM of the residual, so that neighbours and nebula cancel. Median over stars per channel; its largest
        absolute value; robust sigma over stars, worst channel. Stars: ideal signal-to-noise >= 30, not saturated in
        any frame, neighbours within 4 FWHM below 30 % of the flux, full coverage.
    ``channel_balance_error``
        Largest over smallest ``1 + photometric_error`` of the channels, minus 1.
    ``fwhm_over_truth`` (list), ``fwhm_over_truth_mean``
        Median over the same stars of the width from Gaussian-weighted second moments (weight removed as if the star
        were Gaussian), relative to the same measurement of the truth, which includes the pixel itself.
    ``trail_residual_adu``, ``trail_residual_sigma``, ``trail_residual_pixel_sigma``
        Per satellite trail: mean residual over starless pixels within FWHM / 2 of its axis, all channels, minus the
        median of the same mean along parallel strips 16 to 104 px away; the trail with the largest deviation in ADU;
        the largest deviation in units of the robust sigma of those strips (equal size, so chance gives 1 to 2);
        the ADU figure in units of the noise of one pixel.
    ``photometric_stars``, ``sky_blocks``, ``trails``
        How many were measured.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, C) float32
        The result, ADU; NaN where invalid.
    truth : SimulationTruth or path
        The truth, or the folder that :func:`simulate.scene.simulate` wrote.
    transforms : mapping of str to ndarray (3, 3), optional
        Result pixel -> pixel of the frame of that name (or path), as ``Registration.transform``.
    coverage : ndarray (H, W) or (H, W, C), optional
        Frames that contribute to each pixel; None: counted from the true footprints of all frames.
    reference_name : str, optional
        Frame whose grid the result lies on; None: the first.
    block : int
        Side of the blocks for the sky noise, pixels.

    Raises
    ------
    ValueError
        The image is not of the simulated shape, or a name is not a frame of the simulation.
    """
    known = truth if isinstance(truth, SimulationTruth) else load_truth(truth)
    reference = known.index(reference_name)
    scene, sky = _scene(known, reference, image, coverage, block)
    return {
        **_judge_registration(known, reference, transforms or {}),
        **sky,
        **_judge_stars(scene),
        **_judge_trails(scene),
    }


def _robust_sigma(values: np.ndarray) -> float:
    """1.4826 times the median absolute deviation; nan when empty."""
    return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values)))) if values.size else float("nan")


def _in_units_of(sigma: float, value: float) -> float:
    """Return ``value / sigma``; nan where there is no noise to compare with."""
    return value / sigma if sigma > 0 else float("nan")


def _judge_registration(truth: SimulationTruth, reference: int, transforms: Mapping[str, np.ndarray]) -> Figures:
    here = map_points(truth.transforms[reference], truth.star_xy)
    squares: list[np.ndarray] = []
    limit = np.array([truth.spec.width, truth.spec.height]) - 0.5
    for name, found in transforms.items():
        k = truth.index(name)
        true = map_points(truth.transforms[k], truth.star_xy)
        inside = np.all((true >= -0.5) & (true < limit), axis=1)
        if k != reference and inside.any():
            squares.append(np.sum((map_points(found, here[inside]) - true[inside]) ** 2, axis=1))
    if not squares:
        return {"registration_rms_px": float("nan"), "registration_worst_px": float("nan")}
    return {
        "registration_rms_px": float(np.sqrt(np.concatenate(squares).mean())),
        "registration_worst_px": float(np.sqrt(max(s.mean() for s in squares))),
    }


def _scene(
    truth: SimulationTruth, reference: int, image: np.ndarray, coverage: np.ndarray | None, block: int
) -> tuple[_Scene, Figures]:
    """Render the truth on the result's grid, fit the sky, and measure its noise."""
    spec = truth.spec
    shape = (spec.height, spec.width, spec.channels)
    given = np.asarray(image, np.float32)
    if given.shape != shape and (*given.shape, 1) != shape:
        raise ValueError(f"image of shape {given.shape} cannot be compared with simulated frames of shape {shape}")
    transform, fwhm = truth.transforms[reference], float(truth.fwhm.mean())
    painted = noiseless_signal(truth, transform, fwhm)
    stars, clouds = (part.reshape(shape) * np.float32(truth.gains[reference]) for part in painted)
    signal = stars + clouds
    residual = given.reshape(shape) - signal
    if coverage is None:
        covered = _footprint_count(truth, reference)[..., None]
    else:
        covered = np.asarray(coverage, np.float32).reshape(*shape[:2], -1)
    covered = np.broadcast_to(covered, shape)
    sky = _fit_sky(truth, reference, residual, stars, signal, covered, block)
    return _Scene(truth, reference, given.reshape(shape), stars, signal, residual, covered, fwhm), sky


def _footprint_count(truth: SimulationTruth, reference: int) -> np.ndarray:
    """Frames whose true footprint holds each pixel of the result; (H, W) float32."""
    height, width = truth.spec.height, truth.spec.width
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    count = np.zeros((height, width), np.float32)
    back = np.linalg.inv(truth.transforms[reference])
    for transform in truth.transforms:
        across, down, _ = (transform @ back).astype(np.float32)
        u, v = across[0] * x + (across[1] * y + across[2]), down[0] * x + (down[1] * y + down[2])
        count += (u > -0.01) & (u < width - 0.99) & (v > -0.01) & (v < height - 0.99)
    return count


def _blocks(image: np.ndarray, block: int) -> np.ndarray:
    """View (H, W, C) as (H // block, W // block, block * block, C); a remainder at the far edges is left out."""
    rows, columns, channels = image.shape[0] // block, image.shape[1] // block, image.shape[2]
    cut = image[: rows * block, : columns * block].reshape(rows, block, columns, block, channels)
    return cut.swapaxes(1, 2).reshape(rows, columns, block * block, channels)


def _fit_sky(
    truth: SimulationTruth,
    reference: int,
    residual: np.ndarray,
    stars: np.ndarray,
    signal: np.ndarray,
    coverage: np.ndarray,
    block: int,
) -> Figures:
    """Subtract a plane per channel from ``residual`` in place and return the figures of the sky noise."""
    spec = truth.spec
    mean_light = _blocks(signal, block).mean(axis=2)
    mean_cover = _blocks(coverage, block).mean(axis=2)
    brightest_star = _blocks(stars, block).max(axis=2)
    values = _blocks(residual, block).mean(axis=2)  # NaN where any pixel is
    rows, columns = values.shape[:2]
    y, x = np.mgrid[:rows, :columns] * float(block) + (block - 1) / 2 - np.array(spec.centre[::-1])[:, None, None]
    noise, ideals, counts, nebula, borders = [], [], [], [], []
    for c in range(spec.channels):
        sample = _ideal_sample_sigma(truth, reference, mean_light[..., c], c)
        ideal = sample / np.sqrt(spec.sample_fraction[c] * block**2 * np.maximum(mean_cover[..., c], 1e-6))
        starless = np.isfinite(values[..., c]) & (brightest_star[..., c] < ideal * block)
        use = starless & (mean_cover[..., c] >= 0.5 * len(truth.names))
        if use.sum() < 16:
            noise.append(float("nan"))
            ideals.append(float("nan"))
            nebula.append(float("nan"))
            counts.append(int(use.sum()))
            continue
        terms = np.stack([np.ones_like(x), x, y, mean_light[..., c]], axis=2)
        fit, left = _fit_clipped(terms[use], values[..., c][use])
        nebula.append(float(fit[3]))
        thin = starless & (mean_cover[..., c] < THIN * len(truth.names)) & (mean_cover[..., c] >= 1.0)
        if np.count_nonzero(thin) >= 16:
            off = np.abs(values[..., c][thin] - terms[thin] @ fit) / (ideal[thin] * block)
            borders.append(float(np.percentile(off, 90.0)))
        plane_x = (fit[1] * (np.arange(spec.width) - spec.centre[0])).astype(np.float32)
        plane_y = (fit[0] + fit[2] * (np.arange(spec.height) - spec.centre[1])).astype(np.float32)
        residual[..., c] -= plane_x[None, :] + plane_y[:, None]
        typical = float(np.median(ideal[use]))
        noise.append(_robust_sigma(left / ideal[use]) * typical)
        ideals.append(typical)
        counts.append(int(use.sum()))
    ratio = [n / i for n, i in zip(noise, ideals, strict=True)]
    return {
        "sky_noise_adu": noise,
        "sky_noise_ideal_adu": ideals,
        "sky_noise_over_ideal": ratio,
        "sky_blocks": min(counts),
        "nebula_error": nebula,
        "border_level_sigma": max(borders, default=float("nan")),
    }


def _ideal_sample_sigma(truth: SimulationTruth, reference: int, light: np.ndarray, channel: int) -> np.ndarray:
    """Noise of one raw sample averaged over the frames, times sqrt(frames), where the signal is ``light``; ADU.

    Frames are brought to the reference's transparency and weighted with their inverse variance.
    """
    information = np.zeros_like(light, dtype=np.float64)
    for gain, sigma in zip(truth.gains / truth.gains[reference], truth.sample_sigma[:, channel], strict=True):
        information += gain**2 / (sigma**2 + gain * light / truth.spec.electrons_per_adu)
    return np.sqrt(len(truth.names) / information)


def _fit_clipped(terms: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares with two rounds of 4-sigma clipping: coefficients, and what is left of all values."""
    keep = np.ones(values.size, bool)
    for _ in range(3):
        fit = np.linalg.lstsq(terms[keep], values[keep], rcond=None)[0]
        left = values - terms @ fit
        keep = np.abs(left - np.median(left)) <= 4.0 * _robust_sigma(left) + 1e-12
    return fit, left


def _good_stars(scene: _Scene) -> np.ndarray:
    """Positions (n, 2) on the result's grid of stars fit for photometry."""
    truth, spec, fwhm = scene.truth, scene.truth.spec, scene.fwhm
    position = map_points(truth.transforms[scene.reference], truth.star_xy)
    alpha = truth.fwhm.min() / MOFFAT_FWHM_PER_ALPHA
    peak = truth.star_flux.max(axis=1) * truth.gains.max() * 2.0 / (np.pi * alpha * alpha)
    room = FULL_SCALE - truth.sky.max() - spec.gradient - truth.gains.max() * 3.0 * spec.nebula
    samples = np.pi * (APERTURE_FWHM * fwhm) ** 2 * np.array(spec.sample_fraction) * len(truth.names)
    noise = truth.sample_sigma.max(axis=0) / np.sqrt(samples) * np.pi * (APERTURE_FWHM * fwhm) ** 2
    edge = ANNULUS_FWHM[1] * fwhm + 2
    good = (peak < room) & np.all(truth.star_flux > MIN_STAR_SNR * noise, axis=1)
    good &= np.all((position > edge) & (position < np.array([spec.width, spec.height]) - 1 - edge), axis=1)
    chosen = []
    for star in np.flatnonzero(good):
        near = np.sum((position - position[star]) ** 2, axis=1) < (4.0 * fwhm) ** 2
        others = truth.star_flux[near].sum(axis=0) - truth.star_flux[star]
        if np.all(others < MAX_NEIGHBOUR * truth.star_flux[star]):
            chosen.append(position[star])
    return np.array(chosen).reshape(-1, 2)


def _judge_stars(scene: _Scene) -> Figures:
    """Photometry and width of the stars that are fit for it."""
    fwhm, full = scene.fwhm, 0.9 * float(np.nanmax(scene.coverage))
    reach = int(np.ceil(ANNULUS_FWHM[1] * fwhm))
    ratios, widths = [], []
    for x, y in _good_stars(scene):
        x0, y0 = round(x) - reach, round(y) - reach
        box = np.s_[y0 : y0 + 2 * reach + 1, x0 : x0 + 2 * reach + 1]
        residual, signal = scene.residual[box].astype(float), scene.signal[box].astype(float)
        if not np.isfinite(residual).all() or np.min(scene.coverage[box]) < full:
            continue
        dy, dx = np.mgrid[y0 : y0 + 2 * reach + 1, x0 : x0 + 2 * reach + 1] - np.array([y, x])[:, None, None]
        square = dx * dx + dy * dy
        aperture = square <= (APERTURE_FWHM * fwhm) ** 2
        annulus = (square >= (ANNULUS_FWHM[0] * fwhm) ** 2) & (square <= (ANNULUS_FWHM[1] * fwhm) ** 2)
        residual -= np.median(residual[annulus], axis=0)
        true = signal - np.median(signal[annulus], axis=0)
        ratios.append(1.0 + residual[aperture].sum(axis=0) / true[aperture].sum(axis=0))
        weight = np.exp(-square / (2.0 * (fwhm / 1.5) ** 2))
        widths.append(_width(true + residual, square, weight, fwhm) / _width(true, square, weight, fwhm))
    if not ratios:  # one star of unknown figures stands for none, so that every key is there
        ratios, widths = [np.full(scene.truth.spec.channels, np.nan)], [np.full(scene.truth.spec.channels, np.nan)]
    median, width = np.median(ratios, axis=0), np.median(widths, axis=0)
    return {
        "photometric_error": (median - 1.0).tolist(),
        "photometric_error_worst": float(np.abs(median - 1.0).max()),
        "photometric_scatter": max(_robust_sigma(column) for column in np.array(ratios).T),
        "channel_balance_error": float(median.max() / median.min() - 1.0),
        "fwhm_over_truth": width.tolist(),
        "fwhm_over_truth_mean": float(width.mean()),
        "photometric_stars": len(ratios) if np.isfinite(median).all() else 0,
    }


def _width(light: np.ndarray, square: np.ndarray, weight: np.ndarray, fwhm: float) -> np.ndarray:
    """Sigma (C,) from second moments under a Gaussian weight of sigma ``fwhm / 1.5``, the weight taken out again."""
    weighted = light * weight[..., None]
    moment = (weighted * square[..., None]).sum(axis=(0, 1)) / (2.0 * weighted.sum(axis=(0, 1)))
    return np.sqrt(1.0 / np.maximum(1.0 / moment - 1.0 / (fwhm / 1.5) ** 2, 1e-6))


def _judge_trails(scene: _Scene) -> Figures:
    """Measure what is left of the satellite trails."""
    truth = scene.truth
    shape = scene.image.shape[:2]
    sigma = np.median(truth.sample_sigma / np.sqrt(len(truth.names)), axis=0).max()
    usable = np.isfinite(scene.residual).all(axis=2) & (scene.stars.max(axis=2) < sigma)
    grey = scene.residual.mean(axis=2)
    pixel_sigma = _robust_sigma(grey[usable])
    worst_adu, worst_sigma, measured = float("nan"), float("nan"), 0
    for k, ends, width in zip(truth.trail_frame, truth.trail_ends, truth.trail_fwhm, strict=True):
        here = truth.transforms[scene.reference] @ np.linalg.inv(truth.transforms[k])
        distance = distance_to_line(shape, map_points(here, ends))
        on_path = _strip_mean(grey, usable, distance, 0.0, width)
        beside = np.array([_strip_mean(grey, usable, distance, offset, width) for offset in STRIP_OFFSETS_PX])
        beside = beside[np.isfinite(beside)]
        if not np.isfinite(on_path) or beside.size < 8:
            continue
        measured += 1
        left = on_path - float(np.median(beside))
        worst_adu = left if not abs(left) <= abs(worst_adu) else worst_adu
        worst_sigma = np.fmax(worst_sigma, _in_units_of(_robust_sigma(beside), abs(left)))
    return {
        "trail_residual_adu": worst_adu,
        "trail_residual_sigma": float(worst_sigma),
        "trail_residual_pixel_sigma": _in_units_of(pixel_sigma, abs(worst_adu)),
        "trails": measured,
    }


def _strip_mean(grey: np.ndarray, usable: np.ndarray, distance: np.ndarray, offset: float, width: float) -> float:
    """Mean over usable pixels within ``width / 2`` of the line ``offset`` pixels beside the axis; nan if under 50."""
    inside = usable & (np.abs(distance - np.float32(offset)) <= width / 2)
    return float(grey[inside].mean()) if np.count_nonzero(inside) >= 50 else float("nan")
