"""Camera raw files, read with the package ``rawpy`` (LibRaw): the colour mosaic as the sensor saw it.

Numbers are taken as they are, with the camera's black level in them, as darks and bias frames of the camera have it
too. Rows are those of the sensor: LibRaw's turn by the camera's position is not applied, since the stars register.
"""

from __future__ import annotations

import functools
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.codec import Codec
from zemosaic_phase3.io.foreign_file import TOP_DOWN, DecodedFile, decoding_errors, library
from zemosaic_phase3.io.layout import MIN_SIDE_PX, image_layout, mosaic_of
from zemosaic_phase3.io.moments import iso

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import Cards
    from zemosaic_phase3.io.origin import Origin
    from zemosaic_phase3.io.pixel_files import Place

_UINT16: Final = np.dtype(np.uint16)
WHAT: Final = "a camera raw file"


class CameraRaw(DecodedFile):
    """The mosaic of a camera raw file."""

    __slots__ = ()

    @property
    def origin(self) -> Origin | None:
        """The file, and the version of the decoder."""
        found = super().origin
        return None if found is None else found._replace(recipe=f"{found.recipe} rawpy {_version()}")

    def _whole(self) -> np.ndarray:
        rawpy = library("rawpy", self.name, WHAT)
        with decoding_errors(self.name, "its raw pixels"), rawpy.imread(self._place.path) as raw:
            return np.array(raw.raw_image_visible, _UINT16)


@functools.cache
def _version() -> str:
    return metadata.version("rawpy")


def open_camera_raw(place: Place, name: str, bayer: str, header: Cards) -> CameraRaw:
    """Open a camera raw file with a Bayer mosaic, or one of a camera without colours.

    Raises
    ------
    FrameError
        The file is damaged, of an unknown camera, or has no mosaic of two by two pixels.
    """
    rawpy = library("rawpy", name, WHAT)
    with decoding_errors(name, "its raw header"), rawpy.imread(place.path) as raw:
        if raw.raw_type != rawpy.RawType.Flat:
            raise FrameError(
                name, "has three colours in each pixel and no mosaic, which is not read; convert it to FITS"
            )
        sizes, n_colours = raw.sizes, raw.num_colors
        pattern = raw.raw_pattern
        colours = raw.color_desc.decode("ascii", "replace")
        if pattern is not None and n_colours > 1 and pattern.shape != (2, 2) and bayer == "auto":
            cell = " x ".join(map(str, pattern.shape))
            raise FrameError(
                name,
                f"its colour mosaic of {cell} pixels (X-Trans) is not demosaiced; use --bayer none for a grey image",
            )
        cards = _cards(raw, sizes)
        if pattern is not None and n_colours > 1 and pattern.shape == (2, 2):
            cell = "".join(
                colours[int(raw.raw_color(sizes.top_margin + y, sizes.left_margin + x))] for y in (0, 1) for x in (0, 1)
            )
            cards["BAYERPAT"] = cell
    size, _ = image_layout((sizes.height, sizes.width), name, minimum=MIN_SIDE_PX)
    exif = _exif_cards(place.path)
    if "DATE-OBS" in exif:
        cards.pop("DATE-LOC", None)
    cards = {**exif, **cards}
    return CameraRaw(name, size, Codec(_UINT16), mosaic_of(bayer, size, name, cards, header), place, cards)


def _cards(raw: Any, sizes: Any) -> dict[str, Any]:
    """Return what LibRaw says of a frame, as FITS cards; its times are those of the camera's clock, without a zone."""
    cards: dict[str, Any] = {"ROWORDER": TOP_DOWN}
    other, black = raw.other, raw.black_level_per_channel
    if other.shutter_speed > 0:
        cards["EXPTIME"] = float(f"{other.shutter_speed:.6g}")
    if other.iso_speed > 0:
        cards["ISOSPEED"] = float(other.iso_speed)
    if other.focal_length > 0:
        cards["FOCALLEN"] = float(f"{other.focal_length:.6g}")
    if getattr(other.timestamp, "year", 0) > 1990:
        cards["DATE-LOC"] = iso(other.timestamp)
    if black:
        cards["BLKLEVEL"] = float(np.mean(black))
    if raw.white_level and raw.white_level > 0:
        cards["SATURATE"] = float(raw.white_level)
    return cards


def _exif_cards(path: str) -> dict[str, Any]:
    """Return what the EXIF of a raw file that is built as TIFF says; nothing where it is not, or cannot be read."""
    try:
        import tifffile

        from zemosaic_phase3.io.tiff_file import exif_cards

        with tifffile.TiffFile(path) as tiff:
            return exif_cards(tiff.pages[0])
    except Exception:  # noqa: BLE001 - LibRaw has read the file; this only says more of it
        return {}
