"""Tiles put together into one image, with ``reproject``: for those without ZeMosaic.

Tiles are matched in level where they overlap (``levels``), brought onto one tangent plane, and averaged with weights
from their coverage, their noise, and the distance from their edge: at its edge a tile has no weight, so that what is
left of a difference between two tiles becomes a slope and no step. Rows of the mosaic are made in bands, each from the
parts of the tiles that it touches, so that memory is that of the result and little more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.cluster.levels import Levels, Overlap, compare, match_levels
from zemosaic_phase3.errors import FrameError, NoFramesError, PlanError, ZeMosaicError
from zemosaic_phase3.extras import install
from zemosaic_phase3.finish.noise import measure_noise
from zemosaic_phase3.io.atomic_write import TILE_SUFFIXES, write_fits_atomically
from zemosaic_phase3.io.fits_header import celestial_wcs
from zemosaic_phase3.io.frame_kind import canonical_filter
from zemosaic_phase3.io.tile_file import tile_hdus
from zemosaic_phase3.pipeline.tile_header import wcs_cards
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime.limits import default_limit, memory_text
from zemosaic_phase3.settings import in_range

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

CELL_PX: Final = 8  # side of the cells that are compared
BAND_PIXELS: Final = 8_000_000  # of the mosaic, made at once
FEATHER: Final = 0.25  # of a tile's shorter side, over which its weight rises from its edge
MARGIN_PX: Final = 12  # of a tile, beyond the rows that a band touches: there splines feel the cut no more
REACH_PX: Final = 3  # of an interpolation: pixels so near to empty ones count for nothing
MOST_SIDE_PX: Final = 200_000  # of a mosaic: tiles at two ends of the sky are no mosaic
SEAM_WIDTH_PX: Final = 8  # on each side of a tile's edge, that are compared
LEAST_ALONG: Final = 16  # pixels of an edge inside of the mosaic, below which it tells nothing


@dataclass(frozen=True)
class MosaicSpec:
    """How tiles are put together. Checked when made.

    ``levels``: "gain" (and offset), "offset" or "none"; ``filter``: of the tiles, None: there is one only;
    ``scale``: of a pixel, arc seconds, None: that of the finest tile.
    """

    levels: str = "gain"
    filter: str | None = None
    scale: float | None = None

    def __post_init__(self) -> None:  # noqa: D105
        if self.scale is not None:
            object.__setattr__(self, "scale", in_range("scale", self.scale, 1e-3, 1e4))


@dataclass
class MosaicTile:
    """One tile; level, noise, offset (ADU) and gain by channel; ``at``: its rows and columns in the mosaic."""

    path: Path
    name: str
    shape: tuple[int, ...]  # (H, W) or (H, W, 3)
    header: Header
    wcs: WCS
    noise: list[float] = field(default_factory=list)
    level: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    offset: list[float] = field(default_factory=list)
    at: tuple[slice, slice] = (slice(0, 0), slice(0, 0))


@dataclass
class Mosaic:
    """What became of a mosaic.

    ``shape`` (H, W) or (H, W, 3); ``noise`` ADU by channel; ``steps``: what is left of differences between tiles in
    their overlaps, in units of the noise of a pixel, by pair; ``seam``: the largest step across the edge of a tile that
    the finished image shows, in the same units.
    """

    output: Path
    shape: tuple[int, ...]
    scale_arcsec: float
    tiles: list[MosaicTile]
    noise: list[float]
    steps: list[tuple[str, str, float]]
    seam: float
    notes: list[str]

    def facts(self) -> list[tuple[str, str]]:
        """Return what is printed."""
        height, width = self.shape[:2]
        worst = max(self.steps, key=lambda item: abs(item[2]), default=None)
        facts = [("image", f'{width} x {height} pixels of {self.scale_arcsec:.3g}", {len(self.tiles)} tiles')]
        if worst is not None:
            facts.append(
                ("overlaps", f"{len(self.steps)}; largest difference left {abs(worst[2]):.2f} sigma of a pixel")
            )
        if math.isfinite(self.seam):
            facts.append(("seams", f"largest step across an edge of a tile {self.seam:.2f} sigma of a pixel"))
        facts += [("note" if k == 0 else "", note) for k, note in enumerate(self.notes)]
        return [*facts, ("output", str(self.output))]

    def as_dict(self) -> dict[str, Any]:
        """Return the same for JSON."""
        tiles = [
            {"name": t.name, "gain": t.gain, "offset": t.offset, "noise": t.noise,
             "rows": [t.at[0].start, t.at[0].stop], "columns": [t.at[1].start, t.at[1].stop]} for t in self.tiles
        ]  # fmt: skip
        return {
            "output": str(self.output), "shape": list(self.shape), "scale_arcsec": self.scale_arcsec,
            "noise": self.noise, "tiles": tiles, "steps_sigma": [list(step) for step in self.steps],
            "seam_sigma": self.seam, "notes": self.notes,
        }  # fmt: skip


def make_mosaic(
    folder: Path, output: Path, spec: MosaicSpec | None = None, *, overwrite: bool = False,
    progress: Callback | None = None,
) -> Mosaic:  # fmt: skip
    """Put the tiles of a folder together and write the image.

    Parameters
    ----------
    folder : Path
        Holds tiles; other files in it are passed over.
    output : Path
        FITS file: the image, ALPHA and COVERAGE.
    spec : MosaicSpec, optional
    overwrite : bool
    progress : callable, optional
        Called as ``progress("mosaic", done, total)``.

    Raises
    ------
    NoFramesError
        The folder holds no tile with a WCS, or tiles of several filters.
    PlanError
        The mosaic does not fit into the memory.
    OutputError
        It cannot be written.
    """
    spec = spec or MosaicSpec()
    _require_reproject()
    tiles, notes = _open_tiles(folder, output, spec)
    wcs, shape = _plane(tiles, spec)
    channels = 3 if any(len(tile.shape) == 3 for tile in tiles) else 1
    allowed = default_limit()
    needed = shape[0] * shape[1] * (channels * 4 * 2 + 8) + BAND_PIXELS * channels * 16
    if needed > allowed:
        raise PlanError(
            f"a mosaic of {shape[1]} x {shape[0]} pixels needs {memory_text(needed)}, and {memory_text(allowed)} are "
            "there for it; choose coarser pixels (--scale) or fewer tiles"
        )
    for tile in tiles:
        tile.at = _place(tile, wcs, shape)
    total = 2 * len(tiles)
    steps = _match(tiles, wcs, spec, lambda done: notify(progress, "mosaic", done, total))
    image, coverage = _coadd(
        tiles,
        wcs,
        shape,
        channels,
        lambda share: notify(progress, "mosaic", len(tiles) + int(share * len(tiles)), total),
    )
    noise = measure_noise(image)
    named = [(tiles[i].name, tiles[j].name, step) for i, j, step in steps]
    seam = seam_of(image, [tile.at for tile in tiles], noise)
    header = _header(tiles, wcs)
    alpha = np.where(np.isfinite(image if image.ndim == 2 else image[..., 0]), 255, 0).astype(np.uint8)
    hdus = tile_hdus(image, header, alpha=alpha, maps={"COVERAGE": coverage})
    write_fits_atomically(hdus, output, overwrite=overwrite)
    scale = 3600.0 * math.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))
    return Mosaic(output, image.shape, scale, tiles, noise, named, seam, notes)


def _require_reproject() -> None:
    try:
        import reproject  # noqa: F401
    except ImportError as exc:
        raise ZeMosaicError(
            f"a mosaic is made with reproject, which is not there ({exc}); {install('mosaic')}"
        ) from exc


# --------------------------------------------------------------------------- which tiles, and where


def _open_tiles(folder: Path, output: Path, spec: MosaicSpec) -> tuple[list[MosaicTile], list[str]]:
    tiles: list[MosaicTile] = []
    notes: list[str] = []
    filters: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.lower().endswith(TILE_SUFFIXES) or path.name.startswith("."):
            continue
        if path.resolve() == output.resolve():
            continue
        tile = _open_tile(path)
        if isinstance(tile, str):
            notes.append(f"{path.name}: {tile}")
            continue
        band = canonical_filter(str(tile.header.get("FILTER", "") or ""))
        if spec.filter is None or band == canonical_filter(spec.filter):
            filters.setdefault(band, str(tile.header.get("FILTER", "") or "none"))
            tiles.append(tile)
    if not tiles:
        which = f" of filter {spec.filter}" if spec.filter else ""
        raise NoFramesError(
            f"{folder}: holds no tile{which} that can be placed: {'; '.join(notes[:3]) or 'no FITS file'}"
        )
    if len(filters) > 1:
        raise NoFramesError(
            f"{folder}: holds tiles of several filters ({', '.join(filters.values())}); choose one: --filter"
        )
    if len({tile.shape[2:] for tile in tiles}) > 1:
        raise NoFramesError(f"{folder}: holds grey tiles and tiles in colour; make two mosaics, from two folders")
    return tiles, notes


def _open_tile(path: Path) -> MosaicTile | str:
    """Open a tile; a text: why it is none."""
    from astropy.io import fits

    try:
        with fits.open(path, memmap=True) as hdus:
            header = hdus[0].header.copy()
            if "ZMT_REF" not in header:
                return "is no tile"
            shape = hdus[0].shape
    except (OSError, ValueError, TypeError) as exc:
        return f"cannot be read ({exc})"
    if len(shape) == 3:
        shape = (*shape[1:], shape[0])
    try:
        wcs = celestial_wcs(header, (shape[1], shape[0]), path.name)
    except FrameError as exc:
        return exc.reason
    return "has no WCS" if wcs is None else MosaicTile(path, path.stem, shape, header, wcs)


def _pixels_of(tile: MosaicTile, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of a tile, (H, W[, 3]) float32 ADU, and how many frames each pixel has, (H, W) float32."""
    from astropy.io import fits

    with fits.open(tile.path, memmap=True) as hdus:
        data = (
            np.moveaxis(np.asarray(hdus[0].data[..., rows, :]), 0, -1) if len(tile.shape) == 3 else hdus[0].data[rows]
        )
        image = np.array(data, np.float32)
        if "COVERAGE" in hdus:
            found = np.asarray(hdus["COVERAGE"].data[..., rows, :])
            coverage = np.array(found.min(axis=0) if found.ndim == 3 else found, np.float32)
        else:
            coverage = np.isfinite(image if image.ndim == 2 else image[..., 0]).astype(np.float32)
    return image, coverage


def _plane(tiles: Sequence[MosaicTile], spec: MosaicSpec) -> tuple[WCS, tuple[int, int]]:
    """Return the tangent plane that all tiles fit on, north up, and its size."""
    from astropy import units
    from reproject.mosaicking import find_optimal_celestial_wcs

    resolution = None if spec.scale is None else spec.scale * units.arcsec
    wcs, shape = find_optimal_celestial_wcs([(t.shape[:2], t.wcs) for t in tiles], resolution=resolution)
    if max(shape) > MOST_SIDE_PX:
        raise PlanError(
            f"the tiles lie so far apart that the mosaic would have {shape[1]} x {shape[0]} pixels; name others"
        )
    return wcs, (int(shape[0]), int(shape[1]))


def _place(tile: MosaicTile, wcs: WCS, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the mosaic that a tile touches."""
    height, width = tile.shape[:2]
    y = np.concatenate([np.zeros(width), np.full(width, height - 1), np.arange(height), np.arange(height)])
    x = np.concatenate([np.arange(width), np.arange(width), np.zeros(height), np.full(height, width - 1)])
    px, py = wcs.world_to_pixel_values(*tile.wcs.pixel_to_world_values(x, y))
    first, last = max(0, int(np.floor(py.min()))), min(shape[0], int(np.ceil(py.max())) + 1)
    left, right = max(0, int(np.floor(px.min()))), min(shape[1], int(np.ceil(px.max())) + 1)
    return slice(first, max(first, last)), slice(left, max(left, right))


# --------------------------------------------------------------------------- levels


def _match(tiles: list[MosaicTile], wcs: WCS, spec: MosaicSpec, done: Any) -> list[tuple[int, int, float]]:
    """Fill in gain, offset and noise of each tile; return what is left of the differences, in sigma of a pixel."""
    cells = []
    for number, tile in enumerate(tiles, 1):
        image, coverage = _pixels_of(tile)
        tile.noise = measure_noise(image)
        tile.level = [float(level) for level in np.atleast_1d(np.nanmedian(image, axis=(0, 1)))]
        cells.append(_cells_of(tile, image, coverage, wcs))
        done(number)
    channels = len(tiles[0].noise)
    steps: list[tuple[int, int, float]] = []
    solved: list[Levels] = []
    for c in range(channels):
        overlaps = [found for found in _overlaps(tiles, cells, c) if found is not None]
        wants_gains, wants_offsets = spec.levels == "gain", spec.levels != "none"
        solved.append(match_levels(len(tiles), overlaps, gains=wants_gains, offsets=wants_offsets))
        sigma = float(np.median([tile.noise[c] for tile in tiles])) or 1.0
        steps += [(i, j, left / sigma) for i, j, left in solved[-1].left]
    for k, tile in enumerate(tiles):
        tile.gain = [float(found.gain[k]) for found in solved]
        tile.offset = [float(found.offset[k]) for found in solved]
    return steps


def _cells_of(
    tile: MosaicTile, image: np.ndarray, coverage: np.ndarray, wcs: WCS
) -> tuple[tuple[int, int], np.ndarray]:
    """Return a tile in cells of the mosaic: where its first one is, and means (rows, columns, C), nan where not whole.

    Cells of the tile are averaged on its own grid, then looked up between them for the middle of each cell of the
    mosaic, by the whole WCS of both.
    """
    from scipy.ndimage import map_coordinates

    first = [axis.start // CELL_PX for axis in tile.at]
    shape = [-(-axis.stop // CELL_PX) - start for axis, start in zip(tile.at, first, strict=True)]
    height, width = (side // CELL_PX * CELL_PX for side in tile.shape[:2])
    planes = np.atleast_3d(image)[:height, :width]
    planes = np.where((coverage[:height, :width] >= 0.5 * coverage.max())[..., None], planes, np.nan)
    blocks = planes.reshape(height // CELL_PX, CELL_PX, width // CELL_PX, CELL_PX, -1).mean(axis=(1, 3))
    middles = [(np.arange(n) + start + 0.5) * CELL_PX - 0.5 for n, start in zip(shape, first, strict=True)]
    y, x = np.meshgrid(*middles, indexing="ij")
    px, py = tile.wcs.world_to_pixel_values(*wcs.pixel_to_world_values(x, y))
    at = np.nan_to_num([(py + 0.5) / CELL_PX - 0.5, (px + 0.5) / CELL_PX - 0.5], nan=-1e9)
    found = [map_coordinates(blocks[..., c], at, order=1, cval=np.nan) for c in range(blocks.shape[2])]
    return (first[0], first[1]), np.stack(found, axis=-1)


def _overlaps(
    tiles: Sequence[MosaicTile], cells: Sequence[tuple[tuple[int, int], np.ndarray]], c: int
) -> Iterator[Overlap | None]:
    for i, j in itertools.combinations(range(len(tiles)), 2):
        (y0, x0), a = cells[i]
        (y1, x1), b = cells[j]
        top, left = max(y0, y1), max(x0, x1)
        bottom, right = min(y0 + a.shape[0], y1 + b.shape[0]), min(x0 + a.shape[1], x1 + b.shape[1])
        if top >= bottom or left >= right:
            continue
        one = a[top - y0 : bottom - y0, left - x0 : right - x0, c]
        two = b[top - y1 : bottom - y1, left - x1 : right - x1, c]
        both = np.isfinite(one) & np.isfinite(two)
        yield compare(
            i, j, one[both].astype(np.float64), two[both].astype(np.float64),
            tiles[i].noise[c] / CELL_PX, tiles[j].noise[c] / CELL_PX,
        )  # fmt: skip


# --------------------------------------------------------------------------- the sum


def _coadd(
    tiles: Sequence[MosaicTile], wcs: WCS, shape: tuple[int, int], channels: int, done: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mosaic, (H, W[, 3]) float32, nan where nothing is, and its coverage, (H, W) int32."""
    image = np.full((*shape, channels), np.nan, np.float32)
    coverage = np.zeros(shape, np.int32)
    height = max(1, BAND_PIXELS // shape[1])
    for first in range(0, shape[0], height):
        rows = slice(first, min(first + height, shape[0]))
        sums = np.zeros((rows.stop - rows.start, shape[1], channels))
        weights = np.zeros(sums.shape)
        for tile in tiles:
            part = _part_of(tile, wcs, rows, channels)
            if part is None:
                continue
            here, values, weight, counts = part
            sums[here] += values * weight
            weights[here] += weight
            coverage[rows][here] += counts
        with np.errstate(invalid="ignore", divide="ignore"):
            image[rows] = np.where(weights > 0, sums / weights, np.nan)
        done(rows.stop / shape[0])
    return (image if channels == 3 else image[..., 0]), coverage


def _part_of(
    tile: MosaicTile, wcs: WCS, rows: slice, channels: int
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray, np.ndarray] | None:
    """Return what a tile gives to rows of the mosaic: where, values (h, w, C), weights of them, and counts (h, w)."""
    from reproject import reproject_interp

    top, bottom = max(rows.start, tile.at[0].start), min(rows.stop, tile.at[0].stop)
    columns = tile.at[1]
    if top >= bottom or columns.start >= columns.stop:
        return None
    own = _rows_of_tile(tile, wcs, slice(top, bottom), columns)
    if own is None:
        return None
    image, coverage = _pixels_of(tile, own)
    planes = np.moveaxis(np.atleast_3d(image), -1, 0)
    is_empty = ~np.isfinite(planes).all(axis=0) | (coverage <= 0)
    weight = np.where(_grown(is_empty), 0.0, _weight(tile, coverage, own))
    planes = np.where(np.isfinite(planes), planes, np.array(tile.level, np.float32)[:, None, None])
    target, size = wcs[top:bottom, columns], (bottom - top, columns.stop - columns.start)
    source = tile.wcs[own, :]
    values, _ = reproject_interp((planes, source), target, shape_out=size, order="bicubic", parallel=False)
    others, _ = reproject_interp((np.stack([weight, coverage]), source), target, shape_out=size, parallel=False)
    values = np.moveaxis(values.reshape(channels, *size), 0, -1)
    noise = np.array([gain * sigma for gain, sigma in zip(tile.gain, tile.noise, strict=True)])
    factor = np.where(np.isfinite(noise) & (noise > 0), 1.0 / np.maximum(noise, 1e-30) ** 2, 1.0)
    values = values * np.array(tile.gain) + np.array(tile.offset)
    is_there = np.isfinite(values) & np.isfinite(others[0])[..., None] & (others[0] > 0)[..., None]
    shares = np.where(is_there, np.nan_to_num(others[0])[..., None] * factor, 0.0)
    counts = np.rint(np.where(is_there.all(axis=2), np.nan_to_num(others[1]), 0.0)).astype(np.int32)
    return (slice(top - rows.start, bottom - rows.start), columns), np.where(is_there, values, 0.0), shares, counts


def _grown(mask: np.ndarray) -> np.ndarray:
    """Return a mask with all pixels as near to it as an interpolation reaches."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(mask, iterations=REACH_PX)) if mask.any() else mask


def _rows_of_tile(tile: MosaicTile, wcs: WCS, rows: slice, columns: slice) -> slice | None:
    """Return the rows of a tile that a rectangle of the mosaic shows, and a few more; None: none."""
    y, x = np.meshgrid(
        np.linspace(rows.start, rows.stop - 1, 9), np.linspace(columns.start, columns.stop - 1, 9), indexing="ij"
    )
    _, py = tile.wcs.world_to_pixel_values(*wcs.pixel_to_world_values(x.ravel(), y.ravel()))
    py = py[np.isfinite(py)]
    if py.size == 0:
        return None
    first, last = int(np.floor(py.min())) - MARGIN_PX, int(np.ceil(py.max())) + MARGIN_PX + 1
    first, last = max(0, first), min(tile.shape[0], last)
    return slice(first, last) if last - first >= 2 else None


def _weight(tile: MosaicTile, coverage: np.ndarray, rows: slice) -> np.ndarray:
    """Return the weights of rows of a tile: their coverage, as a part of the largest, times a ramp from its edge."""
    height, width = tile.shape[:2]
    ramp = max(1.0, FEATHER * min(height, width))
    y = np.arange(rows.start, rows.stop)
    from_edge_y = np.minimum(y + 1, height - y) / ramp
    x = np.arange(width)
    from_edge_x = np.minimum(x + 1, width - x) / ramp
    feather = np.minimum(1.0, from_edge_y)[:, None] * np.minimum(1.0, from_edge_x)[None, :]
    most = max(float(tile.header.get("NCOMBINE", 0) or 0), float(coverage.max()), 1.0)
    return np.asarray(feather * coverage / most, np.float64)


# --------------------------------------------------------------------------- what is told


def seam_of(image: np.ndarray, places: Sequence[tuple[slice, slice]], noise: Sequence[float]) -> float:
    """Return the largest step across the edges of tiles inside a mosaic, in units of the noise of a pixel; nan: none.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3), ADU
    places : sequence of (rows, columns)
        Where the tiles are; edges are those of these rectangles.
    noise : sequence of float
        Of a pixel, by channel.

    Notes
    -----
    At each pixel of an edge the medians of ``SEAM_WIDTH_PX`` pixels on either side are compared with those farther out,
    so that a slope of the sky, which goes on, is no step; the median of all along the edge leaves stars out.
    """
    planes = np.atleast_3d(image)
    steps = []
    for c, sigma in enumerate(noise):
        if not sigma > 0:
            continue
        for axis, plane in ((0, planes[..., c]), (1, planes[..., c].T)):
            for place in places:
                along = place[1 - axis]
                for edge in (place[axis].start, place[axis].stop):
                    step = _step_at(plane, edge, along)
                    if step is not None:
                        steps.append(abs(step) / sigma)
    return max(steps, default=math.nan)


def _step_at(plane: np.ndarray, edge: int, along: slice) -> float | None:
    """Return the step at a row of a plane, less what the slope on both sides makes of it; None: the edge is outer."""
    w = SEAM_WIDTH_PX
    if edge < 2 * w or edge + 2 * w > plane.shape[0]:
        return None
    strips = [plane[a : a + w, along] for a in (edge - 2 * w, edge - w, edge, edge + w)]
    is_whole = np.all([np.isfinite(strip).all(axis=0) for strip in strips], axis=0)
    if is_whole.sum() < LEAST_ALONG:
        return None
    strips = [strip[:, is_whole] for strip in strips]
    far_below, below, above, far_above = (np.median(strip, axis=0) for strip in strips)
    step = (above - below) - 0.5 * ((below - far_below) + (far_above - above))
    return float(np.median(step))


def _header(tiles: Sequence[MosaicTile], wcs: WCS) -> Header:
    """Return the cards of the mosaic: its WCS, and what its tiles agree in or add up to."""
    from astropy.io.fits import Header

    header = Header()
    for key in ("OBJECT", "FILTER", "INSTRUME", "TELESCOP", "EXPTIME", "BUNIT", "ROWORDER"):
        if len({str(tile.header.get(key, "")) for tile in tiles}) == 1 and key in tiles[0].header:
            header[key] = (tiles[0].header[key], tiles[0].header.comments[key])
    header["IMAGETYP"] = ("Mosaic", "tiles put together")
    header.update(wcs_cards(wcs))
    for key in ("EXPTOTAL", "STACKCNT", "NCOMBINE"):
        values = [tile.header.get(key) for tile in tiles]
        if all(isinstance(value, int | float) for value in values):
            header[key] = (sum(values), "of all tiles; frames in two of them count twice")
    for key, choose in (("DATE-OBS", min), ("DATE-BEG", min), ("DATE-END", max)):
        dates = [str(tile.header[key]) for tile in tiles if key in tile.header]
        if dates:
            header[key] = choose(dates)
    header["ZMT_NTIL"] = (len(tiles), "tiles")
    header["ALPHAEXT"] = (1, "alpha mask in extension ALPHA")
    for tile in tiles:
        levels = " ".join(f"{gain:.5f} {offset:+.3f}" for gain, offset in zip(tile.gain, tile.offset, strict=True))
        header.add_history(f"{tile.name}: gain, offset {levels}")
    return header
