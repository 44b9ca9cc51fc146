"""Backgrounds that differ from frame to frame made alike: a low-order surface per frame, on request.

Moonlight, twilight and haze put a gradient on each frame, and it turns as the field does. The difference between a
frame's sky and the reference's, patch by patch, shows it alone: stars are not sky, and a nebula, which both frames show
with the same brightness once the gain is applied, cancels. A smooth surface through the differences is added to the
frame as it is read, before anything else is done with it, so that both devices stack the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.wrapped_frame import WrappedSource
from zemosaic_phase3.photometry.measure import SKY_CELL
from zemosaic_phase3.photometry.star_gain import sky_difference
from zemosaic_phase3.records import FrameStats, FrameTable
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.robust import MAD_TO_SIGMA

if TYPE_CHECKING:
    from collections.abc import Sequence


TERMS: Final = 6  # of a surface: 1, u, v, u^2, u v, v^2
PLANE_CELLS: Final = 12  # patches of common sky that a plane needs, else a frame is left as it is
QUADRATIC_CELLS: Final = 40  # and that a surface of second order needs
CLIP: Final = 3.0  # units of the residuals' own sigma, patches beyond are not followed
ROUNDS: Final = 5


def _basis(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Terms of a surface at positions scaled to -1 .. 1, (..., 6)."""
    u, v = np.broadcast_arrays(u, v)
    return np.stack((np.ones_like(u), u, v, u * u, u * v, v * v), axis=-1)


def _scaled(xy: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 2) of a frame of (width, height) as coordinates from -1 to 1."""
    half = (np.array(size, np.float64) - 1.0) / 2.0
    u, v = ((xy - half) / half).T
    return u, v


def surface_of(
    frame: FrameStats, reference: FrameStats, to_frame: np.ndarray, scale: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Fit what a frame lacks of the reference's sky, but for a constant, which is the normalisation's.

    Parameters
    ----------
    frame, reference : FrameStats
        With sky meshes.
    to_frame : ndarray (3, 3) float64
        Reference frame's pixel to frame's pixel.
    scale : ndarray (C,) float64
        What the frame will be multiplied by.
    size : tuple of int
        (width, height) of the frame, pixels.

    Returns
    -------
    ndarray (C, 6) float64
        Terms of the surface to add to the frame as it is stored, ADU, over coordinates from -1 to 1; its mean over the
        patches is 0. All 0 where the frames share too little sky.
    """
    xy, missing = sky_difference(frame, reference, to_frame, scale)
    u, v = _scaled(transform_points(to_frame, xy), size)
    terms = np.zeros((scale.size, TERMS))
    for c in range(scale.size):
        known = np.isfinite(missing[:, c])
        n = int(np.count_nonzero(known))
        if n < PLANE_CELLS:
            continue
        basis = _basis(u[known], v[known])[:, : TERMS if n >= QUADRATIC_CELLS else 3]
        wanted = missing[known, c] / scale[c]
        kept = np.ones(n, bool)
        for _ in range(ROUNDS):
            fit = np.linalg.lstsq(basis[kept], wanted[kept], rcond=None)[0]
            left = np.abs(wanted - basis @ fit)
            inside = left <= CLIP * MAD_TO_SIGMA * np.median(left[kept]) + 1e-9
            if np.array_equal(inside, kept) or np.count_nonzero(inside) < PLANE_CELLS:
                break
            kept = inside
        terms[c, : basis.shape[1]] = fit
        terms[c, 0] -= float(np.mean(basis @ fit))
    return terms


class FlattenedSource(WrappedSource):
    """A frame with a surface added to its pixels as they are read: of a mosaic, to each pixel that of its colour.

    Parameters
    ----------
    source : FrameSource
        The frame.
    terms : ndarray (C, 6) float64
        From :func:`surface_of`.
    """

    __slots__ = ("_terms",)

    def __init__(self, source: FrameSource, terms: np.ndarray) -> None:
        super().__init__(source, np.dtype(np.float32), f"flattened {terms.tobytes().hex()}")
        self._terms = terms

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        pixels = self.inner.read_rows(y0, y1).astype(np.float32)
        u = (np.arange(self.width) - (self.width - 1) / 2.0) / ((self.width - 1) / 2.0)
        v = (np.arange(y0, y1) - (self.height - 1) / 2.0) / ((self.height - 1) / 2.0)
        for c, (constant, by_u, by_v, by_uu, by_uv, by_vv) in enumerate(self._terms):
            rows, columns = constant + by_v * v + by_vv * v * v, by_u * u + by_uu * u * u
            surface = (rows[:, None] + columns + by_uv * (v[:, None] * u)).astype(np.float32)
            if self.cfa is None:
                target = pixels if pixels.ndim == 2 else pixels[:, :, c]
                target += surface
                continue
            for k in (k for k, colour in enumerate(self.cfa) if colour == "RGB"[c]):
                place = np.s_[(k // 2 - y0) % 2 :: 2, k % 2 :: 2]
                pixels[place] += surface[place]
        return pixels


def flattened_sources(
    sources: list[FrameSource], stats: list[FrameStats], table: FrameTable, reference: int
) -> list[FrameSource]:
    """Return the frames with their backgrounds made like the reference's.

    Parameters
    ----------
    sources, stats : lists of length N
        Of the rows of the table.
    table : FrameTable
        Transforms and scales.
    reference : int
        Row of the reference, which stays as it is.
    """
    from_grid = np.linalg.inv(table.transform[reference])
    flat = []
    for i, source in enumerate(sources):
        terms = surface_of(
            stats[i], stats[reference], table.transform[i] @ from_grid, table.scale[i], (source.width, source.height)
        )
        flat.append(FlattenedSource(source, terms) if i != reference and terms.any() else source)
    return flat


def count_flattened(sources: Sequence[FrameSource]) -> int:
    """Return how many frames get a surface."""
    return sum(isinstance(source, FlattenedSource) for source in sources)


def flatten_note(sources: Sequence[FrameSource]) -> list[str]:
    """Say where no frame got a surface, or fewer than half of those that could; the reference needs none."""
    n, others = count_flattened(sources), len(sources) - 1
    if others < 1 or 2 * n >= others:
        return []
    got = "no frame got a surface; they" if n == 0 else f"{n} of {others} frames got a surface; the others"
    return [
        f"flatten: {got} share fewer than {PLANE_CELLS} patches of {SKY_CELL} x {SKY_CELL} pixels of sky with the "
        "reference, and are stacked as they are"
    ]
