"""The grid of a tile that holds every pixel of its frames, not only those that the reference shows too."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from zemosaic_phase3.records import Canvas, Registration
from zemosaic_phase3.registration.transform import transform_points

if TYPE_CHECKING:
    from astropy.wcs import WCS


def canvas_around(
    registered: Sequence[Registration], shape: tuple[int, ...], most: float, cut: float = 0.0
) -> Canvas | None:
    """Return the smallest canvas that holds the footprints of all frames; None where the reference's grid does.

    Parameters
    ----------
    registered : sequence of Registration
        Of the frames, on the reference.
    shape : tuple of int
        (H, W, ...) of every frame, pixels.
    most : float
        Part of the width, or the height, that the canvas may have beyond the reference on each side. What lies further
        out is lost.
    cut : float
        Part of the width, or the height, that a later phase cuts off on each side; below 1/2. An empty margin is added
        for it to take, so that it takes nothing that a frame shows.

    Notes
    -----
    A map with a distortion field is defined on the reference's grid only: with such frames there is no canvas.
    """
    if most <= 0.0 or any(r.distortion is not None for r in registered):
        return None
    height, width = shape[:2]
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], np.float64)
    seen = np.concatenate([transform_points(np.linalg.inv(r.transform), corners) for r in registered])
    limit = np.floor(most * np.array([width, height]))
    before = np.clip(np.floor(-seen.min(axis=0)), 0, limit)  # whole pixels that some frame shows
    after = np.clip(np.floor(seen.max(axis=0) - (width - 1, height - 1)), 0, limit)
    if not (np.isfinite(seen).all() and (before.any() or after.any())):
        return None
    size = np.array([width, height]) + before + after
    margin = np.ceil(size * cut / (1.0 - 2.0 * cut))
    before, size = before + margin, size + 2 * margin
    return Canvas(math.floor(size[1]), math.floor(size[0]), -float(before[0]), -float(before[1]))


def finer_canvas(canvas: Canvas | None, shape: tuple[int, ...], scale: float) -> Canvas | None:
    """Return a canvas with ``scale`` times as many pixels a side; None: the grid is the reference's, of this shape."""
    if scale == 1.0:
        return canvas
    base = Canvas(*shape[:2]) if canvas is None else canvas
    height, width = (max(1, round(size * scale)) for size in base.shape)
    return replace(base, height=height, width=width, scale=base.scale * scale)


def canvas_wcs(wcs: WCS, canvas: Canvas) -> WCS:
    """Return the WCS of a canvas, from that of the reference; SIP distortion is kept.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Of the reference; it stays as it is.
    canvas : Canvas
    """
    from astropy.wcs import Sip

    def moved_to(crpix: np.ndarray) -> np.ndarray:  # FITS counts pixels from 1, so that their edges are at halves
        return np.asarray((crpix - 0.5 - (canvas.origin_x, canvas.origin_y)) * canvas.scale + 0.5)

    moved = copy.deepcopy(wcs)
    if canvas.scale != 1.0:
        if wcs.wcs.has_cd():
            moved.wcs.cd = np.asarray(wcs.wcs.cd) / canvas.scale
        else:
            moved.wcs.cdelt = np.asarray(wcs.wcs.cdelt) / canvas.scale
    moved.wcs.crpix = moved_to(np.asarray(wcs.wcs.crpix))
    if wcs.sip is not None:  # of degree n in pixels; A and B are of pixels too
        sip = wcs.sip
        tables = [None if t is None else _scaled_terms(t, canvas.scale) for t in (sip.a, sip.b, sip.ap, sip.bp)]
        moved.sip = Sip(*tables, moved_to(np.asarray(sip.crpix)))
    moved.pixel_shape = (canvas.width, canvas.height)
    moved.wcs.set()
    return moved


def _scaled_terms(terms: np.ndarray, scale: float) -> np.ndarray:
    """Return the coefficients of a SIP polynomial, ``terms[p, q]`` of u^p v^q, for pixels ``scale`` times as many."""
    p, q = np.indices(terms.shape)
    return np.asarray(terms * scale ** (1.0 - p - q))
