"""Pictures as files: a stretched image, one frame beside the stack; marks on them.

A PNG needs no other package; text on it is drawn by Pillow, of the extra ``report``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from zemosaic_phase3.pipeline.outputs import PREVIEW_SIDE_PX
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.pipeline.tile_facts import facts_of
from zemosaic_phase3.report.needs import require
from zemosaic_phase3.report.png import write_png
from zemosaic_phase3.report.sky_marks import SkyMarks, sky_marks
from zemosaic_phase3.report.story import shown_bottom_up
from zemosaic_phase3.report.stretch import (
    StretchName,
    apply_stretch,
    curve,
    planes_of,
    shrink,
    sky_levels,
    stretch,
)

PictureSize = int | Literal["half", "full"]
"""Longest side in pixels, at most; "half" and "full" are those of the image."""

SEPARATOR_PX: Final = 4  # width of the line between the two halves of a comparison
SEPARATOR_GREY: Final = 255


def longest_side(shape: tuple[int, ...], size: PictureSize) -> int:
    """Return what a size of a picture is for an image of a shape, px.

    Raises
    ------
    ValueError
        It is less than a pixel.
    """
    side = {"full": max(shape[:2]), "half": -(-max(shape[:2]) // 2)}.get(str(size), size)
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"size = {size!r} must be 'half', 'full' or at least 1 pixel")
    return side


def side_by_side(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Stretch two linear images of the same field alike and set them beside each other.

    The sky of ``before`` is shifted to the sky of ``after`` per channel (levels differ from frame to frame), nothing
    is scaled, and both pass through **one** curve with white and midtone from ``after`` and a black point below the
    noise of both: noise, stars and nebula are then shown at the same contrast on both sides.

    Parameters
    ----------
    before, after : ndarray (H, W) or (H, W, 3) float
        Left and right half, same shape; ADU.

    Returns
    -------
    ndarray uint8 (H, 2 W + 4) or (H, 2 W + 4, 3)

    Raises
    ------
    ValueError
        The shapes differ.
    """
    if np.shape(before) != np.shape(after):
        raise ValueError(f"before {np.shape(before)} and after {np.shape(after)} differ in shape; show the same field")
    median_before, sigma_before, _ = sky_levels(planes_of(before))
    median, sigma, top = sky_levels(planes_of(after))
    levels = curve(median, np.maximum(sigma, sigma_before), top, 0.2, -2.8)
    shift = (median - median_before).astype(np.float32)
    matched = planes_of(before) + shift
    left = apply_stretch(matched if np.ndim(before) == 3 else matched[..., 0], levels)
    right = apply_stretch(after, levels)
    return beside(left, right)


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Set two pictures beside each other, with a line between."""
    line = np.full((left.shape[0], SEPARATOR_PX, *left.shape[2:]), SEPARATOR_GREY, np.uint8)
    return np.concatenate([left, line, right], axis=1)


def save_png(
    image: np.ndarray,
    path: Path | str,
    *,
    size: PictureSize = PREVIEW_SIDE_PX,
    colours: StretchName = "unlinked",
    marks: SkyMarks | None = None,
    flip_vertical: bool = False,
) -> Path:
    """Write a preview of a linear image, or a picture that is already uint8, as an 8-bit PNG.

    A linear image is shrunk by block means, then stretched. The file appears complete or not at all.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3)
        uint8: written as it is. Anything else: linear, ADU, NaN where invalid.
    path : path
        File to write, replaced if it exists.
    size : int, "half" or "full"
        Longest side of a linear image's preview, px.
    colours : StretchName
        How the channels share the curve.
    marks : SkyMarks, optional
        Name, exposure, scale bar and arrows to draw on it.
    flip_vertical : bool
        False: array row 0 is the top of the picture, right for cameras that store from the top down (Seestar).
        True: row 0 is the bottom, the FITS convention of most viewers.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        The file cannot be written.
    ValueError
        Not an image, or ``size`` below 1.
    """
    side = longest_side(np.shape(image), size)
    picture = image if np.asarray(image).dtype == np.uint8 else stretch(shrink(image, side), colours=colours)
    planes_of(picture)  # refuse what is not an image before a file is made
    picture = picture[::-1] if flip_vertical else picture
    if marks is not None:
        picture = draw_marks(picture, marks if not flip_vertical else marks.flipped(), np.shape(image)[1])
    return write_png(picture, Path(path), flip_vertical=False)


def write_preview(
    tile: Tile,
    path: Path | str,
    *,
    size: PictureSize = PREVIEW_SIDE_PX,
    colours: StretchName = "unlinked",
    annotate: bool = False,
) -> Path:
    """Write a stretched picture of a tile, the way up its camera means, with ``annotate`` with its marks.

    Raises
    ------
    OutputError
        The file cannot be written.
    SpecError
        Pillow is missing, and marks are wanted.
    """
    marks = sky_marks(facts_of(tile), tile.wcs) if annotate else None
    is_bottom_up = shown_bottom_up(tile.header, tile.wcs)
    return save_png(tile.image, path, size=size, colours=colours, marks=marks, flip_vertical=is_bottom_up)


def draw_marks(picture: np.ndarray, marks: SkyMarks, image_width: int) -> np.ndarray:
    """Draw name, exposure, scale bar and arrows onto a picture that is the right way up.

    Parameters
    ----------
    picture : ndarray (h, w) or (h, w, 3) uint8
    marks : SkyMarks
    image_width : int
        Of the image that the picture shows, px, in which the marks are measured.

    Returns
    -------
    ndarray uint8
        A copy.
    """
    require("--annotate", "PIL")
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    shown = Image.fromarray(np.ascontiguousarray(picture))
    draw: Any = ImageDraw.Draw(shown)
    white, black = ("white", "black") if picture.ndim == 3 else (255, 0)
    unit = max(10.0, min(height, width) / 32)  # height of a letter
    small, large = (ImageFont.load_default(size=factor * unit) for factor in (0.9, 1.25))
    edge, stroke = 0.9 * unit, max(1, round(unit / 9))
    options: dict[str, Any] = {"fill": white, "stroke_width": stroke, "stroke_fill": black}
    plain = str.maketrans("′″", "'\"")  # the font has no primes
    draw.text((edge, edge), marks.title, font=large, anchor="lt", **options)
    for k, line in enumerate(marks.lines):
        draw.text((edge, edge + (1.9 + 1.3 * k) * unit), line, font=small, anchor="lt", **options)
    if marks.bar_px > 0:
        length, y = marks.bar_px * width / image_width, height - edge
        for colour, thick in ((black, 3 * stroke), (white, stroke)):
            draw.line([(edge, y), (edge + length, y)], fill=colour, width=thick)
            for x in (edge, edge + length):
                draw.line([(x, y - unit / 3), (x, y + unit / 3)], fill=colour, width=thick)
        draw.text(
            (edge + length / 2, y - 0.6 * unit), marks.bar_label.translate(plain), font=small, anchor="mb", **options
        )
    reach = 2.6 * unit
    x0, y0 = width - edge - 1.35 * reach, height - edge - 1.35 * reach
    for name, arrow, part in (("N", marks.north, 1.0), ("E", marks.east, 0.7)):
        if arrow is None:
            continue
        tip = (x0 + part * reach * arrow[0], y0 + part * reach * arrow[1])
        for colour, thick in ((black, 3 * stroke), (white, stroke)):
            draw.line([(x0, y0), tip], fill=colour, width=thick)
        if name == "N":
            (ax, ay), head = arrow, 0.35 * unit
            ends = [(tip[0] - head * (1.6 * ax + s * ay), tip[1] - head * (1.6 * ay - s * ax)) for s in (1, -1)]
            draw.polygon([(tip[0] + head * ax, tip[1] + head * ay), *ends], fill=white, outline=black)
        at = (x0 + (part * reach + 0.75 * unit) * arrow[0], y0 + (part * reach + 0.75 * unit) * arrow[1])
        draw.text(at, name, font=small, anchor="mm", **options)
    return np.asarray(shown)


def before_after_png(
    before: np.ndarray,
    after: np.ndarray,
    path: Path | str,
    *,
    size: PictureSize = PREVIEW_SIDE_PX,
    flip_vertical: bool = False,
) -> Path:
    """Write one frame and the master beside each other, stretched alike (:func:`side_by_side`).

    Both halves are cut to the same middle part so that the picture is at most ``size`` wide; they are never
    shrunk, because block means would hide the noise that the picture is there to show.

    Parameters
    ----------
    before, after : ndarray (H, W) or (H, W, 3) float
        A single frame on the master's grid, and the master; ADU.
    path, size, flip_vertical
        As for :func:`save_png`.

    Raises
    ------
    OutputError
        The file cannot be written.
    ValueError
        The shapes differ, or ``size`` is too small for two halves.
    """
    side = longest_side(np.shape(after), size)
    wide = (side - SEPARATOR_PX) // 2
    if wide < 1:
        raise ValueError(f"size = {size!r} leaves no room for two halves; use at least {SEPARATOR_PX + 2}")
    height, width = np.shape(after)[:2]
    rows, columns = min(height, side), min(width, wide)
    y, x = (height - rows) // 2, (width - columns) // 2
    whole = side_by_side(before, after)  # stretched before it is cut: a part may be all nebula, without sky to go by
    halves = whole[:, :width], whole[:, width + SEPARATOR_PX :]
    cut = [half[y : y + rows, x : x + columns] for half in halves]
    return write_png(beside(*cut), Path(path), flip_vertical)
