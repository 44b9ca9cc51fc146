"""The WCS of many frames made one: each carried to the reference by the frame's registration, their robust mean.

A plate solution of a short exposure is off by a part of a pixel, and one that a mount or a blind solver wrote by some.
The errors of n frames are independent, and their mean is off by the root of n less. What each says is compared on a
grid of the reference's image, where a shift, a rotation and a scale all show as pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.records import Registration, SkySolution
from zemosaic_phase3.registration.distortion import NO_DISTORTION, displacement
from zemosaic_phase3.registration.transform import grid_points, inside_frame, transform_points
from zemosaic_phase3.registration.wcs import celestial_part, in_system_of

if TYPE_CHECKING:
    from astropy.wcs import WCS

GRID: Final = 5  # places along each side of the reference's image
LEAST_SEEN: Final = 0.5  # of those places, that a frame must show for its solution to be carried
LEAST_SOLUTIONS: Final = 3  # of two that disagree, none is known to be wrong
FAR: Final = 5.0  # medians of the distance from the mean, beyond which a solution is wrong (of 12 good ones 1 in 6,000)
FINEST: Final = 0.1  # px, a distance that makes no solution wrong
AGREE: Final = 0.1  # px, scatter below which the solutions say the same, and the reference's own stays as it is
BENT: Final = 0.05  # px, that the mean WCS may be off from the mean of the solutions


class Combined(NamedTuple):
    """A WCS made of many: how many, the positions of those left out, and the rms scatter per axis of the others, px."""

    wcs: WCS
    n: int
    spread: float
    wrong: list[int]


def mark_of(wcs: WCS) -> str:
    """Return a text that two WCS share if one is a copy of the other; a distortion is left aside."""
    numbers = (wcs.wcs.crval, wcs.wcs.crpix, celestial_part(wcs).pixel_scale_matrix)
    return " ".join(repr(float(v)) for each in numbers for v in np.ravel(each))


def solution_of(wcs: WCS, reference: WCS, registration: Registration, shape: tuple[int, ...]) -> SkySolution | None:
    """Return where a frame's WCS puts the reference's image, carried there by the frame's registration.

    Parameters
    ----------
    wcs, reference : astropy.wcs.WCS
        Celestial, of the frame and of the reference; the result is in the system of the latter.
    registration : Registration
        Of the frame, by its stars.
    shape : tuple of int
        (H, W) of both, pixels.

    Returns
    -------
    SkySolution or None
        None where the frame shows less than half of the reference's image, or its WCS cannot be evaluated.
    """
    size = (int(shape[0]), int(shape[1]))
    grid = grid_points(size, GRID)
    field = NO_DISTORTION if registration.distortion is None else registration.distortion
    places = transform_points(registration.transform, grid) + displacement(field, grid)
    seen = inside_frame(places, size)
    if np.count_nonzero(seen) < LEAST_SEEN * len(grid):
        return None
    sky = np.full(grid.shape, np.nan)
    try:
        frame = celestial_part(wcs)
        sky[seen] = in_system_of(frame, celestial_part(reference), frame.all_pix2world(places[seen], 0))
        mark = mark_of(wcs)
    except Exception:  # noqa: BLE001 - a header's WCS may be anything, and wcslib fails in many ways
        return None
    return SkySolution(mark, sky) if np.isfinite(sky[seen]).all() else None


def combined_wcs(
    reference: WCS, solutions: Sequence[SkySolution | None], own: int, size: tuple[int, int]
) -> Combined | None:
    """Return the robust mean of what frames say of the sky in the reference's image.

    Parameters
    ----------
    reference : astropy.wcs.WCS
        Celestial, of the reference, whose projection and distortion the result keeps.
    solutions : sequence of SkySolution or None
        Of the frames, from :func:`solution_of`.
    own : int
        Position of the reference's own.
    size : tuple of int
        (H, W) of the reference's image, pixels.

    Returns
    -------
    Combined or None
        None where fewer than three different solutions are known, or none can be made of them.

    Notes
    -----
    Of copies of one WCS only one counts: that of the reference if it is among them, else the one in their middle. A
    solution is an affine map of the reference's pixels onto those that the reference's WCS has for the same sky.
    Starting from the median of all, solutions whose rms distance from the mean, over the grid, is beyond five times
    the median of those distances are left out until none is.
    """
    base = celestial_part(reference)
    grid = grid_points(size, GRID)
    found = {
        k: moved for k, s in enumerate(solutions) if s is not None and (moved := _moved(base, s, grid)) is not None
    }
    if own not in found or len(found) < LEAST_SOLUTIONS:
        return None
    chosen = _without_copies({k: s.mark for k in found if (s := solutions[k]) is not None}, found, own)
    if len(chosen) < LEAST_SOLUTIONS:
        return None
    moved = np.stack([found[k] for k in chosen])
    kept, mean = _robust_mean(moved)
    n, wrong = int(kept.sum()), [k for k, good in zip(chosen, kept, strict=True) if not good]
    spread = float(np.sqrt(np.sum((moved[kept] - mean) ** 2) / (2.0 * len(grid) * max(1, n - 1))))
    if spread < AGREE and own not in wrong:
        return Combined(reference, 1, spread, wrong)
    wcs = _displaced(base, grid, mean)
    return None if wcs is None else Combined(wcs, n, spread, wrong)


def _moved(base: WCS, solution: SkySolution, grid: np.ndarray) -> np.ndarray | None:
    """Return by how much the pixels that the base has for a solution's sky lie from the grid, (places, 2) px."""
    known = np.isfinite(solution.sky).all(axis=1)
    if solution.sky.shape != grid.shape:
        return None
    try:
        ours = base.all_pix2world(grid[known], 0)
        plane = _plane(base, base.wcs.crval)
        apart = plane.wcs_world2pix(solution.sky[known], 0) - plane.wcs_world2pix(ours, 0)
        apart = apart @ np.linalg.inv(base.pixel_scale_matrix).T
    except Exception:  # noqa: BLE001 - on the other side of the sphere, say
        return None
    if not np.isfinite(apart).all():
        return None
    terms = np.column_stack((np.ones(len(grid)), grid - grid.mean(axis=0)))
    fitted, _, rank, _ = np.linalg.lstsq(terms[known], apart, rcond=None)
    return np.asarray(terms @ fitted) if rank == terms.shape[1] else None


def _without_copies(marks: dict[int, str], moved: dict[int, np.ndarray], own: int) -> list[int]:
    """Return the positions of one solution of each mark."""
    of_mark: dict[str, list[int]] = {}
    for k, mark in marks.items():
        of_mark.setdefault(mark, []).append(k)
    chosen = []
    for members in of_mark.values():
        if own in members:
            chosen.append(own)
            continue
        middle = np.median(np.stack([moved[k] for k in members]), axis=0)
        chosen.append(min(members, key=lambda k: (float(np.sum((moved[k] - middle) ** 2)), k)))
    return sorted(chosen)


def _robust_mean(moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of (n, places, 2) are kept, and their mean."""
    mean = np.median(moved, axis=0)
    kept = np.ones(len(moved), bool)
    for _ in range(10):
        distance = np.sqrt(np.mean(np.sum((moved - mean) ** 2, axis=2), axis=1))
        near = distance <= max(FAR * float(np.median(distance)), FINEST)
        mean = moved[near].mean(axis=0)
        if np.array_equal(near, kept):
            break
        kept = near
    return kept, mean


def _plane(base: WCS, crval: np.ndarray) -> WCS:
    """Return a base's projection alone around a place: its pixels are degrees in the plane, from (0, 0)."""
    plane = base.deepcopy()
    plane.sip = plane.cpdis1 = plane.cpdis2 = plane.det2im1 = plane.det2im2 = None
    plane.wcs.ctype = [str(name).removesuffix("-SIP") for name in base.wcs.ctype]
    plane.wcs.crval, plane.wcs.crpix = crval, [1.0, 1.0]
    _set_matrix(plane, np.eye(2))
    return plane


def _set_matrix(wcs: WCS, matrix: np.ndarray) -> None:
    """Give a WCS a linear part, degrees a pixel."""
    if wcs.wcs.has_cd():
        wcs.wcs.cd = matrix
    else:
        wcs.wcs.cdelt, wcs.wcs.pc = [1.0, 1.0], matrix
    wcs.wcs.set()


def _displaced(base: WCS, grid: np.ndarray, moved: np.ndarray) -> WCS | None:
    """Return the WCS that puts the grid where the base puts places so far from it; None where none does.

    The reference pixel stays, for the distortion belongs to the detector and is centred on it.
    """
    from astropy.wcs import WCS as make_wcs  # noqa: N811 - the name is taken by the type

    try:
        wcs = base.deepcopy()
        if not (wcs.wcs.has_cd() or wcs.wcs.has_pc()):  # CROTA
            wcs = make_wcs(base.to_header(relax=True))
        aim = base.all_pix2world(grid + moved, 0)
        focal = _plane(base, base.wcs.crval).wcs_world2pix(base.all_pix2world(grid, 0), 0)
        focal = focal @ np.linalg.inv(base.pixel_scale_matrix).T
        crval = np.array(base.wcs.crval)
        terms = np.column_stack((np.ones(len(focal)), focal))
        for _ in range(4):
            plane = _plane(base, crval)
            fitted = np.linalg.lstsq(terms, plane.wcs_world2pix(aim, 0), rcond=None)[0]
            matrix = fitted[1:].T
            crval = plane.wcs_pix2world(fitted[:1], 0)[0]
        wcs.wcs.crval = crval
        _set_matrix(wcs, matrix)
        wcs.pixel_shape = base.pixel_shape
        off = wcs.all_pix2world(grid, 0) - aim
        off[:, 0] -= 360.0 * np.round(off[:, 0] / 360.0)
        off[:, 0] *= np.cos(np.radians(aim[:, 1]))
        side = np.sqrt(abs(np.linalg.det(matrix)))
    except Exception:  # noqa: BLE001 - a header's WCS may be anything, and wcslib fails in many ways
        return None
    return wcs if np.abs(off).max() <= BENT * side else None
