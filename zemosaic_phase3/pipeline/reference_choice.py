"""Which frame the others are brought onto: one that is clear, sharp, round and central.

The tile has the reference's scale, levels, gradient and grid. A hazy reference makes a faint tile, one at the rim of
the field a lopsided one, and one whose sky is bright a tile with the worst gradient of the night. So it is chosen
twice: before the frames are registered by what their own stars show, and then by the gains of all and by where each
lies; where that finds a clearly better one, the frames are registered anew on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.photometry.star_gain import frame_gain
from zemosaic_phase3.photometry.weights import FLUX_STARS, star_widths
from zemosaic_phase3.registration.transform import transform_points

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from zemosaic_phase3.detection.star_finder import StarList
    from zemosaic_phase3.pipeline.group import Group
    from zemosaic_phase3.records import Registration

POPULATED: Final = 0.9  # of the median number of stars, that a reference has: haze hides the faint ones
CLEAREST: Final = 90.0  # percentile of the frames that stands for the clear sky: the very best may be another field
CLEAR: Final = 0.9  # of that transparency, that a reference has where gains tell
SEEMS_CLEAR: Final = 0.85  # where only the brightest stars do, which are not the same ones in every frame
CENTRAL: Final = 0.25  # diagonals from the middle of all frames, that a reference lies at most
FEWEST_SEEN: Final = 20  # stars of the poorest frame, whose fluxes tell the transparency to 15 %
OFF_CENTRE: Final = 0.2  # cost of lying there
BETTER: Final = 0.15  # of the cost, for which frames are registered once more


class Figures(NamedTuple):
    """What tells a good reference; arrays (N,) float64, NaN where not known."""

    transparency: np.ndarray  # of the air, in any unit that is one for all
    noise: np.ndarray  # of a faint star's flux, in units of the flux
    width: np.ndarray  # of the stars along their longer axis, pixels
    off: np.ndarray  # diagonals from the middle of all pointings


def costs(figures: Figures, clear: float) -> np.ndarray:
    """Return what speaks against each frame as the reference, ``(N,) float64``; infinity: it is not to be one.

    ``ln(noise) + ln(width) + 0.2 (off / 0.25)^2``, among frames that are clear and central where any are: a star should
    stand out in the reference and be sharp. What is not known of a frame counts as the median of those it is known of.

    Parameters
    ----------
    figures : Figures
    clear : float
        Fraction of the clear sky's transparency that a frame must have.
    """
    transparency, noise, width, off = (_filled(values) for values in figures)
    cost = np.log(noise) + np.log(width) + OFF_CENTRE * (off / CENTRAL) ** 2
    allowed = off <= max(CENTRAL, float(np.min(off)))
    is_clear = transparency >= clear * float(np.percentile(transparency, CLEAREST))
    if np.any(allowed & is_clear):
        allowed &= is_clear
    return np.where(allowed, cost, np.inf)


def _filled(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values) & (values >= 0.0)
    return np.where(known, values, float(np.median(values[known])) if known.any() else 1.0)


def choose_by_stars(group: Group, candidates: Sequence[int]) -> int:
    """Return the candidate that seems the best reference by its own stars and its WCS; the first if none has stars.

    Parameters
    ----------
    group : Group
        With star lists.
    candidates : sequence of int
        Positions of frames.
    """
    found = {i: stars for i in candidates if (stars := group.scan(i).stars) is not None}
    counts = np.array([stars.n_found for stars in found.values()])
    if not np.any(counts):
        return candidates[0]
    enough = counts >= max(1.0, POPULATED * float(np.median(counts[counts > 0])))
    frames = [i for i, is_enough in zip(found, enough, strict=True) if is_enough]
    lists = [found[i] for i in frames]
    flux = _brightest(lists)
    fwhm = np.array([float(np.median(each.fwhm)) for each in lists])
    eccentricity = np.array([float(np.median(each.eccentricity)) for each in lists])
    shape = group.source(frames[0]).shape
    figures = Figures(
        _per_second(group, frames, flux),
        _sky_noise(group, frames) * fwhm / flux,
        star_widths(fwhm, eccentricity, np.array([each.n_found for each in lists])),
        _off_centre(_pointings([group.wcs(i) for i in frames], shape), shape),
    )
    return frames[int(np.argmin(costs(figures, SEEMS_CLEAR)))]


def choose_by_gains(group: Group, verdicts: dict[int, Registration]) -> int:
    """Return the frame that would be the best reference; the one there is unless another is clearly better.

    Parameters
    ----------
    group : Group
        With a reference.
    verdicts : dict of int to Registration
        Of the usable frames on it.
    """
    reference = group.reference
    known = group.scan(reference).stats
    if known is None or len(known.star_xy) == 0:
        return reference
    needs_wcs = group.scan(reference).has_wcs
    frames = [i for i, v in verdicts.items() if v.ok and (group.scan(i).has_wcs or not needs_wcs)]
    stats = [group.scan(i).stats for i in frames]
    transparency, centres = np.full(len(frames), np.nan), np.full((len(frames), 2), np.nan)
    shape = group.source(reference).shape
    middle = (np.array([[shape[1], shape[0]]]) - 1.0) / 2.0
    for k, (i, own) in enumerate(zip(frames, stats, strict=True)):
        if i == reference:
            transparency[k] = 1.0
        elif own is not None:
            gain = frame_gain(own, known, verdicts[i].transform, verdicts[i].distortion)
            transparency[k] = float(np.mean(gain.area / gain.factor)) if gain.supported else math.nan
        centres[k] = transform_points(np.linalg.inv(verdicts[i].transform), middle)[0]
    fwhm, eccentricity, n_stars = (
        np.array([math.nan if s is None else getattr(s, name) for s in stats])
        for name in ("fwhm", "eccentricity", "n_stars")
    )
    width = star_widths(fwhm, eccentricity, np.nan_to_num(n_stars))
    noise = _sky_noise(group, frames) * fwhm / transparency
    cost = costs(Figures(_per_second(group, frames, transparency), noise, width, _off_centre(centres, shape)), CLEAR)
    # A frame of which nothing is known but that it registered is no better reference than the one there is.
    cost[~np.isfinite(transparency)] = np.inf
    best = int(np.argmin(cost))
    return frames[best] if cost[frames.index(reference)] - cost[best] > BETTER else reference


def _per_second(group: Group, frames: Sequence[int], flux: np.ndarray) -> np.ndarray:
    """Return fluxes over exposures: of a session with several, the air's share; as they are where one is not known."""
    seconds = np.array([group.scan(i).exposure.seconds for i in frames])
    return flux / seconds if np.all(seconds > 0.0) else flux


def _brightest(stars: Sequence[StarList]) -> np.ndarray:
    """Return the geometric mean flux of the middle half of each frame's k brightest stars, k one number for all.

    The brightest quarter may be saturated. NaN for all where a frame has too few.
    """
    k = min(FLUX_STARS, *(len(each) for each in stars))
    if k < FEWEST_SEEN:
        return np.full(len(stars), np.nan)
    return np.array([np.exp(np.mean(np.log(each.flux[k // 4 : k - k // 4]))) for each in stars])


def _sky_noise(group: Group, frames: Sequence[int]) -> np.ndarray:
    """Return the geometric mean of the channels' noise, ADU; NaN where it was not measured."""
    noise = np.full(len(frames), np.nan)
    for k, i in enumerate(frames):
        stats = group.scan(i).stats
        if stats is not None and np.all(stats.variance > 0.0):
            noise[k] = math.exp(0.5 * float(np.mean(np.log(stats.variance))))
    return noise


def _pointings(found: Sequence[WCS | None], shape: tuple[int, ...]) -> np.ndarray:
    """Return where frames point on a plane that touches the sky in their midst, ``(N, 2)`` pixels; NaN: not known."""
    directions, scales = np.full((len(found), 3), np.nan), np.full(len(found), np.nan)
    for k, wcs in enumerate(found):
        if wcs is None:
            continue
        at = wcs.wcs_pix2world([[(shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0]], 0)[0]
        lon, lat = np.radians(at[wcs.wcs.lng]), np.radians(at[wcs.wcs.lat])
        directions[k] = math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)
        scales[k] = math.radians(math.sqrt(abs(float(np.linalg.det(wcs.pixel_scale_matrix)))))
    known = np.isfinite(directions).all(axis=1) & (scales > 0.0)
    if not known.any():
        return np.full((len(found), 2), np.nan)
    towards = np.median(directions[known], axis=0)
    towards /= np.linalg.norm(towards)
    aside = np.cross(towards, np.eye(3)[int(np.argmin(np.abs(towards)))])
    aside /= np.linalg.norm(aside)
    plane = np.stack((aside, np.cross(towards, aside)), axis=1)
    return np.where(known[:, None], directions @ plane / float(np.median(scales[known])), np.nan)


def _off_centre(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return how far places (N, 2), pixels, lie from their median, in diagonals of a frame; NaN where not known."""
    known = np.isfinite(places).all(axis=1)
    if not known.any():
        return np.zeros(len(places))
    return np.hypot(*(places - np.median(places[known], axis=0)).T) / math.hypot(shape[0], shape[1])
