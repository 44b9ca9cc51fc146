"""The sky of a field that wanders: a low-order surface for every frame, so that it does not step where frames end.

What two frames show of one patch of sky differs by their gradients. Surfaces of all frames are solved for together,
from the differences of many pairs, by least squares (as Montage rectifies backgrounds, Berriman et al. 2003, with all
pairs at once).

A slope that all frames have alike, fixed to the camera, cannot be told from pairs: it makes each frame differ from the
next by a level, and adds up to a ramp over the whole field. It is the median of the frames' own slopes, since what is
fixed to the sky lies elsewhere in every frame. Surfaces are held to that, as far as pairs say how much they vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.photometry.flatten import TERMS, FlattenedSource
from zemosaic_phase3.photometry.overlaps import overlap_by_little, pairs_of
from zemosaic_phase3.photometry.star_gain import sky_difference
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.robust import MAD_TO_SIGMA

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from zemosaic_phase3.io.frame import FrameSource
    from zemosaic_phase3.records import FrameStats, FrameTable

FEWEST_CELLS: Final = 4  # patches of sky that two frames must share to be compared
PLANE_CELLS: Final = 8  # and for a plane through their differences
QUADRATIC_CELLS: Final = 24  # and for a surface of second order
CLIP: Final = 3.0  # units of the residuals' own sigma, patches beyond are not followed
ROUNDS: Final = 3
LEAST_SPREAD: Final = 0.02  # of the noise of a patch: terms are not held tighter to 0


class Patches(NamedTuple):
    """Patches of sky that two frames show: the frames, where it lies in each, and by how much they differ.

    ``first``, ``second (n,)``: frames; ``at_first``, ``at_second (n, TERMS)``: terms of their surfaces there;
    ``difference (n, C)``: level in the first less that in the second, matched, ADU.
    """

    first: np.ndarray
    second: np.ndarray
    at_first: np.ndarray
    at_second: np.ndarray
    difference: np.ndarray


def surface_terms(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return 1, u, v, u^2, u v, v^2 at pixels (n, 2) of a frame of (width, height), (n, 6); u and v go from -1 to 1."""
    half = (np.array(size, np.float64) - 1.0) / 2.0
    u, v = ((xy - half) / half).T
    return np.stack((np.ones_like(u), u, v, u * u, u * v, v * v), axis=-1)


def common_patches(
    stats: Sequence[FrameStats], table: FrameTable, reference: int, size: tuple[int, int]
) -> tuple[Patches | None, np.ndarray]:
    """Compare the skies of pairs of frames; returns the patches, and what single pairs say of the terms.

    Returns
    -------
    patches : Patches or None
        None: no two frames share enough sky.
    seen : ndarray (pairs, C, TERMS) float64
        Terms of a surface through the differences of each pair, ADU.
    """
    parts, seen = [], []
    for first, second, matrix in pairs_of(stats, list(table.transform), reference):
        ratio = table.scale[second] / table.scale[first]
        xy, missing = sky_difference(stats[second], stats[first], matrix, ratio)
        difference = missing * table.scale[first] + table.offset[first] - table.offset[second]
        known = np.isfinite(difference).all(axis=1)
        n = int(np.count_nonzero(known))
        if n < FEWEST_CELLS:
            continue
        here, there = surface_terms(xy[known], size), surface_terms(transform_points(matrix, xy[known]), size)
        parts.append((np.full(n, first), np.full(n, second), here, there, difference[known]))
        n_terms = TERMS if n >= QUADRATIC_CELLS else 3
        if n >= PLANE_CELLS:
            fit = np.zeros((difference.shape[1], TERMS))
            fit[:, :n_terms] = np.linalg.lstsq(here[:, :n_terms], difference[known], rcond=None)[0].T
            seen.append(fit)
    if not parts or not seen:
        return None, np.empty((0, table.scale.shape[1], TERMS))
    return Patches(*(np.concatenate(values) for values in zip(*parts, strict=True))), np.stack(seen)


def common_surface(stats: Sequence[FrameStats], table: FrameTable, size: tuple[int, int]) -> np.ndarray:
    """Return the surface that the frames' own skies have in common, (C, TERMS), ADU, without its level."""
    own = []
    for frame, scale in zip(stats, table.scale, strict=True):
        rows, columns, channels = frame.sky_mesh.shape
        y, x = np.mgrid[:rows, :columns]
        xy = np.column_stack((x.ravel(), y.ravel())) * frame.sky_cell + (frame.sky_cell - 1.0) / 2.0
        sky = frame.sky_mesh.reshape(-1, channels) * scale
        known = np.isfinite(sky).all(axis=1)
        n = int(np.count_nonzero(known))
        if n < PLANE_CELLS:
            continue
        n_terms = TERMS if n >= QUADRATIC_CELLS else 3
        fit = np.zeros((channels, TERMS))
        basis = surface_terms(xy[known], size)[:, :n_terms]
        fit[:, :n_terms] = np.linalg.lstsq(basis, sky[known], rcond=None)[0].T
        own.append(fit)
    found = np.median(own, axis=0) if own else np.zeros((table.scale.shape[1], TERMS))
    found[:, 0] = 0.0
    return np.asarray(found)


def mosaic_surfaces(
    stats: Sequence[FrameStats], table: FrameTable, reference: int, size: tuple[int, int]
) -> np.ndarray:
    """Return what is to be added to every frame so that overlapping ones show one sky.

    Parameters
    ----------
    stats : sequence of FrameStats
        With sky meshes, of the rows of the table.
    table : FrameTable
        Transforms, scales and offsets, which the surfaces come on top of.
    reference : int
        Its level in the middle stays as it is.
    size : tuple of int
        (width, height) of every frame, pixels.

    Returns
    -------
    ndarray (N, C, 6) float64
        Terms over coordinates from -1 to 1 of the frame, ADU as it is stored.
    """
    n, channels = table.scale.shape
    terms = np.zeros((n, channels, TERMS))
    patches, seen = common_patches(stats, table, reference, size)
    if patches is None:
        return terms
    design, common = _design(patches, n), common_surface(stats, table, size)
    for c in range(channels):
        spread = MAD_TO_SIGMA * np.median(np.abs(seen[:, c]), axis=0) / np.sqrt(2.0)  # of two frames
        found = _solved(design, patches.difference[:, c], spread, -common[c], n, reference)
        terms[:, c] = found / table.scale[:, c, None]
    return terms


def _design(patches: Patches, n_frames: int) -> csr_matrix:
    """One equation per patch: surface of the second there, less that of the first, is the difference."""
    from scipy.sparse import csr_matrix

    n = len(patches.first)
    rows = np.repeat(np.arange(n), 2 * TERMS)
    columns = np.stack([patches.first, patches.second], axis=1)[:, :, None] * TERMS + np.arange(TERMS)
    values = np.stack([-patches.at_first, patches.at_second], axis=1)
    return csr_matrix((values.reshape(-1), (rows, columns.reshape(-1))), (n, TERMS * n_frames))


def _solved(
    design: csr_matrix,
    difference: np.ndarray,
    spread: np.ndarray,
    typical: np.ndarray,
    n_frames: int,
    reference: int,
) -> np.ndarray:
    """Solve for the surfaces (N, 6) of one channel; patches that do not fit are left out.

    ``typical``, ``spread (6,)``: terms that surfaces are held to, and how much they vary; levels are free, but for the
    reference's, which is 0.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import spsolve

    kept = np.ones(len(difference), bool)
    noise = max(MAD_TO_SIGMA * float(np.median(np.abs(difference - np.median(difference)))), 1e-9)
    found = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        hold = np.zeros((n_frames, TERMS))
        hold[:, 0] = 1e-6  # a frame that shares nothing with others keeps its level
        hold[:, 1:] = (noise / np.maximum(spread[1:], LEAST_SPREAD * noise)) ** 2
        hold[reference, 0] = 1e9
        some = design[np.flatnonzero(kept)]
        normal = (some.T @ some + diags(hold.reshape(-1))).tocsc()
        found = spsolve(normal, some.T @ difference[kept] + (hold * typical).reshape(-1))
        left = np.abs(difference - design @ found)
        noise = max(MAD_TO_SIGMA * float(np.median(left[kept])), 1e-9)
        inside = left <= CLIP * noise
        if np.array_equal(inside, kept):
            break
        kept = inside
    return found.reshape(n_frames, TERMS)


def mosaic_sources(
    sources: list[FrameSource], stats: Sequence[FrameStats], table: FrameTable, reference: int
) -> tuple[list[FrameSource], list[str]] | None:
    """Return the frames of a field that wanders with one sky, and a note; None where all overlap with the reference."""
    if not overlap_by_little(stats, list(table.transform), reference):
        return None
    size = sources[reference].width, sources[reference].height
    terms = mosaic_surfaces(stats, table, reference, size)
    if not terms.any():
        return None
    middles = terms * table.scale[:, :, None]
    largest = float(np.abs(middles[:, :, 1:]).sum(axis=2).max())
    flat: list[FrameSource] = [
        FlattenedSource(source, own) if own.any() else source for source, own in zip(sources, terms, strict=True)
    ]
    return flat, [
        f"the skies of {len(flat)} frames were made alike where they overlap, by surfaces of {largest:.3g} ADU at most "
        "from a frame's middle to its corners"
    ]
