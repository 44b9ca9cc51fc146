"""Scale and offset that bring a frame to the levels of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.methods import STAR_NORMALISATIONS, NormalizeName
from zemosaic_phase3.photometry.combined_gain import combined_gains, usable
from zemosaic_phase3.photometry.overlaps import Link, gains_through, links_of, offsets_through, overlap_by_little
from zemosaic_phase3.photometry.star_gain import MAX_GAIN_ERROR, MIN_PAIRS, Gain, frame_gain, frame_offset
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.spec import StackSpec

MIN_SPAN: Final = 1e-5  # ADU; a percentile span below this has no slope to match
MAX_STAR_SIGMAS: Final = 3.0  # standard errors of a star gain, that a scale from percentiles may be off
MAX_STAR_MISFIT: Final = 0.02  # and at least by this much
MAX_POOR_SHARE: Final = 0.5  # of the frames without any gain, from which normalisation auto matches by the spread


def linear_fit(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset that bring percentiles 25 and 90 onto the reference's; only an offset where a span vanishes."""
    span, wanted = stats.p90 - stats.p25, reference.p90 - reference.p25
    flat = (np.abs(span) < MIN_SPAN) | (np.abs(wanted) < MIN_SPAN)
    scale = np.where(flat, 1.0, wanted / np.where(flat, 1.0, span))
    return scale, reference.p25 - scale * stats.p25


def sky_mean(stats: FrameStats, reference: FrameStats) -> tuple[np.ndarray, np.ndarray]:
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
    "linear_fit": linear_fit,
    "sky_mean": sky_mean,
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
    *,
    combined: bool = False,
    through_others: bool = False,
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
    combined : bool
        Frames whose stars tell too little get the best estimate of the session, see :mod:`photometry.combined_gain`.
    through_others : bool
        Where frames share little with the reference, all are matched through each other, see
        :mod:`photometry.overlaps`.

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
    gains: list[Gain] = []
    links: list[Link] = []
    if through_others and overlap_by_little(stats, transforms, reference):
        links = links_of(stats, transforms, reference)
        gains = gains_through(links, len(stats), channels, reference)
    for i, frame in enumerate(stats if not gains else ()):
        if i == reference:
            gains.append(Gain(np.ones(channels), np.zeros(channels), np.full(channels, len(frame.star_xy))))
            continue
        to_frame = transforms[i] @ from_grid
        gains.append(frame_gain(frame, stats[reference], to_frame, distortion[i] if distortion else None, from_grid))
    if combined:
        gains = combined_gains(gains, reference)
    for i, (frame, gain) in enumerate(zip(stats, gains, strict=True)):
        if i == reference:
            scale[i], offset[i] = 1.0, 0.0
        elif gain.supported or (combined and usable(gain)):
            scale[i] = gain.factor
            offset[i] = frame_offset(frame, stats[reference], transforms[i] @ from_grid, scale[i])
    if links:
        found = offsets_through(links, stats, transforms, scale, reference)
        offset = np.where(np.isfinite(found), found, offset)
    return scale, offset, gains


class _Match(NamedTuple):
    """Normalisation of all frames: scale and offset (N, C), the method, what to say of it, why frames have none."""

    scale: np.ndarray
    offset: np.ndarray
    method: NormalizeName
    notes: list[str]
    reasons: dict[int, str]


def match_levels(
    spec: StackSpec,
    stats: Sequence[FrameStats],
    transforms: Sequence[np.ndarray],
    reference: int,
    distortion: Sequence[np.ndarray | None],
) -> _Match:
    """Apply the normalisation asked for; ``auto`` is photometric where the stars support it, else additive_scaling."""
    if spec.is_bounded_by_stars:
        return _bounded_by_stars(spec, stats, transforms, reference, distortion)
    if spec.normalize not in STAR_NORMALISATIONS:
        return _Match(*normalisation(spec, stats, reference), spec.normalize, [], {})
    is_auto = spec.normalize == "auto"
    scale, offset, gains = photometric(
        stats, transforms, reference, distortion, combined=is_auto, through_others=spec.framing == "union"
    )
    poor = [i for i, gain in enumerate(gains) if not (gain.supported or (is_auto and usable(gain)))]
    reasons = {i: why_no_gain(gains[i]) for i in poor}
    too_poor = len(poor) >= MAX_POOR_SHARE * len(stats) or not gains[reference].supported
    if is_auto and too_poor:
        fallback = replace(spec, normalize="additive_scaling")
        example = f", as {why_no_gain(gains[poor[0]])}" if poor else ""
        note = f"normalisation auto took additive_scaling: {len(poor)} of {len(stats)} frames have no gain{example}"
        return _Match(*normalisation(fallback, stats, reference), "additive_scaling", [note], {})
    notes = []
    if is_auto:
        stars = int(np.median([gain.pairs.min() for gain in gains]))
        lowest, highest = np.nanmin(scale), np.nanmax(scale)
        notes = [f"normalisation auto took photometric: {stars} stars a frame, gains {lowest:.4g} to {highest:.4g}"]
        leaning = [gain for gain in gains if not gain.supported and usable(gain)]
        if leaning:
            worst = 100 * max(float(gain.error.max()) for gain in leaning)
            notes.append(
                f"gains: the stars of {len(leaning)} of {len(gains)} frames tell theirs too roughly to stand alone; "
                f"combined with the frames before and after they are good to {worst:.1f} % or better"
            )
    return _Match(scale, offset, "photometric", notes, reasons)


def _bounded_by_stars(
    spec: StackSpec,
    stats: Sequence[FrameStats],
    transforms: Sequence[np.ndarray],
    reference: int,
    distortion: Sequence[np.ndarray | None],
) -> _Match:
    """Normalise by percentiles, but take a frame's scale and offset from its stars where they contradict.

    They do where, in a channel, the two scales differ by more than ``MAX_STAR_SIGMAS`` errors of the star gain and
    ``MAX_STAR_MISFIT``. A frame whose stars give no gain keeps what the percentiles say.
    """
    scale, offset = normalisation(spec, stats, reference)
    by_stars, star_offset, gains = photometric(stats, transforms, reference, distortion)
    corrected = []
    for i, gain in enumerate(gains):
        if i == reference or not gain.supported or not np.isfinite(star_offset[i]).all():
            continue
        misfit = np.abs(scale[i] / by_stars[i] - 1.0)
        if np.any(misfit > np.maximum(MAX_STAR_SIGMAS * gain.error, MAX_STAR_MISFIT)):
            corrected.append(float(misfit.max()))
            scale[i], offset[i] = by_stars[i], star_offset[i]
    notes = []
    if corrected:
        notes = [
            f"normalisation {spec.normalize}: the stars contradict the scales of {len(corrected)} of {len(stats)} "
            f"frames, by up to {100 * max(corrected):.0f} %; those take gain and offset from the stars"
        ]
    return _Match(scale, offset, spec.normalize, notes, {})


def why_no_gain(gain: Gain) -> str:
    """Say why the stars give no gain, and what to choose instead."""
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
