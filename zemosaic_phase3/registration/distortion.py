"""Distortion fields: what a frame's optics add to a projective map, as displacements on a coarse grid.

A frame of a tile is mapped by a matrix, which takes straight lines to straight lines. Optics do not: what they bend is
the frame's distortion field ``D``, and reference pixel p lies at ``H(p) + D(p)`` of the frame. D comes from the
distortion polynomials (SIP) of the two headers; see :func:`registration.wcs.distortion_between`.

A field is an array ``(rows, columns, 2) float32``, displacements (x, y) in pixels of the frame at the reference pixels
``(STEP * column, STEP * row)``, as many as enclose the reference's image; between the nodes it is bilinear. An array
without elements is no distortion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from zemosaic_phase3.errors import SpecError

STEP: Final = 64  # pixels between nodes; a power of two, so that places between them are exact
NEGLIGIBLE: Final = 0.01  # px: a distortion that is nowhere larger is none
NO_DISTORTION: Final = np.empty((0, 0, 2), np.float32)
NO_DISTORTION.flags.writeable = False


def field_shape(height: int, width: int) -> tuple[int, int, int]:
    """Return the shape of the field of a reference of this size."""
    return (height - 1) // STEP + 2, (width - 1) // STEP + 2, 2


def nodes(height: int, width: int) -> np.ndarray:
    """Return the reference pixels at which a field is given, ``(rows, columns, 2) float64``."""
    rows, columns, _ = field_shape(height, width)
    x, y = np.meshgrid(STEP * np.arange(columns, dtype=np.float64), STEP * np.arange(rows, dtype=np.float64))
    return np.stack((x, y), axis=2)


def make_field(displacements: np.ndarray) -> np.ndarray:
    """Return the field of displacements at the nodes, those that are not finite taken from the nearest that is.

    Parameters
    ----------
    displacements : ndarray (rows, columns, 2) float64
        Pixels of the frame; not finite where the frame's sky is not defined.

    Returns
    -------
    ndarray (rows, columns, 2) float32
        Without elements where no displacement is larger than ``NEGLIGIBLE``.
    """
    from scipy.ndimage import distance_transform_edt

    known = np.isfinite(displacements).all(axis=2)
    if not known.any() or np.abs(displacements[known]).max() < NEGLIGIBLE:
        return NO_DISTORTION
    if not known.all():
        nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
        displacements = displacements[nearest[0], nearest[1]]
    return _read_only(displacements)


def _read_only(field: np.ndarray) -> np.ndarray:
    """Return a field as kernels take it: all of one type, so that they are compiled once."""
    field = np.ascontiguousarray(field, np.float32).view()
    field.flags.writeable = False
    return field


def displacement(field: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Interpolate a field.

    Parameters
    ----------
    field : ndarray (rows, columns, 2) float32
        Displacements, pixels.
    xy : ndarray (n, 2) float64
        Reference pixels; outside the grid the nearest cell goes on.

    Returns
    -------
    ndarray (n, 2) float64
        Displacements, pixels.
    """
    if field.size == 0:
        return np.zeros(xy.shape)
    cell = np.clip((xy // STEP).astype(np.int64), 0, (field.shape[1] - 2, field.shape[0] - 2))
    part = xy / STEP - cell
    column, row = cell.T
    wide = field.astype(np.float64)
    f, g = part[:, :1], part[:, 1:]
    above = wide[row, column] + f * (wide[row, column + 1] - wide[row, column])
    below = wide[row + 1, column] + f * (wide[row + 1, column + 1] - wide[row + 1, column])
    return above + g * (below - above)


def moved_field(field: np.ndarray, shift: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a field for a reference whose pixels lie ``shift`` (x, y) further: what was at p + shift is at p.

    ``height`` and ``width`` of the reference; the shift in its pixels.
    """
    if field.size == 0 or not np.any(shift):
        return field
    places = nodes(height, width)
    return _read_only(displacement(field, places.reshape(-1, 2) + shift).reshape(places.shape))


def reach(field: np.ndarray) -> float:
    """Return by how many rows of a frame its field displaces a pixel at most."""
    return float(np.abs(field[..., 1]).max(initial=0.0))


def steepest(field: np.ndarray) -> float:
    """Return by how much a field stretches a distance at most, as a part of it."""
    return max((float(np.abs(np.diff(field, axis=axis)).max(initial=0.0)) / STEP for axis in (0, 1)), default=0.0)


def checked_fields(fields: Sequence[np.ndarray | None], height: int, width: int) -> list[np.ndarray]:
    """Return the fields of a stack's frames as the engines take them; an empty list where no frame has one.

    Raises
    ------
    SpecError
        A field was made for an image of another size, or is not finite.
    """
    found = [NO_DISTORTION if f is None or f.size == 0 else _read_only(f) for f in fields]
    for field in found:
        if field.size and field.shape != field_shape(height, width):
            raise SpecError(
                f"a distortion field of shape {field.shape} is not that of an image of {width} x {height} pixels, "
                f"{field_shape(height, width)}"
            )
        if not np.isfinite(field).all():
            raise SpecError("a distortion field has displacements that are not finite; make it with make_field")
    return found if any(field.size for field in found) else []
