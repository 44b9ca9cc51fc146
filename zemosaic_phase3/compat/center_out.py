"""Centre-out normalisation: the levels of a tile matched to tiles made before it, outward from an anchor tile.

The run owns a context that collects a small luminance preview of every finished tile. The anchor keeps its levels. Any
other tile takes gain and offset from the anchor's sky where the two overlap; else from the first tile, in the run's
order of work, that it overlaps with and for which it waits. Where it overlaps with none, its median is brought to the
anchor's.
Tiles are matched to corrected tiles, so levels spread from the centre outward.

The order in which tiles happen to be finished therefore decides nothing, as long as nobody has to wait for longer than
``PATIENCE_S`` for a tile that no thread of this process is at work on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from zemosaic_phase3.compat.sky_match import compute_sky_statistics, estimate_sky_affine_to_ref
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.settings import as_bool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from astropy.wcs import WCS


logger = logging.getLogger("ZeMosaicWorker")

LUMINANCE: Final = (0.299, 0.587, 0.114)
FILLED_FRACTION: Final = 0.5  # of the pixels behind one of the preview; fewer give no level
PATIENCE_S: Final = 60.0  # waited for a tile that nobody is seen to work on; as long as runs wait for their anchor
POLL_S: Final = 0.05


class Context(Protocol):
    """What a run offers; ZeMosaic's own object has these names. All of it may be called from several threads.

    It may have a list ``ordered_tile_ids``, all tiles in the order of work; without it no tile but the anchor is waited
    for.
    """

    anchor_original_id: int

    def get_rank(self, tile_id: int) -> int | None:
        """Place of a tile in the order of work."""

    def get_distance(self, tile_id: int) -> float | None:
        """Distance of a tile from the centre, degrees."""

    def wait_for_anchor(self) -> bool:
        """Return when the anchor is registered, or after a time of the run's choice with False."""

    def register_tile(
        self,
        tile_id: int,
        preview: np.ndarray | None,
        preview_wcs: WCS | None,
        stats: Mapping[str, float] | None,
        gain: float,
        offset: float,
        mode: str,
    ) -> None:
        """Take note of a finished tile."""

    def get_processed_tiles(self, exclude_tile_id: int | None = None) -> Sequence[Any]:
        """Tiles registered so far, objects with ``tile_id``, ``preview`` and ``wcs``."""

    def get_anchor_stats(self) -> Mapping[str, float] | None:
        """Sky of the anchor; None before it is registered."""


@dataclass(frozen=True)
class CenterOutSpec:
    """How tiles are matched; the keys of ``center_out_settings`` but ``enabled``."""

    preview_size: int = 256  # longer side of a preview, pixels
    sky_percentile: tuple[float, float] = (25.0, 60.0)  # between these lies the sky
    clip_sigma: float = 2.5
    min_overlap_fraction: float = 0.03  # of a preview's pixels

    def __post_init__(self) -> None:  # noqa: D105
        low, high = self.sky_percentile
        if not 0 <= low < high <= 100:
            raise SpecError(f"centre-out sky_percentile = {self.sky_percentile!r} must satisfy 0 <= low < high <= 100")
        if self.preview_size < 8:
            raise SpecError(f"centre-out preview_size = {self.preview_size!r} is below 8 pixels")
        if not self.clip_sigma > 0 or not 0 <= self.min_overlap_fraction <= 1:
            raise SpecError(
                f"centre-out clip_sigma = {self.clip_sigma!r} must be above 0, "
                f"min_overlap_fraction = {self.min_overlap_fraction!r} in [0, 1]"
            )


def center_out_spec(settings: Mapping[str, Any] | None) -> CenterOutSpec | None:
    """Read ``center_out_settings`` of existing runs; None where it is absent or not enabled.

    Raises
    ------
    SpecError
        A value is not a number, or out of range.
    """
    if not settings or not as_bool(settings.get("enabled"), True):
        return None
    default = CenterOutSpec()
    given = {name: settings.get(name) for name in default.__dataclass_fields__}
    try:
        low, high = given["sky_percentile"] or default.sky_percentile
        return CenterOutSpec(
            preview_size=int(given["preview_size"] or default.preview_size),
            sky_percentile=(float(low), float(high)),
            clip_sigma=float(given["clip_sigma"] or default.clip_sigma),
            min_overlap_fraction=float(
                default.min_overlap_fraction if given["min_overlap_fraction"] is None else given["min_overlap_fraction"]
            ),
        )
    except (TypeError, ValueError) as exc:
        raise SpecError(f"center_out_settings {dict(settings)!r} cannot be read: {exc}") from exc


@dataclass(frozen=True)
class Correction:
    """``gain * tile + offset`` (ADU) is on the anchor's scale.

    ``mode``: "anchor", "overlap", "anchor_fallback" (the median alone) or "unmatched" (nothing to match with; 1 and 0).
    ``samples``: preview pixels behind it.
    """

    gain: float
    offset: float
    mode: str
    samples: int = 0

    @property
    def is_applied(self) -> bool:
        """False where the tile could not be matched."""
        return self.mode != "unmatched"


def luminance_preview(image: np.ndarray, wcs: WCS | None, size: int) -> tuple[np.ndarray, WCS | None]:
    """Return a tile in small: block means of the luminance, and the WCS that goes with them.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3), ADU
        NaN = no data.
    wcs : astropy.wcs.WCS or None
        Celestial. Its distortion is left out, it is smaller than the pixels of a preview.
    size : int
        Longer side at most, pixels.

    Returns
    -------
    preview : ndarray (h, w) float32, ADU
        NaN where less than half of a block has data.
    wcs : astropy.wcs.WCS or None
    """
    lum = image @ np.array(LUMINANCE, np.float32) if image.ndim == 3 else image
    factor = max(1, math.ceil(max(lum.shape) / size))
    rows, columns = lum.shape[0] // factor, lum.shape[1] // factor
    blocks = lum[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    is_valid = np.isfinite(blocks)
    count = is_valid.sum(axis=(1, 3))
    total = np.sum(blocks, axis=(1, 3), where=is_valid, dtype=np.float64)
    preview = np.full((rows, columns), np.nan, np.float32)
    np.divide(total, count, out=preview, where=count >= FILLED_FRACTION * factor * factor, casting="same_kind")
    return preview, None if wcs is None else _binned_wcs(wcs, factor, preview.shape)


def _binned_wcs(wcs: WCS, factor: int, shape: tuple[int, ...]) -> WCS:
    """Linear part of a WCS for pixels ``factor`` times as large."""
    from astropy.wcs import WCS

    small = WCS(naxis=2)
    small.wcs.ctype = [str(name).removesuffix("-SIP") for name in wcs.wcs.ctype]
    small.wcs.crval, small.wcs.cunit = wcs.wcs.crval, wcs.wcs.cunit
    small.wcs.lonpole, small.wcs.latpole = wcs.wcs.lonpole, wcs.wcs.latpole
    small.wcs.radesys, small.wcs.equinox = wcs.wcs.radesys, wcs.wcs.equinox
    small.wcs.cd = np.asarray(wcs.pixel_scale_matrix) * factor
    small.wcs.crpix = (np.asarray(wcs.wcs.crpix) - 0.5) / factor + 0.5  # pixel edges, not centres, coincide
    small.pixel_shape = (shape[1], shape[0])
    return small


def _circle(wcs: WCS, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Centre (unit vector) and radius (radians) of the sky that an image covers."""
    height, width = shape
    x = np.array([(width - 1) / 2, -0.5, width - 0.5, -0.5, width - 0.5])
    y = np.array([(height - 1) / 2, -0.5, -0.5, height - 0.5, height - 0.5])
    lon, lat = np.radians(wcs.wcs_pix2world(x, y, 0))
    vectors = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
    return vectors[0], float(np.arccos(np.clip(vectors[1:] @ vectors[0], -1.0, 1.0)).max())


def _overlap(preview: np.ndarray, wcs: WCS, other: np.ndarray, other_wcs: WCS) -> tuple[np.ndarray, np.ndarray]:
    """Levels of two previews at the same places of the sky, ``(n,)`` each: the pixels of the other that both cover."""
    from scipy import ndimage

    here, there = _circle(wcs, preview.shape), _circle(other_wcs, other.shape)
    if np.arccos(np.clip(here[0] @ there[0], -1.0, 1.0)) > here[1] + there[1]:
        return np.empty(0), np.empty(0)
    y, x = np.nonzero(np.isfinite(other))
    x_here, y_here = wcs.wcs_world2pix(*other_wcs.wcs_pix2world(x, y, 0), 0)
    levels = ndimage.map_coordinates(preview.astype(np.float64), (y_here, x_here), order=1, cval=np.nan)
    both = np.isfinite(levels)
    return levels[both], other[y, x][both].astype(np.float64)


class _AtWork:
    """Tiles that threads of this process are making, each with its run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tiles: list[tuple[int, int]] = []

    def start(self, context: Context, tile_id: int) -> None:
        """Note that a tile is being made."""
        with self._lock:
            self._tiles.append((id(context), tile_id))

    def end(self, context: Context, tile_id: int) -> None:
        """Note that it no longer is."""
        with self._lock:
            self._tiles.remove((id(context), tile_id))

    def any_of(self, context: Context, tiles: set[int]) -> bool:
        """Return True if one of the tiles is being made."""
        with self._lock:
            return any((id(context), tile) in self._tiles for tile in tiles)


_at_work: Final = _AtWork()


@contextlib.contextmanager
def matching(context: Context | None, tile_id: int) -> Iterator[None]:
    """Make a tile of a run in this block; whatever happens to it, nobody waits for it afterwards."""
    if context is None:
        yield
        return
    _at_work.start(context, tile_id)
    try:
        yield
    finally:
        _at_work.end(context, tile_id)
        if all(entry.tile_id != tile_id for entry in context.get_processed_tiles()):
            context.register_tile(tile_id, None, None, None, 1.0, 0.0, "failed")


def match_tile(
    image: np.ndarray,
    wcs: WCS | None,
    tile_id: int,
    context: Context,
    spec: CenterOutSpec,
    *,
    pulse: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, Correction]:
    """Bring a tile to the anchor's levels and register it with the run.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3) float32, ADU
        Not modified.
    wcs : astropy.wcs.WCS or None
    tile_id : int
    context : Context
        Waited for: the anchor has to be registered first, and where the tile does not overlap with it the tiles
        before this one.
    spec : CenterOutSpec
    pulse : callable
        Called now and then while the tile waits; what it raises ends the wait.

    Returns
    -------
    image : ndarray
        Corrected copy, or the image itself where it stays as it is.
    correction : Correction
    """
    preview, preview_wcs = luminance_preview(image, wcs, spec.preview_size)
    low, high = spec.sky_percentile
    sky = compute_sky_statistics(preview, low, high)
    if tile_id == context.anchor_original_id:
        context.register_tile(tile_id, preview, preview_wcs, sky, 1.0, 0.0, "anchor")
        return image, Correction(1.0, 0.0, "anchor", preview.size)
    _wait_for_anchor(context, pulse)
    found = _from_overlaps(preview, preview_wcs, tile_id, context, spec, pulse)
    if found is None:
        found = _from_anchor(sky, context.get_anchor_stats())
    if found.is_applied:
        image = (image * np.float32(found.gain) + np.float32(found.offset)).astype(np.float32, copy=False)
        preview = preview * np.float32(found.gain) + np.float32(found.offset)
        sky = compute_sky_statistics(preview, low, high)
    context.register_tile(tile_id, preview, preview_wcs, sky, found.gain, found.offset, found.mode)
    return image, found


def _wait_for_anchor(context: Context, pulse: Callable[[], None]) -> None:
    """Wait as long as the run does, and on while the anchor is being made."""
    anchor = {int(context.anchor_original_id)}
    while not context.wait_for_anchor() and _at_work.any_of(context, anchor):
        pulse()


def _wait_for(tiles: set[int], context: Context, pulse: Callable[[], None]) -> None:
    """Wait until tiles are registered; for those that nobody makes until nothing has come for ``PATIENCE_S``."""
    missing, deadline = tiles, time.monotonic() + PATIENCE_S
    while True:
        before = missing
        missing = tiles - {int(entry.tile_id) for entry in context.get_processed_tiles()}
        if not missing:
            return
        if missing != before or _at_work.any_of(context, missing):
            deadline = time.monotonic() + PATIENCE_S
        elif time.monotonic() > deadline:
            logger.warning("centre-out: tiles %s did not come; tiles further out do without them", sorted(missing))
            return
        pulse()
        time.sleep(POLL_S)


def _from_overlaps(
    preview: np.ndarray,
    wcs: WCS | None,
    tile_id: int,
    context: Context,
    spec: CenterOutSpec,
    pulse: Callable[[], None],
) -> Correction | None:
    """Match to the anchor, else to the first tile in the order of work that shares enough sky; None without any."""
    if wcs is None:
        return None
    found = _match_to(context.anchor_original_id, preview, wcs, context, spec)
    if found is not None:
        return found
    rank = context.get_rank(tile_id)  # None for one that is made once more: all others come before it
    before = [t for t in getattr(context, "ordered_tile_ids", ()) if _comes_before(t, rank, context)]
    if rank is not None:
        _wait_for({int(t) for t in before}, context, pulse)
    for other in _in_order(tile_id, rank, context):
        if (found := _match_to(other, preview, wcs, context, spec)) is not None:
            return found
    return None


def _comes_before(tile_id: int, rank: int | None, context: Context) -> bool:
    theirs = context.get_rank(tile_id)
    return theirs is not None and (rank is None or theirs < rank)


def _in_order(tile_id: int, rank: int | None, context: Context) -> list[int]:
    """Tiles registered that come before this one, in the order of work."""
    tiles = [int(entry.tile_id) for entry in context.get_processed_tiles(exclude_tile_id=tile_id)]
    return sorted((t for t in tiles if _comes_before(t, rank, context)), key=lambda t: (context.get_rank(t), t))


def _match_to(other: int, preview: np.ndarray, wcs: WCS, context: Context, spec: CenterOutSpec) -> Correction | None:
    """Match to one tile; None where it is not there, shares too little sky, or has nothing to match with."""
    entry = next((e for e in context.get_processed_tiles() if int(e.tile_id) == int(other)), None)
    if entry is None or entry.preview is None or entry.wcs is None:
        return None
    here, there = _overlap(preview, wcs, entry.preview, entry.wcs)
    if here.size < max(1, spec.min_overlap_fraction * entry.preview.size):
        return None
    fit = estimate_sky_affine_to_ref(here, there, *spec.sky_percentile, spec.clip_sigma)
    return None if fit is None else Correction(fit[0], fit[1], "overlap", fit[2])


def _from_anchor(sky: Mapping[str, float] | None, anchor: Mapping[str, float] | None) -> Correction:
    """Match the medians alone: without an overlap the spread of the two skies says nothing of their scale."""
    if not sky or not anchor:
        return Correction(1.0, 0.0, "unmatched")
    return Correction(1.0, float(anchor["median"]) - sky["median"], "anchor_fallback")
