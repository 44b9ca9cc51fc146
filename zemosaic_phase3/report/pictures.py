"""Pictures of a tile for the page: the master, one frame beside it, maps, frames that were left out.

Each becomes a ``data:`` address, so that the page needs no file beside it.
"""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from zemosaic_phase3.engine.slab import frame_block
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.report.story import Story
from zemosaic_phase3.report.stretch import (
    StretchName,
    apply_stretch,
    block_means,
    curve,
    planes_of,
    shrink,
    sky_levels,
    stretch,
)

MASTER_PX: Final = 1600  # longest sides, px
MAP_PX: Final = 720
THUMB_PX: Final = 260
PAIR_PX: Final = 400
MASTER_QUALITY: Final = 88  # of JPEG
THUMB_QUALITY: Final = 78
THUMBS: Final = 24  # frames of the contact sheet, at most ...
THUMB_SECONDS: Final = 4.0  # ... and those that can be read within this time
BAND_ROWS: Final = 256  # read at once
LEGEND_STOPS: Final = 9
RIGHT_ANGLE: Final = 1e-3  # a frame counts as lying on the tile's grid where its WCS agrees to this part
TOP_PERCENTILE: Final = 99.8  # of a map; what is above has the last colour


@dataclass(frozen=True)
class Picture:
    """A picture: its address, its size in px."""

    src: str
    width: int
    height: int


@dataclass(frozen=True)
class MapPicture:
    """A map in false colours; ``low`` and ``high`` are what the first and the last colour mean."""

    picture: Picture
    low: str
    high: str
    colours: tuple[str, ...]  # evenly spaced along the legend


@dataclass(frozen=True)
class LeftOut:
    """A frame that was left out; no picture where its file cannot be read any more, or there was no time."""

    name: str
    reason: str
    picture: Picture | None


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg(picture: np.ndarray, quality: int = MASTER_QUALITY) -> Picture:
    """Return a picture, uint8 (h, w) or (h, w, 3), as a JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    shown = Image.fromarray(np.ascontiguousarray(picture))
    shown.save(stream, "JPEG", quality=quality, subsampling=0, optimize=True, progressive=True)
    return Picture(_address(stream.getvalue(), "jpeg"), picture.shape[1], picture.shape[0])


def _upright(picture: np.ndarray, story: Story) -> np.ndarray:
    return picture[::-1] if story.is_bottom_up else picture


def master_pictures(story: Story) -> dict[StretchName, Picture]:
    """Return the tile, stretched: with a curve for each colour, and for a coloured one with a curve for all too."""
    small = shrink(story.image, MASTER_PX)
    wanted: tuple[StretchName, ...] = ("unlinked", "neutral") if small.ndim == 3 else ("unlinked",)
    return {colours: jpeg(_upright(stretch(small, colours=colours), story)) for colours in wanted}


def map_picture(values: np.ndarray, colours: str, story: Story, *, unit: str = "", low: float = 0.0) -> MapPicture:
    """Return a map in false colours.

    Parameters
    ----------
    values : ndarray (H, W)
        NaN = no data, which has the first colour.
    colours : str
        A colour map of matplotlib.
    unit : str
        Set behind the numbers of the legend.
    low : float
        What the first colour means.
    """
    import matplotlib
    from PIL import Image

    small = shrink(np.asarray(values, np.float32), MAP_PX)
    known = small[np.isfinite(small)]
    high = max(float(np.percentile(known, TOP_PERCENTILE)) if known.size else 0.0, low + 1e-9)
    index = np.nan_to_num(np.clip((small - low) / (high - low), 0.0, 1.0) * 255.0)
    table = matplotlib.colormaps[colours](np.arange(256), bytes=True)[:, :3]
    shown = Image.fromarray(np.ascontiguousarray(_upright(np.rint(index).astype(np.uint8), story)), "P")
    shown.putpalette(table.tobytes())
    stream = io.BytesIO()
    shown.save(stream, "PNG", optimize=True)
    stops = table[np.linspace(0, 255, LEGEND_STOPS).astype(int)]
    return MapPicture(
        Picture(_address(stream.getvalue(), "png"), small.shape[1], small.shape[0]),
        f"{low:.4g}{unit}",
        f"{high:.3g}{unit}" if high > low + 1e-9 else f"{low:.4g}{unit}",
        tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in stops),
    )


def coverage_map(story: Story) -> MapPicture:
    """Return how many samples lie behind each pixel, the mean of the channels."""
    return map_picture(_mean(story.maps["COVERAGE"]), "viridis", story)


def rejection_map(story: Story, name: str) -> MapPicture:
    """Return which share of the samples of each pixel was rejected; ``name`` is "REJ_LOW" or "REJ_HIGH"."""
    coverage, rejected = _mean(story.maps["COVERAGE"]), _mean(story.maps[name])
    share = np.where(coverage > 0, 100.0 * rejected / np.maximum(coverage, 1e-6), np.float32(np.nan))
    return map_picture(share, "inferno", story, unit=" %")


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=2, dtype=np.float32) if values.ndim == 3 else values.astype(np.float32)


def one_and_all(story: Story) -> tuple[Picture, Picture] | None:
    """Return the middle of the reference frame and of the tile as pictures; None as for :func:`pair_of`."""
    pair = pair_of(story)
    return None if pair is None else (jpeg(pair[0]), jpeg(pair[1]))


def pair_of(story: Story) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the middle of the reference frame and of the tile, stretched alike, one pixel of the tile a pixel.

    Both uint8, (h, w) or (h, w, 3). None where the frame cannot be read any more, or does not lie on
    the tile's grid pixel by pixel.
    """
    name = _reference(story)
    try:
        source = open_source(name) if name else None
        if source is None:
            return None
        x, y = _place_on_tile(source, story)
        height, width = (min(PAIR_PX, a, b) for a, b in zip(source.shape[:2], story.image.shape[:2], strict=True))
        top, left = (source.height - height) // 2, (source.width - width) // 2
        rows = slice(max(0, top + y), top + y + height), slice(max(0, left + x), left + x + width)
        after = story.image[rows]
        before = _rows(source, top, top + height)[:, left : left + width]
        if after.shape != before.shape or not np.isfinite(after).any():
            return None
        median, sigma, white = sky_levels(planes_of(story.image))
        here, noisy, _ = sky_levels(planes_of(before))
        shift = (sky_levels(planes_of(after))[0] - here).astype(np.float32)
        levels = curve(median, np.maximum(sigma, noisy), white, 0.2, -2.8)
        matched = planes_of(before) + shift
        left_picture = apply_stretch(matched if before.ndim == 3 else matched[..., 0], levels)
        return _upright(left_picture, story), _upright(apply_stretch(after, levels), story)
    except Exception:  # noqa: BLE001 - a file that went since, or changed: the page does without the picture
        return None


def _reference(story: Story) -> str:
    """Return the path of the reference, where it is known and still there."""
    wanted = Path(story.report.reference).name
    names = [] if story.frames is None else [str(name) for name in story.frames["NAME"]]
    found = [name for name in (story.report.reference, *names) if Path(name).name == wanted and Path(name).is_file()]
    return found[0] if found else ""


def _place_on_tile(source: FrameSource, story: Story) -> tuple[int, int]:
    """Return where on the tile the first pixel of the reference lies, (x, y) px.

    Raises
    ------
    ValueError
        The tile's grid is not that of the frame, moved by whole pixels.
    """
    if source.shape[:2] == story.image.shape[:2]:
        return 0, 0
    there = source.wcs()
    if there is None or story.wcs is None:
        raise ValueError("nothing tells where the frame lies")
    points = np.array([(0.0, 0.0), (source.width - 1.0, 0.0), (0.0, source.height - 1.0)])
    seen = story.wcs.all_world2pix(there.all_pix2world(points, 0), 0)
    if not np.allclose(seen - seen[0], points, atol=max(0.5, RIGHT_ANGLE * source.width)):
        raise ValueError("the tile has another scale than the frame")
    return round(float(seen[0, 0])), round(float(seen[0, 1]))


def _rows(source: FrameSource, top: int, bottom: int) -> np.ndarray:
    """Read rows of a frame, demosaiced, float32."""
    shape = (bottom - top, *source.shape[1:])
    return frame_block(source, top, bottom)[: int(np.prod(shape))].reshape(shape)


def contact_sheet(dropped: Sequence[tuple[str, str]], *, most: int = THUMBS) -> list[LeftOut]:
    """Return pictures of frames that were left out: of each reason some, as long as there is time.

    Parameters
    ----------
    dropped : sequence of (name, reason)
    most : int
        Pictures.
    """
    until = time.monotonic() + THUMB_SECONDS
    sheet = []
    for name, reason in in_turn(dropped)[:most]:
        picture = None
        if time.monotonic() < until and Path(name).is_file():
            picture = _thumb(name)
        sheet.append(LeftOut(Path(name).name, reason, picture))
    return sheet


def kind_of(reason: str) -> str:
    """Return a reason without its numbers: what frames have in common that were left out alike."""
    return re.sub(r"\d+(\.\d+)?", "#", reason)


def in_turn(dropped: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return frames so that each reason comes before any comes a second time."""
    seen: dict[str, int] = {}
    ranked = []
    for k, (name, reason) in enumerate(dropped):
        kind = kind_of(reason)
        seen[kind] = seen.get(kind, 0) + 1
        ranked.append((seen[kind], k, name, reason))
    return [(name, reason) for _, _, name, reason in sorted(ranked)]


def _thumb(name: str) -> Picture | None:
    try:
        source = open_source(name)
        factor = max(1, -(-max(source.shape[:2]) // THUMB_PX))
        step = max(1, BAND_ROWS // factor) * factor
        bands = []
        for top in range(0, source.height, step):
            rows = _rows(source, top, min(top + step, source.height))
            if len(rows) >= factor:
                bands.append(block_means(rows, factor))
        picture = stretch(np.concatenate(bands))
        return jpeg(picture[::-1] if source.row_order == "BOTTOM-UP" else picture, THUMB_QUALITY)
    except Exception:  # noqa: BLE001 - it was left out for a reason, which may be that it cannot be read
        return None


def maps_of(story: Story) -> Mapping[str, MapPicture]:
    """Return the maps that a tile has, as pictures, by what they show."""
    if "COVERAGE" not in story.maps:
        return {}
    found = {"coverage": coverage_map(story)}
    for name, what in (("REJ_HIGH", "rejected high"), ("REJ_LOW", "rejected low")):
        if name in story.maps:
            found[what] = rejection_map(story, name)
    return found
