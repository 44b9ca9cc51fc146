"""XISF files, PixInsight's own format, read with the package ``xisf``.

An uncompressed image is read by rows like any other; a compressed one is decoded whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.codec import Codec, check_number_type
from zemosaic_phase3.io.foreign_file import DecodedFile, ForeignFile, cards_without_sky, decoding_errors, library
from zemosaic_phase3.io.layout import MIN_SIDE_PX, check_file_size, image_layout, mosaic_of
from zemosaic_phase3.io.pixel_files import Place, file_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zemosaic_phase3.io.frame import Cards

XISF_MAGIC: Final = b"XISF0100"
MOST_HEADER_BYTES: Final = 1 << 26
MOST_RATIO: Final = {"zlib": 1032, "lz4": 255, "lz4hc": 255}  # of a block; zstd is told its size and keeps to it
_PROPERTIES: Final = {
    "Instrument:ExposureTime": "EXPTIME", "Instrument:Filter:Name": "FILTER", "Instrument:Camera:Name": "INSTRUME",
    "Instrument:Camera:Gain": "EGAIN", "Instrument:Camera:ISOSpeed": "ISOSPEED",
    "Instrument:Sensor:Temperature": "CCD-TEMP",
    "Instrument:Camera:XBinning": "XBINNING", "Instrument:Camera:YBinning": "YBINNING",
    "Instrument:Telescope:Name": "TELESCOP",
    "Observation:Object:Name": "OBJECT", "Observation:Time:Start": "DATE-OBS", "Observation:Time:End": "DATE-END",
}  # fmt: skip
"""Properties of PixInsight, and the cards that say the same."""


class XisfCompressed(DecodedFile):
    """An image that is compressed in its file."""

    __slots__ = ()

    def _whole(self) -> np.ndarray:
        xisf = library("xisf", self.name, "an XISF file")
        with decoding_errors(self.name, "its compressed image"):
            pixels = xisf.XISF(self._place.path).read_image(0, data_format="channels_last")
        return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def open_xisf(place: Place, name: str, bayer: str, header: Cards) -> ForeignFile:
    """Open the first image of an XISF file.

    Raises
    ------
    FrameError
        The file is cut short or damaged, or stored in a way that is not read.
    """
    xisf = library("xisf", name, "an XISF file")
    with file_errors(name), Path(place.path).open("rb") as stream:
        length = int.from_bytes(stream.read(12)[8:], "little")
        held = Path(place.path).stat().st_size
    if length > min(held, MOST_HEADER_BYTES):
        raise FrameError(name, f"truncated: its XISF header claims {length} of {held} bytes; copy it again")
    with decoding_errors(name, "its XISF header"):
        images = xisf.XISF(place.path).get_images_metadata()
        if not images:
            raise FrameError(name, "is an XISF file without an image; save it again")
        image = images[0]
        width, height, planes = image["geometry"]
        stored = image["dtype"].newbyteorder(">" if image.get("byteOrder") == "big" else "<")
        location, compression = image["location"], image.get("compression")
        cards = cards_without_sky(_cards(image))
    check_number_type(stored, name)
    by_pixel = image.get("pixelStorage", "Planar") == "Normal" and planes > 1
    size, _ = image_layout((height, width, planes) if planes > 1 else (height, width), name, minimum=MIN_SIDE_PX)
    n_bytes = width * height * planes * stored.itemsize
    if location[0] != "attachment":
        raise FrameError(name, f"its XISF image is stored {location[0]}, which is not read; save it as FITS")
    _, offset, length = location
    check_file_size(name, offset + length, held, (height, width, planes))
    if image.get("colorSpace", "Gray") == "CIELab":
        raise FrameError(name, "its colours are CIELab, which have no linear brightness; save it as RGB")
    cfa = mosaic_of(bayer, size, name, cards, header)
    order = "rows" if by_pixel or planes == 1 else "planes"
    if compression is None:
        check_file_size(name, n_bytes, length, (height, width, planes))
        return ForeignFile(name, size, Codec(stored), cfa, place._replace(offset=offset, order=order), cards)
    codec_name, unpacked, _ = compression
    ratio = MOST_RATIO.get(codec_name.partition("+")[0], 1 << 20)
    if unpacked != n_bytes or n_bytes > ratio * length + 4096:
        raise FrameError(
            name, f"damaged: {length} bytes of {codec_name} are no {n_bytes} bytes of pixels; copy it again"
        )
    if by_pixel or stored.byteorder == ">":
        raise FrameError(
            name, "its compressed image is stored pixel by pixel or big-endian, which is not read; save it as FITS"
        )
    return XisfCompressed(name, size, Codec(stored), cfa, place._replace(offset=offset, order=order), cards)


def _cards(image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the FITS keywords of an image, and of its properties those that the keywords leave out."""
    cards: dict[str, Any] = {}
    for key, entries in image.get("FITSKeywords", {}).items():
        if key not in ("HISTORY", "COMMENT", "") and entries:
            cards[key.upper()] = _value(entries[0]["value"])
    for key, card in _PROPERTIES.items():
        value = image.get("XISFProperties", {}).get(key, {}).get("value")
        if card not in cards and isinstance(value, str | int | float | np.number):
            cards[card] = _value(str(value))
    pattern = image.get("XISFProperties", {}).get("PCL:CFASourcePattern", {}).get("value")
    if "BAYERPAT" not in cards and isinstance(pattern, str):
        cards["BAYERPAT"] = pattern
    return {key: value for key, value in cards.items() if value != ""}


def _value(text: str) -> str | bool | int | float:
    """Return what a keyword's text means; as text where it is nothing else."""
    if text in ("T", "F"):
        return text == "T"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
