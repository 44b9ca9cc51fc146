"""Registration by the headers' WCS: the transform that two plate solutions imply, alone or as a seed for the stars.

Transforms are those of ``zemosaic_register``: (3, 3) float64, REFERENCE pixel to FRAME pixel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from zemosaic_register import (
    failed,
    fit_transform,
    grid_points,
    implausible_shape,
    inside_frame,
    transform_points,
)
from zemosaic_spec import FrameError, RegisterSpec, Registration, TransformName

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["register_wcs", "wcs_transform"]


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


def register_wcs(reference_wcs: WCS, frame_wcs: WCS, shape: tuple[int, ...], spec: RegisterSpec) -> Registration:
    """Find the transform from reference pixels to frame pixels from two WCS alone.

    ``spec.transform`` is fitted to a grid mapped through the sky; ``rms_px`` is what the model leaves over
    (distortion), pixels, not the accuracy of the WCS, which nothing here can know.

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
        matrix, rms = _fit_wcs(reference_wcs, frame_wcs, shape, kind)
    except FrameError as error:
        return failed(error.reason, method="wcs")
    if rms > spec.max_rms_px:
        return failed(
            f"{spec.transform} leaves {rms:.2f} px rms of the WCS's distortion, limit {spec.max_rms_px:g} px; "
            "try transform homography",
            rms=rms,
            method="wcs",
        )
    implausible = implausible_shape(matrix, (int(shape[0]), int(shape[1])), spec)
    if implausible:
        return failed(implausible, rms=rms, method="wcs")
    return Registration(True, matrix, "wcs", 0, rms, model=kind)


def _fit_wcs(
    reference_wcs: WCS, frame_wcs: WCS, shape: tuple[int, ...], kind: TransformName
) -> tuple[np.ndarray, float]:
    """Matrix and rms residual (px) over the common field."""
    size = (int(shape[0]), int(shape[1]))
    grid = grid_points(size, 25)
    mapped = _through_the_sky(reference_wcs.celestial, frame_wcs.celestial, grid, size)
    valid = np.all(np.isfinite(mapped), axis=1)
    common = valid & inside_frame(np.nan_to_num(mapped, nan=-1e9), size)
    if np.count_nonzero(common) < 4:
        raise FrameError("WCS", "the field does not overlap the reference's, or its WCS is wrong")
    # Points just outside the frame steady the fit where the overlap is narrow.
    matrix = fit_transform(kind, grid[valid], mapped[valid], np.ones(np.count_nonzero(valid)))
    if matrix is None:
        raise FrameError("WCS", f"its overlap with the reference is too narrow to fit a {kind}")
    squared = np.sum((transform_points(matrix, grid[common]) - mapped[common]) ** 2, axis=1)
    return matrix, math.sqrt(float(np.mean(squared)))


def _through_the_sky(reference: WCS, frame: WCS, xy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Map reference pixels to frame pixels, (n, 2) px; nan where far outside the frame or behind its sphere.

    The linear part of the frame's WCS decides first which points are near: SIP polynomials are only meant there.
    """
    from astropy.wcs import NoConvergence

    sky = _same_sky_frame(reference, frame, reference.all_pix2world(xy, 0))
    mapped = np.full(xy.shape, np.nan)
    finite = np.all(np.isfinite(sky), axis=1)
    rough = np.full(xy.shape, np.nan)
    if np.any(finite):
        rough[finite] = frame.wcs_world2pix(sky[finite], 0)
    height, width = shape
    margin = 0.25
    near = np.all((rough > [-margin * width, -margin * height]) & (rough < [1.25 * width, 1.25 * height]), axis=1)
    if np.any(near):
        try:
            mapped[near] = frame.all_world2pix(sky[near], 0, tolerance=1e-5, maxiter=50)
        except NoConvergence as error:
            raise FrameError("WCS", "its distortion (SIP) cannot be inverted in the frame; solve it again") from error
    return mapped


def _same_sky_frame(reference: WCS, frame: WCS, sky: np.ndarray) -> np.ndarray:
    """Longitude and latitude (n, 2) degrees of the reference's system in the frame's (ICRS, FK5, galactic, ...)."""
    from astropy.coordinates import SkyCoord
    from astropy.wcs.utils import wcs_to_celestial_frame

    ours, theirs = wcs_to_celestial_frame(reference), wcs_to_celestial_frame(frame)
    if ours.is_equivalent_frame(theirs):
        return sky
    moved = SkyCoord(sky[:, 0], sky[:, 1], unit="deg", frame=ours).transform_to(theirs).spherical
    return np.column_stack((moved.lon.deg, moved.lat.deg))
