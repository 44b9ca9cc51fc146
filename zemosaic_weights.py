"""What a frame's levels are, and the table of scale, offset and weight that the stack applies to every frame.

Levels are measured on the frame's own pixels, before registration. A Bayer frame is measured on its 2x2 cells (red,
mean of the two greens, blue), so that no demosaicing correlates the noise. Frames of more than ``MAX_SAMPLES`` pixels
are measured on every k-th row; the median of 130,000 pixels is good to 0.0035 of the noise of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_levels import MAX_SAMPLES, measure_levels
from zemosaic_photometry import MAX_GAIN_ERROR, MIN_PAIRS, Gain, frame_gain, frame_offset
from zemosaic_sky import sky_mesh
from zemosaic_spec import (
    STAR_NORMALISATIONS,
    STAR_WEIGHTS,
    FrameStats,
    FrameTable,
    NoFramesError,
    NormalizeName,
    RegisterSpec,
    StackSpec,
)
from zemosaic_stars import StarList, find_stars

if TYPE_CHECKING:
    from zemosaic_utils import FrameSource

MIN_SPAN: Final = 1e-5  # ADU; a percentile span below this has no slope to match
FLUX_STARS: Final = 50  # brightest stars whose flux tells how transparent the air was
MIN_FLUX_STARS: Final = 5  # fewer do not: one variable star or one blend would decide the weight
SHAPE_STARS: Final = 100  # brightest stars whose median width and shape are those of the frame
LIGHT_STARS: Final = 200  # brightest stars whose fluxes are kept to compare frames by; 6 KB a frame
SKY_CELL: Final = 128  # px of the frame, side of a cell of the sky mesh
SKY_STEP: Final = 4  # px of the frame, every such row and column counts there
MAX_POOR_SHARE: Final = 0.1  # of the frames, that normalisation auto leaves out for having no gain

# --------------------------------------------------------------------------- one frame


def read_frame(source: FrameSource) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole frame: its pixels as they are stored, and as its levels are measured.

    Returns
    -------
    pixels : ndarray (H, W) or (H, W, C) uint16 or float32, ADU
        A mosaic stays one; for other frames the same as ``view``.
    view : ndarray (h, w, C) float32, ADU
        NaN where invalid. Of a Bayer mosaic the 2x2 cells, so h = H // 2 and w = W // 2: red, mean green, blue.
    """
    pixels = source.read_rows(0, source.height)
    if source.cfa is not None:
        return pixels, cell_view(pixels, source.cfa)
    view = pixels if pixels.ndim == 3 else pixels[:, :, None]
    view = np.ascontiguousarray(view, dtype=np.float32)
    return view, view


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
    """Return the step of the levels as stored, per channel of :func:`read_frame`'s view, ADU; 0 where not known."""
    if source.dtype != np.uint16:
        return (0.0,) * source.channels
    return (1.0, 0.5, 1.0) if source.cfa is not None else (1.0,) * source.channels


def with_stars(stats: FrameStats, stars: StarList, view: np.ndarray, cfa: str | None = None) -> FrameStats:
    """Add to a frame's levels what its stars tell, and the sky mesh that goes with their fluxes.

    Parameters
    ----------
    stats : FrameStats
    stars : StarList
        From :func:`zemosaic_stars.find_stars`.
    view : ndarray (h, w, C) float32, ADU
        From :func:`read_frame`.
    cfa : str, optional
        Of a mosaic.
    """
    channels = view.shape[2]
    light, light_error = (table[:LIGHT_STARS].reshape(-1, channels) for table in stars.photometry)
    pixel_noise = np.sqrt(stats.variance)
    if cfa is not None:
        pixel_noise = pixel_noise * np.array([1.0, np.sqrt(2.0), 1.0])  # a cell has the mean of its two greens
    shaped = stars.select(np.arange(min(SHAPE_STARS, len(stars))))
    scale = 1 if cfa is None else 2
    mesh = [sky_mesh(view[:, :, c], SKY_CELL // scale, SKY_STEP // scale)[0] for c in range(channels)]
    return replace(
        stats,
        fwhm=float(np.median(shaped.fwhm)) if len(stars) else float("nan"),
        eccentricity=float(np.median(shaped.eccentricity)) if len(stars) else float("nan"),
        n_stars=stars.n_found,
        star_flux=stars.flux[:FLUX_STARS].copy(),
        star_xy=stars.xy[:LIGHT_STARS].astype(np.float32),
        star_light=light.astype(np.float32),
        star_light_error=(light_error * pixel_noise).astype(np.float32),
        sky_mesh=np.stack(mesh, axis=2).astype(np.float32),
        sky_cell=SKY_CELL,
    )


def measure_frame(
    source: FrameSource, *, with_its_stars: bool = False, max_samples: int | None = MAX_SAMPLES
) -> FrameStats:
    """Read a whole frame and measure its levels, and its stars where they are wanted; see :func:`measure_levels`."""
    pixels, view = read_frame(source)
    stats = measure_levels(view, quantum=quanta(source), max_samples=max_samples)
    if not with_its_stars:
        return stats
    return with_stars(stats, find_stars(pixels, RegisterSpec(), source.cfa), view, source.cfa)


# --------------------------------------------------------------------------- all frames: normalisation


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


def _dispersion_ratio(stats: FrameStats, reference: FrameStats) -> np.ndarray:
    """Ratio of 1.4826 MAD, per channel; 1 where either has none."""
    flat = ~((stats.mad_sigma > 0.0) & (reference.mad_sigma > 0.0))
    return np.where(flat, 1.0, reference.mad_sigma / np.where(flat, 1.0, stats.mad_sigma))


def _level_ratio(stats: FrameStats, reference: FrameStats) -> np.ndarray:
    """Ratio of the medians, per channel; NaN where either is not positive: such a level cannot be scaled."""
    positive = (stats.median > 0.0) & (reference.median > 0.0)
    return np.where(positive, reference.median / np.where(positive, stats.median, 1.0), np.nan)


def _additive(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    """Shift the median, per channel."""
    return np.ones_like(stats.median), reference.median - stats.median


def _multiplicative(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    """Scale the median, per channel."""
    return _level_ratio(stats, reference), np.zeros_like(stats.median)


def _additive_scaling(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    """Scale by 1.4826 MAD, then shift the median, per channel."""
    scale = _dispersion_ratio(stats, reference)
    return scale, reference.median - scale * stats.median


def _multiplicative_scaling(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    """Scale by the ratio of the medians times the ratio of 1.4826 MAD, per channel.

    This is what Siril (``stack -norm=mulscale``) and PixInsight ("multiplicative with scaling") mean by the name.
    NOTE With one factor for two quantities neither is matched unless the other needs nothing: a frame that is g times
    the reference comes out 1/g times it. :func:`_additive_scaling` matches both.
    """
    return _level_ratio(stats, reference) * _dispersion_ratio(stats, reference), np.zeros_like(stats.median)


_NORMALISATIONS: Final = {
    "linear_fit": _linear_fit,
    "sky_mean": _sky_mean,
    "additive": _additive,
    "multiplicative": _multiplicative,
    "additive_scaling": _additive_scaling,
    "multiplicative_scaling": _multiplicative_scaling,
}


def normalisation(spec: StackSpec, stats: Sequence[FrameStats], reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset (ADU) of every frame, two ``(N, C) float64`` arrays; NaN where there are none.

    For the methods that need the frames' levels alone; :func:`photometric` for the one that compares stars.
    """
    if spec.normalize == "none":
        shape = len(stats), len(stats[reference].median)
        return np.ones(shape), np.zeros(shape)
    pairs = [_NORMALISATIONS[spec.normalize](s, stats[reference]) for s in stats]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def photometric(
    stats: Sequence[FrameStats],
    transforms: Sequence[np.ndarray],
    reference: int,
    distortion: Sequence[np.ndarray | None] = (),
) -> tuple[np.ndarray, np.ndarray, list[Gain]]:
    """Scale from the fluxes of the stars shared with the reference, offset from the sky that both show.

    Parameters
    ----------
    stats : sequence of FrameStats
        With stars.
    transforms : sequence of ndarray (3, 3) float64
        Pixel of the result's grid to the frame's.
    reference : int
        Frame the others are normalised to.
    distortion : sequence of ndarray (rows, columns, 2) float32, or None
        Displacements of each frame on top of its transform; empty: no frame has any.

    Returns
    -------
    scale, offset : ndarray (N, C) float64
        Offset in ADU; NaN for frames whose gain is not supported.
    gains : list of Gain
        What the stars said of each.
    """
    channels = stats[reference].median.size
    from_grid = np.linalg.inv(np.asarray(transforms[reference], np.float64))
    scale, offset = np.full((len(stats), channels), np.nan), np.full((len(stats), channels), np.nan)
    gains = []
    for i, frame in enumerate(stats):
        if i == reference:
            gains.append(Gain(np.ones(channels), np.zeros(channels), np.full(channels, len(frame.star_xy))))
            scale[i], offset[i] = 1.0, 0.0
            continue
        to_frame = transforms[i] @ from_grid
        gains.append(frame_gain(frame, stats[reference], to_frame, distortion[i] if distortion else None))
        if gains[i].supported:
            scale[i] = gains[i].factor
            offset[i] = frame_offset(frame, stats[reference], to_frame, scale[i])
    return scale, offset, gains


class _Match(NamedTuple):
    """Normalisation of all frames: scale and offset (N, C), the method, what to say of it, why frames have none."""

    scale: np.ndarray
    offset: np.ndarray
    method: NormalizeName
    notes: list[str]
    reasons: dict[int, str]


def _match_levels(
    spec: StackSpec,
    stats: Sequence[FrameStats],
    transforms: Sequence[np.ndarray],
    reference: int,
    distortion: Sequence[np.ndarray | None],
) -> _Match:
    """Apply the normalisation asked for; ``auto`` is photometric where the stars support it, else additive_scaling."""
    if spec.normalize not in STAR_NORMALISATIONS:
        return _Match(*normalisation(spec, stats, reference), spec.normalize, [], {})
    scale, offset, gains = photometric(stats, transforms, reference, distortion)
    poor = [i for i, gain in enumerate(gains) if not gain.supported]
    reasons = {i: _why_no_gain(gains[i]) for i in poor}
    too_poor = len(poor) > MAX_POOR_SHARE * len(stats) or not gains[reference].supported
    if spec.normalize == "auto" and too_poor:
        fallback = replace(spec, normalize="additive_scaling")
        example = f", as {_why_no_gain(gains[poor[0]])}" if poor else ""
        note = f"normalisation auto took additive_scaling: {len(poor)} of {len(stats)} frames have no gain{example}"
        return _Match(*normalisation(fallback, stats, reference), "additive_scaling", [note], {})
    notes = []
    if spec.normalize == "auto":
        stars = int(np.median([gain.pairs.min() for gain in gains]))
        lowest, highest = np.nanmin(scale), np.nanmax(scale)
        notes = [f"normalisation auto took photometric: {stars} stars a frame, gains {lowest:.3f} to {highest:.3f}"]
    return _Match(scale, offset, "photometric", notes, reasons)


def _why_no_gain(gain: Gain) -> str:
    worst = int(np.argmin(gain.pairs))
    if gain.pairs[worst] < MIN_PAIRS:
        return (
            f"{gain.pairs[worst]} stars shared with the reference are bright enough for its gain, at least "
            f"{MIN_PAIRS} are needed; choose normalisation additive_scaling"
        )
    return (
        f"the fluxes of {gain.pairs[worst]} stars give its gain to {100 * np.max(gain.error):.1f} % only, limit "
        f"{100 * MAX_GAIN_ERROR:.0f} %; choose normalisation additive_scaling"
    )


# --------------------------------------------------------------------------- all frames: weights


def noise_variance_weights(variance: np.ndarray) -> np.ndarray:
    """``min(v) / v`` over all frames and channels, ``(N, C) float64``; NaN for a frame that cannot be measured.

    Only the ratio between frames of one channel enters a mean. A frame is not measurable when a variance is not finite,
    or is zero while other frames have noise in that channel (a constant frame has no noise, but no sky either). A
    channel without noise in every frame, as an empty one of a two-colour image, weighs the same in all.
    """
    measured = np.isfinite(variance).all(axis=1)
    noisy = (variance[measured] > 0.0).any(axis=0)
    usable = measured & (variance[:, noisy] > 0.0).all(axis=1)
    weight = np.full(variance.shape, np.nan)
    weight[usable] = 1.0
    if usable.any() and noisy.any():
        shown = variance[np.ix_(usable, noisy)]
        weight[np.ix_(usable, noisy)] = shown.min() / shown
    return weight


def _only(values: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Values of the frames that could be measured, NaN for the others, so that they set no minimum; ``(N, 1)`` too."""
    return np.where(measured.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)


def noise_fwhm_weights(variance: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """``min(v) / v (min(F) / F)^2``, ``(N, C) float64``; NaN for a frame that cannot be measured.

    A star's peak, and the signal to noise of a point source under a matched filter, go with 1 / F^2 and 1 / F.

    Parameters
    ----------
    variance : ndarray (N, C) float64
        Noise after normalisation, ADU^2.
    fwhm : ndarray (N,) float64
        Median over the frame's stars, pixels; NaN without stars.
    """
    noise = noise_variance_weights(_only(variance, np.isfinite(fwhm)))
    measured = _only(fwhm, np.isfinite(noise).all(axis=1))
    return noise * (_extreme(measured, np.fmin) / measured)[:, None] ** 2


def snr_weights(variance: np.ndarray, star_flux: Sequence[np.ndarray]) -> np.ndarray:
    """``min(v) / v (f / max(f))^2``, ``(N, C) float64``; NaN for a frame that cannot be measured.

    f = geometric mean of the middle half, by flux, of the k brightest stars, with one k for all frames (what the
    poorest has, at most 50), so that f goes with transparency alone; the brightest quarter may be saturated or lost
    in one frame and not in the next. The inverse of the variance of a frame brought to one transparency: the weight of
    least noise for a mean of fluxes (any textbook on errors). Both f and v are those before normalisation; whatever
    factor a normalisation applies, it applies to both.

    NOTE f is good to about 3 % with 50 stars, 15 % with 20 of which some are saturated (simulated frames).

    Parameters
    ----------
    variance : ndarray (N, C) float64
        Noise before normalisation, ADU^2.
    star_flux : N arrays (n,) float64
        Brightest first, ADU.
    """
    counts = np.array([flux.size for flux in star_flux])
    noise = noise_variance_weights(_only(variance, counts >= MIN_FLUX_STARS))
    measured = np.isfinite(noise).all(axis=1)
    k = min(int(counts[measured].min()), FLUX_STARS) if measured.any() else 0
    middle = slice(k // 4, k - k // 4)
    typical = np.full(len(star_flux), np.nan)
    for i in np.flatnonzero(measured).tolist():
        typical[i] = np.exp(np.mean(np.log(star_flux[i][middle])))
    return noise * (typical / _extreme(typical, np.fmax))[:, None] ** 2


def star_count_weights(n_stars: np.ndarray, channels: int) -> np.ndarray:
    """``n / max(n)``, ``(N, C) float64``; NaN for a frame without stars. Haze and bad seeing hide the faint stars."""
    counts = np.where(n_stars > 0, n_stars, np.nan)
    return np.repeat((counts / _extreme(counts, np.fmax))[:, None], channels, axis=1)


def _extreme(values: np.ndarray, of: np.ufunc) -> float:
    """Smallest (``np.fmin``) or largest (``np.fmax``) number; NaN where there is none."""
    return float(of.reduce(values, initial=np.nan))


def frame_weights(method: str, stats: Sequence[FrameStats], scale: np.ndarray) -> np.ndarray:
    """Return the weight of every frame and channel, ``(N, C) float64``; NaN for a frame that cannot be measured.

    Parameters
    ----------
    method : str
        A :data:`zemosaic_spec.WeightName`.
    stats : sequence of FrameStats
    scale : ndarray (N, C) float64
        What the normalisation multiplies the frames by.
    """
    variance = np.stack([s.variance for s in stats])
    if method == "noise_variance":
        return noise_variance_weights(variance * scale**2)
    if method == "noise_fwhm":
        return noise_fwhm_weights(variance * scale**2, np.array([s.fwhm for s in stats]))
    if method == "snr":
        return snr_weights(variance, [s.star_flux for s in stats])
    if method == "stars":
        return star_count_weights(np.array([s.n_stars for s in stats]), variance.shape[1])
    return np.ones_like(variance)


# --------------------------------------------------------------------------- all frames: the table


def why_unmeasured(stats: FrameStats, method: str) -> str:
    """Say what a frame lacks for a weight."""
    fewest = MIN_FLUX_STARS if method == "snr" else 1
    if method in STAR_WEIGHTS and np.isfinite(stats.median).all() and stats.n_stars < fewest:
        return f"{stats.n_stars} stars found, too few for weight {method}; choose weight noise_variance to keep it"
    return "its levels or its noise could not be measured (blank, constant or without valid pixels)"


def _why_left_out(spec: StackSpec, stats: FrameStats, reference: FrameStats) -> str:
    if spec.normalize in ("multiplicative", "multiplicative_scaling"):
        whose = {"its": stats.median, "the reference's": reference.median}
        for who, median in whose.items():
            if np.isfinite(median).all() and (median <= 0.0).any():
                levels = ", ".join(f"{m:g}" for m in median)
                return (
                    f"{who} median ({levels} ADU) is not positive, so {spec.normalize} cannot scale it; "
                    "choose normalisation additive or additive_scaling"
                )
    return why_unmeasured(stats, spec.frame_weight)


def _notes(spec: StackSpec, stats: Sequence[FrameStats], used: Sequence[int]) -> list[str]:
    """Say what was asked for and could not have its effect."""
    if spec.combine != "mean" and spec.weight != "none":
        return [f"weights ({spec.weight}) do not apply to combine = {spec.combine}; they were not used"]
    counts = {stats[i].n_stars for i in used}
    if spec.frame_weight == "stars" and len(used) > 1 and len(counts) == 1:
        return [f"weight stars has no effect: {counts.pop()} stars were kept in every frame; snr tells them apart"]
    return []


def build_frame_table(
    names: Sequence[str],
    transforms: Sequence[np.ndarray],
    stats: Sequence[FrameStats],
    spec: StackSpec,
    reference: int = 0,
    distortion: Sequence[np.ndarray | None] = (),
) -> tuple[FrameTable, list[int], list[tuple[str, str]]]:
    """Compute scale, offset and weight of every frame.

    Parameters
    ----------
    names, transforms, stats : sequences of length N
        Name, (3, 3) map from reference to frame pixels, and levels of each frame.
    spec : StackSpec
    reference : int
        Frame the others are normalised to.
    distortion : sequence of ndarray (rows, columns, 2) float32, or None
        Displacements of each frame on top of its transform; empty: no frame has any.

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
    match = _match_levels(spec, stats, transforms, reference, distortion)
    scale, offset = match.scale, match.offset
    weight = frame_weights(spec.frame_weight, stats, scale)
    good = np.isfinite(scale).all(axis=1) & np.isfinite(offset).all(axis=1) & np.isfinite(weight).all(axis=1)
    used = np.flatnonzero(good).tolist()
    dropped = [
        (names[i], match.reasons.get(i) or _why_left_out(spec, stats[i], stats[reference]))
        for i in np.flatnonzero(~good).tolist()
    ]
    if not used:
        first = "; ".join(f"{name}: {reason}" for name, reason in dropped[:3])
        raise NoFramesError(f"none of {len(names)} frames could be measured: {first}")
    table = FrameTable(
        names=[names[i] for i in used],
        transform=np.stack([transforms[i] for i in used]),
        scale=scale[used],
        offset=offset[used],
        weight=weight[used],
        weight_method=spec.frame_weight,
        notes=[*match.notes, *_notes(spec, stats, used)],
        normalize_method=match.method,
    )
    return table, used, dropped
