"""Registration by the headers' WCS: the transform that two plate solutions imply, alone or as a seed for the stars.

Transforms are those of ``registration.match``: (3, 3) float64, REFERENCE pixel to FRAME pixel.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.methods import TransformName
from zemosaic_phase3.records import Canvas, Registration
from zemosaic_phase3.registration.distortion import NO_DISTORTION, STEP, displacement, make_field, nodes, steepest
from zemosaic_phase3.registration.match import failed, implausible_shape, register_stars
from zemosaic_phase3.registration.star_pairs import without_defects
from zemosaic_phase3.registration.transform import fit_transform, grid_points, inside_frame, transform_points
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from zemosaic_phase3.detection.star_finder import StarList


SETTLED: Final = 1.0  # px: a seed that was wrong by less has displaced stars by less than a hundredth of it
REFINEMENTS: Final = 3  # rounds of displacing and registering
FEWER: Final = 0.9  # part of the matched stars below which a smaller rms proves nothing

NODE_MARGIN: Final = 2 * STEP  # px outside a frame within which its distortion is still looked up


def wcs_transform(
    reference_wcs: WCS, frame_wcs: WCS, shape: tuple[int, ...], kind: TransformName = "affine"
) -> np.ndarray:
    """Return the transform reference pixel -> frame pixel that two WCS imply, (3, 3) float64.

    Parameters
    ----------
    reference_wcs, frame_wcs : astropy.wcs.WCS
        Celestial WCS, SIP allowed.
    shape : tuple of int
        (H, W) of both frames, pixels.
    kind : str
        Model fitted to the map.

    Raises
    ------
    FrameError
        The fields do not overlap, or the WCS cannot be evaluated there.
    """
    return _fit_wcs(reference_wcs, frame_wcs, shape, kind)[0]


def celestial_part(wcs: WCS) -> WCS:
    """Return the two celestial axes of a WCS, longitude first: itself where it has no others."""
    return wcs if wcs.naxis == 2 and wcs.wcs.lng == 0 and wcs.wcs.lat == 1 else wcs.celestial


def distortion_between(reference_wcs: WCS, frame_wcs: WCS, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return what a matrix leaves of the map that two WCS imply, as a field of ``registration.distortion``.

    Parameters
    ----------
    reference_wcs, frame_wcs : astropy.wcs.WCS
        Celestial WCS. Without distortion (SIP) in either there is no field.
    matrix : ndarray (3, 3) float64
        Reference pixel to frame pixel, fitted to the two, e.g. by :func:`wcs_transform`.
    shape : tuple of int
        (H, W) of both frames, pixels.

    Returns
    -------
    ndarray (rows, columns, 2) float32
        Displacements, pixels of the frame; without elements where they are negligible.

    Raises
    ------
    FrameError
        The distortion cannot be inverted.
    """
    if not (reference_wcs.has_distortion or frame_wcs.has_distortion):
        return NO_DISTORTION
    size = (int(shape[0]), int(shape[1]))
    places = nodes(*size)
    flat = places.reshape(-1, 2)
    mapped = _through_the_sky(celestial_part(reference_wcs), celestial_part(frame_wcs), flat, size, NODE_MARGIN)
    return make_field((mapped - transform_points(matrix, flat)).reshape(places.shape))


def distortion_on(
    canvas: Canvas, reference_wcs: WCS, frame_wcs: WCS, matrix: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Return a frame's field as :func:`distortion_between` does, at the nodes of a canvas.

    ``matrix``: reference pixel to frame pixel; ``shape``: of the frame. Beyond its own image the distortion of the
    reference goes on as its polynomials do, and the result's WCS with it.
    """
    size = (int(shape[0]), int(shape[1]))
    places = nodes(*canvas.shape)
    flat = transform_points(canvas.to_reference, places.reshape(-1, 2))
    mapped = _through_the_sky(reference_wcs.celestial, frame_wcs.celestial, flat, size, NODE_MARGIN)
    return make_field((mapped - transform_points(matrix, flat)).reshape(places.shape))


def register_wcs(reference_wcs: WCS, frame_wcs: WCS, shape: tuple[int, ...], spec: RegisterSpec) -> Registration:
    """Find the transform from reference pixels to frame pixels from two WCS alone.

    ``spec.transform`` is fitted to a grid mapped through the sky. What it leaves of the distortion that the headers
    describe (SIP) is the registration's field. ``rms_px`` is what both leave over, pixels, not the accuracy of the WCS,
    which nothing here can know.

    Parameters
    ----------
    reference_wcs, frame_wcs : astropy.wcs.WCS
        Celestial WCS, SIP allowed.
    shape : tuple of int
        (H, W) of both frames, pixels.
    spec : RegisterSpec
        Model and limits.

    Returns
    -------
    Registration
        ``method`` "wcs", ``matched`` 0.
    """
    try:
        # Between two tangent planes a homography is exact.
        kind: TransformName = "homography" if spec.transform == "auto" else spec.transform
        matrix, common, mapped = _fit_wcs(reference_wcs, frame_wcs, shape, kind)
        field = distortion_between(reference_wcs, frame_wcs, matrix, shape)
    except FrameError as error:
        return failed(error.reason, method="wcs")
    except (ValueError, ArithmeticError, MemoryError) as error:  # wcslib's own are ValueErrors
        return failed(f"the WCS cannot be evaluated ({' '.join(str(error).split())})", method="wcs")
    squared = np.sum((transform_points(matrix, common) + displacement(field, common) - mapped) ** 2, axis=1)
    rms = math.sqrt(float(np.mean(squared)))
    if rms > spec.max_rms_px:
        return failed(
            f"{spec.transform} leaves {rms:.2f} px rms of the map that the WCS imply, limit {spec.max_rms_px:g} px; "
            "try transform homography",
            rms=rms,
            method="wcs",
        )
    implausible = implausible_shape(matrix, (int(shape[0]), int(shape[1])), spec)
    if not implausible and steepest(field) > spec.max_scale_error:
        implausible = (
            f"the distortion (SIP) of the WCS stretches the field by {100 * steepest(field):.1f} % in places, "
            f"limit {100 * spec.max_scale_error:g} %"
        )
    if implausible:
        return failed(implausible, rms=rms, method="wcs")
    return Registration(True, matrix, "wcs", 0, rms, model=kind, distortion=field if field.size else None)


def register_stars_seeded(
    reference: StarList, frame: StarList, shape: tuple[int, ...], spec: RegisterSpec, by_wcs: Registration
) -> Registration:
    """Register by stars, starting from what the WCS say, on top of the distortion that they describe.

    The matrix ``H`` is fitted to pairs ``(p, q - D(p))``, p a star of the reference, q the same of the frame, D the
    field of ``by_wcs``. The stars are also registered without it, and where they fit better so, the headers'
    distortion is not the frame's and is left out.

    Parameters
    ----------
    reference, frame : StarList
        Stars of the reference and of the frame, brightest first.
    shape : tuple of int
        (H, W) of both frames, pixels.
    spec : RegisterSpec
        Model and limits.
    by_wcs : Registration
        From :func:`register_wcs`; ``ok``.

    Returns
    -------
    Registration
        ``method`` "stars"; with the field of ``by_wcs``, or without one.
    """
    plain = register_stars(reference, frame, shape, spec, by_wcs.transform)
    field = by_wcs.distortion
    if field is None:
        return plain
    matrix = by_wcs.transform
    ours, theirs = without_defects(reference, frame, matrix)
    grid = grid_points((int(shape[0]), int(shape[1])), 5)
    for _ in range(REFINEMENTS):
        bent = register_stars(ours, _unbent(theirs, field, matrix), shape, spec, matrix)
        if not bent.ok:
            return plain
        change = np.abs(transform_points(bent.transform, grid) - transform_points(matrix, grid)).max()
        matrix = bent.transform
        if change < SETTLED:
            break
    if plain.ok and plain.rms_px < bent.rms_px and plain.matched >= FEWER * bent.matched:
        return plain
    return replace(bent, distortion=field)


def _unbent(frame: StarList, field: np.ndarray, matrix: np.ndarray) -> StarList:
    """Return the stars of a frame where a matrix alone would have put them."""
    back, xy = np.linalg.inv(matrix), frame.xy
    straight = xy
    for _ in range(3):  # a field changes by a few percent of a distance at most, so each round gains two digits
        straight = xy - displacement(field, transform_points(back, straight))
    return replace(frame, x=straight[:, 0], y=straight[:, 1])


def _fit_wcs(
    reference_wcs: WCS, frame_wcs: WCS, shape: tuple[int, ...], kind: TransformName
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a matrix; return it, and a grid on the common field in the reference's and the frame's pixels, (n, 2) px."""
    size = (int(shape[0]), int(shape[1]))
    grid = grid_points(size, 25)
    mapped = _through_the_sky(celestial_part(reference_wcs), celestial_part(frame_wcs), grid, size)
    valid = np.all(np.isfinite(mapped), axis=1)
    common = valid & inside_frame(np.nan_to_num(mapped, nan=-1e9), size)
    if np.count_nonzero(common) < 4:
        raise FrameError("WCS", "the field does not overlap the reference's, or its WCS is wrong")
    # Points just outside the frame steady the fit where the overlap is narrow.
    matrix = fit_transform(kind, grid[valid], mapped[valid], np.ones(np.count_nonzero(valid)))
    if matrix is None:
        raise FrameError("WCS", f"its overlap with the reference is too narrow to fit a {kind}")
    return matrix, grid[common], mapped[common]


def _through_the_sky(
    reference: WCS, frame: WCS, xy: np.ndarray, shape: tuple[int, int], reach: float = 0.0
) -> np.ndarray:
    """Map reference pixels to frame pixels, (n, 2) px; nan where far outside the frame or behind its sphere.

    The linear part of the frame's WCS decides first which points are near, within a quarter of the frame or ``reach``
    pixels: SIP polynomials are only meant there.
    """
    from astropy.wcs import NoConvergence

    sky = in_system_of(reference, frame, reference.all_pix2world(xy, 0))
    mapped = np.full(xy.shape, np.nan)
    finite = np.all(np.isfinite(sky), axis=1)
    rough = np.full(xy.shape, np.nan)
    if np.any(finite):
        rough[finite] = frame.wcs_world2pix(sky[finite], 0)
    height, width = shape
    margin = np.maximum(0.25 * np.array([width, height]), reach)
    near = np.all((rough > -margin) & (rough < [width, height] + margin), axis=1)
    if np.any(near):
        try:
            mapped[near] = frame.all_world2pix(sky[near], 0, tolerance=1e-5, maxiter=50)
        except NoConvergence as error:
            raise FrameError("WCS", "its distortion (SIP) cannot be inverted in the frame; solve it again") from error
    return mapped


def in_system_of(first: WCS, second: WCS, sky: np.ndarray) -> np.ndarray:
    """Turn longitude and latitude (n, 2) deg of one WCS's system into those of another's (ICRS, FK5, galactic, ...)."""
    if all(first.wcs.ctype[k][:4] == second.wcs.ctype[k][:4] for k in (0, 1)) and (
        str(first.wcs.radesys) == str(second.wcs.radesys) == "ICRS"
    ):
        return sky
    from astropy.coordinates import SkyCoord
    from astropy.wcs.utils import wcs_to_celestial_frame

    ours, theirs = wcs_to_celestial_frame(first), wcs_to_celestial_frame(second)
    if ours.is_equivalent_frame(theirs):
        return sky
    moved = SkyCoord(sky[:, 0], sky[:, 1], unit="deg", frame=ours).transform_to(theirs).spherical
    return np.column_stack((moved.lon.deg, moved.lat.deg))
