"""Further images in a file that was opened by its first one; all frames of a SER video are.

Cameras with several chips write one image each, and programs put maps of weights, errors and masks behind the image.
The former are frames; the latter are told by their names, their kind of numbers and their size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io import fits_header as headers
from zemosaic_phase3.io.frame_kind import read_cards
from zemosaic_phase3.io.pixel_files import PixelFile, TileCompressedFile, file_errors
from zemosaic_phase3.io.remote import opened
from zemosaic_phase3.io.ser_file import SerFrame

if TYPE_CHECKING:
    from io import BufferedIOBase

    from zemosaic_phase3.io.frame import FrameSource

MOST_IMAGES: Final = 1000  # of one file; a file with more is no set of exposures
SMALL_PART: Final = 16  # an image with fewer pixels than this part of the first one is a thumbnail

_MAP_WORDS: Final = re.compile(
    r"(?:^|[^a-z])(?:alpha|dq|err|errs|error|errors|mask|msk|masks|bpm|badpix|var|variance|ivar|invvar|wht|wgt|weight|"
    r"weights|weightmap|coverage|ctx|context|expmap|exposuremap|nsamp|samp|time|uncert|uncertainty|sigma|std|"
    r"stddev|rms|noise|snr|quality|qual|flag|flags|bkg|bkgd|background|sky|skymap|model|resid|residual|residuals|psf|"
    r"thumb|thumbnail|preview|footprint|seg|segm|segmap|segmentation|area|conf|confidence|drz|wcsdvarr|d2imarr|"
    r"iccprofile|\w*map|maps|histogram|flat|dark|bias|gainmap|chisq|chi2|hits|nexp|nimage|distortion|reg\w*|rej\w*|"
    r"pixeldq|groupdq|pixmask|starmask)(?:[^a-z]|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Further:
    """Units of a file, behind that of its first image, that hold a frame each; and what else is said of it."""

    unit: int  # of the first image
    frames: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def further_images(source: FrameSource) -> Further:
    """Look for further images in the file of a source; a file that ends with its first image is not opened again.

    An image is a frame if it has the shape and the kind of numbers of the first one, and no name that means a map. One
    of another shape is noted, small pictures and maps are not. A tile of this program is one image.

    Raises
    ------
    FrameError
        The file can no longer be read.
    """
    if isinstance(source, SerFrame):
        return Further(source.place.unit, list(range(source.place.unit + 1, source.count)))
    if not isinstance(source, PixelFile) or source.place.header_offset is None:
        return Further(0)
    place = source.place
    if place.member is not None:
        with file_errors(source.name), opened(place.path, source.identity.size) as plain, place.opened(plain) as stream:
            return _walk(stream, source)
    known_end = None if isinstance(source, TileCompressedFile) else _end_of_pixels(source)
    if known_end is not None and not place.gzipped and source.identity.size < known_end + headers.FITS_BLOCK:
        return Further(place.unit)
    with file_errors(source.name), opened(place.path, source.identity.size) as plain:
        if known_end is not None and place.gzipped and _length_inside(plain) < known_end + headers.FITS_BLOCK:
            return Further(place.unit)
        plain.seek(0)
        with place.opened(plain) as stream:
            return _walk(stream, source)


def _end_of_pixels(source: PixelFile) -> int:
    samples = source.height * source.width * (1 if source.cfa else source.channels)
    pixels = samples * source.stored_type.itemsize
    return source.place.offset + -(-pixels // headers.FITS_BLOCK) * headers.FITS_BLOCK


def _length_inside(plain: BinaryIO) -> int:
    """Length of what is in a ``.gz``, as its last bytes say it, where that is less than 4 GiB."""
    plain.seek(-4, 2)
    return int.from_bytes(plain.read(4), "little")


def _walk(stream: BufferedIOBase, source: PixelFile) -> Further:
    """Go through the units behind the first image."""
    name, unit = source.name, source.place.unit
    if b"ZMT_REF" in headers.header_bytes(stream, name, 0):
        return Further(unit)
    offset, number = source.place.header_offset or 0, unit
    first: headers.Hdu | None = None
    frames: list[int] = []
    others: list[str] = []
    try:
        while number < unit + MOST_IMAGES and (raw := headers.header_bytes(stream, name, offset)):
            hdu = headers.Hdu(offset, offset + len(raw), headers.scan_cards(raw, name))
            if first is None:
                first = hdu
            elif hdu.is_image and hdu.data_offset + hdu.data_bytes <= _limit(source):
                verdict = _verdict(hdu, first, str(read_cards(raw, {"EXTNAME"}).get("EXTNAME", "")))
                if verdict == "frame":
                    frames.append(number)
                elif verdict:
                    others.append(f"[{number}] ({verdict})")
            offset, number = hdu.data_offset + hdu.padded_bytes, number + 1
    except FrameError as exc:  # the first image is whole, and that is what was asked for
        others.append(f"what follows ({exc.reason})")
    if not others:
        return Further(unit, frames)
    images = "another image is" if len(others) == 1 else f"{len(others)} other images are"
    note = f"{Path(name).name}: {images} in it and not stacked: {', '.join(others[:5])}{', ...' if others[5:] else ''}"
    return Further(unit, frames, [note])


def _limit(source: PixelFile) -> float:
    place = source.place
    return float("inf") if place.is_packed else source.identity.size if place.member is None else place.member.size


def _verdict(hdu: headers.Hdu, first: headers.Hdu, name: str) -> str:
    """Return "frame", what is said of an image that is none, or nothing."""
    shape, wanted = _plain_shape(hdu.shape), _plain_shape(first.shape)
    is_map = _MAP_WORDS.search(re.sub(r"(?<=[a-z])(?=[A-Z])|\d+", " ", name)) is not None
    if is_map or prod(shape) * SMALL_PART < prod(wanted):
        return ""
    is_mask = hdu.bitpix == 8 != first.bitpix or hdu.bitpix > 0 > first.bitpix
    if is_mask:
        return ""
    called = f"{name}, " if name else ""
    if shape != wanted:
        return f"{called}{' x '.join(map(str, reversed(shape)))} pixels"
    if (hdu.bitpix < 0) != (first.bitpix < 0):
        return f"{called}other numbers than the first one: a map?"
    return "frame"


def _plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape without a colour axis of one plane."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
