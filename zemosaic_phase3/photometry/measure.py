"""Measuring one frame: levels, stars, their fluxes, and the mesh of its sky."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.detection.planes import Planes, planes_of
from zemosaic_phase3.detection.sky_mesh import sky_of_planes
from zemosaic_phase3.detection.star_finder import StarList, find_stars
from zemosaic_phase3.photometry.levels import MAX_SAMPLES, levels_of_planes
from zemosaic_phase3.photometry.weights import FLUX_STARS, SHAPE_STARS
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.runtime.workspace import Workspace
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import FrameSource

LIGHT_STARS: Final = 200  # brightest stars whose fluxes are kept to compare frames by; 6 KB a frame
SKY_CELLS: Final = (128, 64, 32)  # px of the frame, side of a cell of the sky mesh; the last has 256 samples
SKY_STEP: Final = 4  # px of the frame, every such row and column counts there, every second in small frames
ENOUGH_CELLS: Final = 40  # of a mesh, for which a small frame's cells are smaller
FEWEST_CELLS: Final = 24  # of a mesh: with fewer of the smallest ones too little can be shared by two frames


def shown(pixels: np.ndarray, cfa: str | None) -> np.ndarray:
    """Return the planes of which levels are measured, ``(h, w, C) float32``.

    Of a Bayer mosaic the 2x2 cells, so h = H // 2 and w = W // 2: red, mean green, blue.
    """
    if cfa is not None:
        return cell_view(pixels, cfa)
    view = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return np.ascontiguousarray(view, dtype=np.float32)


def cell_view(mosaic: np.ndarray, cfa: str) -> np.ndarray:
    """Return the 2x2 cells of a mosaic ``(H, W)`` as ``(H // 2, W // 2, 3) float32``: red, mean of the greens, blue.

    The mean of the two greens is centred on the cell, at (2 x + 0.5, 2 y + 0.5) of the mosaic.
    """
    h, w = mosaic.shape[0] // 2, mosaic.shape[1] // 2
    view = np.empty((h, w, 3), np.float32)
    corner = {(row, column): mosaic[row : 2 * h : 2, column : 2 * w : 2] for row in (0, 1) for column in (0, 1)}
    colours = dict(zip(((0, 0), (0, 1), (1, 0), (1, 1)), cfa, strict=True))
    greens = [place for place, colour in colours.items() if colour == "G"]
    view[:, :, 0] = next(corner[place] for place, colour in colours.items() if colour == "R")
    view[:, :, 2] = next(corner[place] for place, colour in colours.items() if colour == "B")
    np.add(corner[greens[0]], corner[greens[1]], out=view[:, :, 1], dtype=np.float32)
    view[:, :, 1] *= np.float32(0.5)
    return view


def quanta(source: FrameSource) -> tuple[float, ...]:
    """Return the step of the levels as stored, per channel or colour, ADU; 0 where not known."""
    if source.dtype != np.uint16:
        return (0.0,) * source.channels
    return (1.0, 0.5, 1.0) if source.cfa is not None else (1.0,) * source.channels


def with_stars(
    stats: FrameStats, stars: StarList, frame: np.ndarray, cfa: str | None = None, workspace: Workspace | None = None
) -> FrameStats:
    """Add to a frame's levels what its stars tell, and the sky mesh that goes with their fluxes.

    Parameters
    ----------
    stats : FrameStats
    stars : StarList
        From :func:`detection.star_finder.find_stars`.
    frame : ndarray (H, W, C) float32, ADU
        NaN where invalid.
    cfa : str, optional
        Of a mosaic.
    workspace : Workspace, optional
        Keeps memory for the next frame.
    """
    planes = planes_of(frame.shape, cfa)
    channels = len(planes.table)
    light, light_error = (table[:LIGHT_STARS].reshape(-1, channels) for table in stars.photometry)
    pixel_noise = np.sqrt(stats.variance)
    if cfa is not None:
        pixel_noise = pixel_noise * np.array([1.0, np.sqrt(2.0), 1.0])  # a cell has the mean of its two greens
    cell, step = sky_cells(planes)
    level, _ = sky_of_planes(frame, planes, cell, step, workspace)
    return replace(
        stats,
        fwhm=float(np.median(stars.fwhm[:SHAPE_STARS])) if len(stars) else float("nan"),
        eccentricity=float(np.median(stars.eccentricity[:SHAPE_STARS])) if len(stars) else float("nan"),
        n_stars=stars.n_found,
        star_flux=stars.flux[:FLUX_STARS].copy(),
        star_xy=stars.xy[:LIGHT_STARS].astype(np.float32),
        star_light=light.astype(np.float32),
        star_light_error=(light_error * pixel_noise).astype(np.float32),
        sky_mesh=np.ascontiguousarray(np.moveaxis(level, 0, 2), np.float32),
        sky_cell=cell * planes.spacing,
    )


def sky_cells(planes: Planes) -> tuple[int, int]:
    """Return the side of a cell of the sky mesh and the step of its samples, samples of a plane.

    A background is known by the cells that two frames share, and what lies beyond the outermost cells' centres is
    guessed. Of 480 x 720 px, 15 cells, planes through the differences were wrong by 10 ADU where 77 cells leave 1.3.
    """

    def cells(side: int) -> int:
        return (planes.height * planes.spacing // side) * (planes.width * planes.spacing // side)

    side = next((side for side in SKY_CELLS if cells(side) >= ENOUGH_CELLS), SKY_CELLS[-1])
    if cells(side) < FEWEST_CELLS:  # no surface can be known: the fewer cells, the better their levels
        side = SKY_CELLS[0]
    step = SKY_STEP if cells(SKY_CELLS[0]) >= ENOUGH_CELLS else SKY_STEP // 2
    return side // planes.spacing, step // planes.spacing


def measure_frame(
    source: FrameSource, *, with_its_stars: bool = False, max_samples: int | None = MAX_SAMPLES
) -> FrameStats:
    """Read a whole frame and measure its levels, and its stars where they are wanted; see :func:`measure_levels`."""
    pixels = source.read_rows(0, source.height)
    frame = np.ascontiguousarray(pixels, np.float32).reshape(*pixels.shape[:2], -1)
    planes = planes_of(frame.shape, source.cfa)
    stats = levels_of_planes(frame, planes, quantum=quanta(source), max_samples=max_samples)
    if not with_its_stars:
        return stats
    return with_stars(stats, find_stars(pixels, RegisterSpec(), source.cfa), frame, source.cfa)
