"""How a simulated camera is pointed: the map from the reference's pixels to a frame's, and the WCS that goes with it.

A pointing that wanders turns the camera, so that its frames have tangent planes of their own: their maps are
homographies. Without wandering all frames lie in one plane.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.simulate.paint import map_points
from zemosaic_phase3.simulate.session import SimulationSpec

ARCSEC: Final = 206264.806  # in a radian


def pointing(spec: SimulationSpec, time: float, shift: np.ndarray) -> np.ndarray:
    """Transform reference -> frame: wandering, a rotation about the frame's centre, then a shift.

    ``time``: 0 for the first frame, 1 for the last one; ``shift (2,)``: dither, pixels.
    """
    cos, sin = (round(float(f(np.deg2rad(spec.rotation_deg * time))), 12) for f in (np.cos, np.sin))
    xc, yc = spec.centre
    dx, dy = shift
    turned = np.array(
        [[cos, -sin, xc - cos * xc + sin * yc + dx], [sin, cos, yc - sin * xc - cos * yc + dy], [0.0, 0.0, 1.0]]
    )
    if not any(spec.wander_px):
        return turned
    matrix = turned @ _turned_camera(spec, time * spec.wander_px[0], time * spec.wander_px[1])
    return np.asarray(matrix / matrix[2, 2])


def _turned_camera(spec: SimulationSpec, right_px: float, down_px: float) -> np.ndarray:
    """Homography of a camera turned by angles that are so many pixels long."""
    focal = ARCSEC / spec.scale_arcsec
    xc, yc = spec.centre
    (ca, sa), (cb, sb) = (
        tuple(round(float(f(angle / focal)), 15) for f in (np.cos, np.sin)) for angle in (right_px, down_px)
    )
    about_y = np.array([[ca, 0.0, -sa], [0.0, 1.0, 0.0], [sa, 0.0, ca]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cb, -sb], [0.0, sb, cb]])
    to_ray = np.array([[1.0 / focal, 0.0, -xc / focal], [0.0, 1.0 / focal, -yc / focal], [0.0, 0.0, 1.0]])
    from_ray = np.array([[focal, 0.0, xc], [0.0, focal, yc], [0.0, 0.0, 1.0]])
    return from_ray @ about_x @ about_y @ to_ray


def wcs_cards(spec: SimulationSpec, transform: np.ndarray, error_px: np.ndarray) -> dict[str, float | str]:
    """TAN WCS of a frame, exact but for ``error_px``: the tangent point follows the pointing, CD turns with it.

    Without wandering the tangent point is the reference's centre, with it the frame's own.
    """
    scale = spec.scale_arcsec / 3600
    centre = np.array(spec.centre)
    if any(spec.wander_px):
        crpix, (ra, dec), cd = centre + 1.0 + error_px, *_own_plane(spec, transform)
    else:
        crpix = map_points(transform, centre) + 1.0 + error_px  # FITS pixels count from 1
        ra, dec = spec.ra_deg, spec.dec_deg
        cd = np.array([[-scale, 0.0], [0.0, scale]]) @ np.linalg.inv(transform[:2, :2])
    cards: dict[str, float | str] = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg"}
    cards |= {"CRVAL1": ra, "CRVAL2": dec, "CRPIX1": float(crpix[0]), "CRPIX2": float(crpix[1])}
    return cards | {f"CD{i + 1}_{j + 1}": float(cd[i, j]) for i in (0, 1) for j in (0, 1)} | {"RADESYS": "ICRS"}


def _own_plane(spec: SimulationSpec, transform: np.ndarray) -> tuple[tuple[float, float], np.ndarray]:
    """Sky coordinates (degrees) of a frame's centre, and its CD matrix (degrees a pixel) about it."""
    back, centre = np.linalg.inv(transform), np.array(spec.centre)
    step = 100.0
    there = map_points(back, centre + step * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) - centre
    rays = _rays(np.deg2rad(spec.scale_arcsec / 3600) * there * (-1.0, 1.0), spec)
    axis = rays[0]
    ra, dec = float(np.arctan2(axis[1], axis[0])), float(np.arcsin(axis[2]))
    east, north = _east_north(ra, dec)
    xi, eta = (rays[1:] @ direction / (rays[1:] @ axis) for direction in (east, north))
    return (float(np.rad2deg(ra)) % 360.0, float(np.rad2deg(dec))), np.rad2deg(np.stack([xi, eta])) / step


def _east_north(ra: float, dec: float) -> tuple[np.ndarray, np.ndarray]:
    east = np.array([-np.sin(ra), np.cos(ra), 0.0])
    north = np.array([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)])
    return east, north


def _rays(standard: np.ndarray, spec: SimulationSpec) -> np.ndarray:
    """Return unit vectors (n, 3) of standard coordinates (n, 2), radians, about the reference's tangent point."""
    ra, dec = np.deg2rad(spec.ra_deg), np.deg2rad(spec.dec_deg)
    east, north = _east_north(ra, dec)
    axis = np.array([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    rays = axis + standard[:, :1] * east + standard[:, 1:] * north
    return np.asarray(rays / np.linalg.norm(rays, axis=1)[:, None])
