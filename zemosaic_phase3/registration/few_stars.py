"""Frames with fewer stars than a fit needs, whose place a WCS tells: what the few stars say to that.

Programs copy the last plate solution into the headers of all later frames, and a mount's idea of where it points may be
minutes of arc off. Two stars are enough to contradict a WCS, and three or four that keep their distances, on top of its
scale and rotation, to correct it by a shift.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.records import Registration
from zemosaic_phase3.registration.distortion import NO_DISTORTION, displacement
from zemosaic_phase3.registration.false_alarms import log10_of_chance
from zemosaic_phase3.registration.match import failed, register_stars
from zemosaic_phase3.registration.star_pairs import (
    MAX_LOG10_CHANCE,
    STATIONARY_RADIUS,
    without_defects,
)
from zemosaic_phase3.registration.transform import inside_frame, transform_points
from zemosaic_phase3.spec import RegisterSpec

FEW: Final = 6  # stars; where there are fewer, a WCS is compared with them rather than refined by them
WCS_ERROR: Final = 3.0  # px, that a plate solution may be off
WORTH_A_SHIFT: Final = 0.5  # px, that stars must be off to correct it
SHIFT_RADIUS: Final = 1.0  # px, stars of one shift agree to this
TRIED: Final = 12  # brightest stars of each frame that shifts are looked for with
LEAST_TURNED: Final = 5  # stars that a rotation of their own needs; with four chance is never excluded
LEAST_CONFIRMED: Final = 4  # stars that must be where a WCS says, to believe it against a match that failed
MOST_MISSING: Final = 0.5  # of the stars visible in both, that may not be there
SURE: Final = 0.15  # px, centroid error of a star that is none by chance
SAME_DIMMING: Final = math.log(2.5)  # that the flux ratios of true pairs may differ by
DENIED: Final = "its stars deny its WCS"


class _Shift(NamedTuple):
    """A common shift of stars against their predicted places: (dx, dy) px, the pairs that agree, their rms, px."""

    shift: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray
    rms: float


def check_by_stars(
    reference: StarList, frame: StarList, shape: tuple[int, ...], spec: RegisterSpec, by_wcs: Registration
) -> Registration:
    """Compare what a WCS says with stars too few to register by.

    Parameters
    ----------
    reference, frame : StarList
        Stars of the reference and of the frame, one of them with fewer than ``spec.min_matched``.
    shape : tuple of int
        (H, W) of both frames, pixels.
    spec : RegisterSpec
        Limits.
    by_wcs : Registration
        From :func:`registration.wcs.register_wcs`; ``ok``.

    Returns
    -------
    Registration
        That of the stars, with the scale and rotation of the WCS and a shift of their own, where three or more agree on
        one that is worth it and chance cannot have made it; or with a rotation of their own, which takes five.
        ``by_wcs`` itself where the stars do not contradict it: as many are where it says as agree on anything else, or
        there are none to tell. Else a failed one, whose reason begins with :data:`DENIED`.
    """
    ours, theirs = without_defects(reference, frame, by_wcs.transform)
    predicted = _predicted(by_wcs, ours)
    size = (int(shape[0]), int(shape[1]))
    seen = inside_frame(predicted, size)
    agreeing = _pairs(predicted, theirs.xy, np.zeros(2), WCS_ERROR)[0]
    best = _common_shift(ours, theirs, predicted)
    n, off = len(best.ours), math.hypot(*best.shift)
    if n > 1 and off > WORTH_A_SHIFT:
        chance = _chance_of_shift(n, int(np.count_nonzero(seen)), len(theirs), size, len(ours))
        if n >= max(3, len(agreeing)) and chance <= MAX_LOG10_CHANCE and best.rms <= spec.max_rms_px:
            matrix = np.array([[1.0, 0.0, best.shift[0]], [0.0, 1.0, best.shift[1]], [0.0, 0.0, 1.0]])
            return replace(by_wcs, transform=matrix @ by_wcs.transform, method="stars", matched=n, rms_px=best.rms)
        if off > WCS_ERROR and n > len(agreeing):
            return _turned(ours, theirs, shape, spec) or failed(
                f"{DENIED}: {n} of them lie {off:.1f} px from where it puts them, and are too few to register by "
                f"(p = 1e{chance:+.1f}, limit 1e{MAX_LOG10_CHANCE:+.0f})",
                n,
                best.rms,
            )
    back = inside_frame(transform_points(np.linalg.inv(by_wcs.transform), theirs.xy), size)
    sure = min(np.count_nonzero(seen & (ours.sigma < SURE)), np.count_nonzero(back & (theirs.sigma < SURE)))
    if len(agreeing) == 0 and sure >= 2:
        return _turned(ours, theirs, shape, spec) or failed(
            f"{DENIED}: none of its {len(theirs)} stars is within {WCS_ERROR:g} px of where it puts one"
        )
    return by_wcs


def _turned(ours: StarList, theirs: StarList, shape: tuple[int, ...], spec: RegisterSpec) -> Registration | None:
    """Return the registration by the stars alone, where five are enough."""
    found = register_stars(ours, theirs, shape, replace(spec, min_matched=min(spec.min_matched, LEAST_TURNED)))
    return found if found.ok else None


def confirm_by_stars(
    reference: StarList, frame: StarList, shape: tuple[int, ...], by_wcs: Registration
) -> Registration | None:
    """Return the WCS's registration where so many stars are where it says that chance cannot have put them there.

    A fit must win over all the others that were tried, and a dozen stars may be too few for that. A WCS is one
    prediction, with nothing fitted.

    Returns
    -------
    Registration or None
        ``by_wcs`` with the number of stars that confirm it and their rms distance from it; None: they do not.
    """
    ours, theirs = without_defects(reference, frame, by_wcs.transform)
    predicted = _predicted(by_wcs, ours)
    size = (int(shape[0]), int(shape[1]))
    seen = inside_frame(predicted, size)
    i, j = _pairs(predicted, theirs.xy, np.zeros(2), WCS_ERROR)
    back = inside_frame(transform_points(np.linalg.inv(by_wcs.transform), theirs.xy), size)
    visible = min(np.count_nonzero(seen), np.count_nonzero(back))
    if len(i) < max(LEAST_CONFIRMED, (1.0 - MOST_MISSING) * visible):
        return None
    if np.hypot(*(predicted[i] - ours.xy[i]).T).max() < STATIONARY_RADIUS:
        return None  # they may be defects of the sensor
    probability = 1.0 - math.exp(-len(theirs) * math.pi * WCS_ERROR**2 / (size[0] * size[1]))
    if log10_of_chance(len(i), int(np.count_nonzero(seen)), probability, 1.0) > MAX_LOG10_CHANCE:
        return None
    rms = math.sqrt(float(np.mean(np.sum((theirs.xy[j] - predicted[i]) ** 2, axis=1))))
    return replace(by_wcs, matched=len(i), rms_px=rms)


def _predicted(by_wcs: Registration, stars: StarList) -> np.ndarray:
    """Return where a WCS puts stars of the reference in the frame, (n, 2) px."""
    field = NO_DISTORTION if by_wcs.distortion is None else by_wcs.distortion
    mapped = transform_points(by_wcs.transform, stars.xy)
    return mapped + displacement(field, stars.xy) if field.size and len(mapped) else mapped


def _pairs(predicted: np.ndarray, found: np.ndarray, shift: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of mutually nearest stars within a radius, px."""
    none = np.empty(0, np.intp)
    if not (len(predicted) and len(found)):
        return none, none
    distance = np.hypot(*np.moveaxis(found[None] - (predicted + shift)[:, None], 2, 0))
    i = np.arange(len(predicted))
    j = distance.argmin(axis=1)
    mutual = (distance.argmin(axis=0)[j] == i) & (distance[i, j] <= radius)
    return i[mutual], j[mutual]


def _common_shift(ours: StarList, theirs: StarList, predicted: np.ndarray) -> _Shift:
    """Return the shift that brings most bright stars together, dimmed alike."""
    none = np.empty(0, np.intp)
    best = _Shift(np.zeros(2), none, none, math.inf)
    found = theirs.xy[:TRIED]
    for shift in (found[None] - predicted[:TRIED, None]).reshape(-1, 2):
        i, j = none, none
        for _ in range(2):
            i, j = _pairs(predicted[:TRIED], found, shift, SHIFT_RADIUS)
            dimming = np.log(theirs.flux[j] / ours.flux[i])
            alike = np.abs(dimming - np.median(dimming)) < SAME_DIMMING if len(i) else np.empty(0, bool)
            i, j = i[alike], j[alike]
            if len(i):
                shift = np.mean(found[j] - predicted[i], axis=0)
        if len(i) >= max(2, len(best.ours)):
            rms = math.sqrt(float(np.mean(np.sum((found[j] - predicted[i] - shift) ** 2, axis=1))))
            if len(i) > len(best.ours) or rms < best.rms:
                best = _Shift(shift, i, j, rms)
    return best


def _chance_of_shift(matched: int, visible: int, found: int, size: tuple[int, int], known: int) -> float:
    """Return log10 of how many shifts as good as this unrelated stars would give: one pair of a shift is free."""
    probability = 1.0 - math.exp(-min(found, TRIED) * math.pi * SHIFT_RADIUS**2 / (size[0] * size[1]))
    trials = min(found, TRIED) * min(known, TRIED)
    candidates = max(min(max(visible, matched), TRIED) - 1, matched - 1)
    return log10_of_chance(matched - 1, candidates, probability, trials)
