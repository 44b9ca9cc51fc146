"""TIFF images, read with the package ``tifffile``: plain ones by rows, others by the strips or tiles they need."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.codec import Codec, check_number_type
from zemosaic_phase3.io.foreign_file import (
    TOP_DOWN,
    DecodedFile,
    ForeignFile,
    cards_without_sky,
    decoding_errors,
    library,
)
from zemosaic_phase3.io.layout import MIN_SIDE_PX, check_file_size, image_layout, mosaic_of
from zemosaic_phase3.io.moments import iso
from zemosaic_phase3.io.pixel_files import file_errors

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import Cards, Size
    from zemosaic_phase3.io.pixel_files import Place

TIFF_MAGICS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY, _RGB, _CFA = 1, 2, 32803  # photometric interpretations; TIFF 6.0, and TIFF/EP for the last
_DNG_VERSION, _CFA_PATTERN, _CFA_SIZE = 50706, 33422, 33421
_CARD: Final = re.compile(r"([A-Z][A-Z0-9_-]{0,7}) *= *('(?:[^']|'')*'|[^/]*)")


class TiffSegments(DecodedFile):
    """A TIFF image in compressed strips or tiles; only those that the rows touch are decoded."""

    __slots__ = ("_segment_bytes",)

    def __init__(self, *args: Any, segment_bytes: int) -> None:
        super().__init__(*args)
        self._segment_bytes = segment_bytes

    @property
    def whole_bytes(self) -> int:
        """Bytes that decoding takes while it goes on: one strip or tile, and once more what it is made from."""
        return 2 * self._segment_bytes

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        tifffile = library("tifffile", self.name, "a TIFF file")
        block = np.empty((y1 - y0, self.width, *shape[2:]), self._codec.stored.newbyteorder("="))
        with decoding_errors(self.name, "its TIFF strips"), Path(self._place.path).open("rb") as stream:
            self.require_unchanged(stream.fileno())
            with tifffile.TiffFile(stream) as tiff:
                _fill(tiff.pages[0], stream, y0, y1, block)
            self.require_unchanged(stream.fileno())
        codec = self._codec._replace(stored=block.dtype)
        return codec.decode(block.reshape(shape))

    def _whole(self) -> np.ndarray:
        raise FrameError(self.name, "is read by its strips")


def _fill(page: Any, stream: Any, y0: int, y1: int, block: np.ndarray) -> None:
    """Decode the strips or tiles of a page that rows y0 to y1 touch."""
    columns = block.reshape(*block.shape[:2], -1)
    length = page.tilelength if page.is_tiled else page.rowsperstrip
    across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
    down = -(-page.imagelength // length)
    is_apart = page.planarconfig == 2 and page.samplesperpixel > 1
    tables = page.jpegtables
    for plane in range(columns.shape[2] if is_apart else 1):
        for row in range(y0 // length, -(-y1 // length)):
            for k in range((plane * down + row) * across, (plane * down + row + 1) * across):
                offset, count = page.dataoffsets[k], page.databytecounts[k]
                stream.seek(offset)
                data = stream.read(count) if count else None
                if data is not None and len(data) < count:
                    raise ValueError(f"strip {k} ends after {len(data)} of {count} bytes")
                segment, place, size = page.decode(data, k, jpegtables=tables)
                top, left = place[2], place[3]
                here = slice(max(top, y0) - top, min(top + size[1], y1) - top)
                there = slice(max(top, y0) - y0, min(top + size[1], y1) - y0)
                wide = min(size[2], columns.shape[1] - left)
                target = columns[there, left : left + wide]
                if segment is None:
                    target[...] = page.nodata
                elif is_apart:
                    target[..., plane] = segment[0, here, :wide, 0]
                else:
                    target[...] = segment[0, here, :wide, : columns.shape[2]]


def open_tiff(place: Place, name: str, bayer: str, header: Cards) -> ForeignFile:
    """Open the first image of a TIFF file.

    Raises
    ------
    FrameError
        The file is cut short or damaged, or its numbers are no brightness.
    """
    tifffile = library("tifffile", name, "a TIFF file")
    with file_errors(name):
        held = Path(place.path).stat().st_size
    with decoding_errors(name, "its TIFF header"), tifffile.TiffFile(place.path) as tiff:
        if not len(tiff.pages):
            raise FrameError(name, "truncated: it is a TIFF file without an image; copy it again")
        page = tiff.pages[0]
        size = _size_of(page, name)
        cards = {**_cards(page), **exif_cards(page)}
        stored = page.dtype.newbyteorder(tiff.byteorder)
        ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        check_file_size(name, max(ends, default=0), held, page.shape)
        samples = page.samplesperpixel
        is_plain = page.is_contiguous and page.compression == 1 and samples == size[2]
        offset = page.dataoffsets[0]
        is_apart = page.planarconfig == 2 and samples > 1
        length = page.tilelength if page.is_tiled else min(page.rowsperstrip, size[0])
        wide = page.tilewidth if page.is_tiled else size[1]
    check_number_type(stored, name)
    cards = cards_without_sky(cards)
    cfa = mosaic_of(bayer, size, name, cards, header)
    if is_plain:
        check_file_size(name, offset + size[0] * size[1] * size[2] * stored.itemsize, held, size)
        place = place._replace(offset=offset, order="planes" if is_apart else "rows")
        return ForeignFile(name, size, Codec(stored), cfa, place, cards)
    segment_bytes = length * wide * samples * stored.itemsize
    return TiffSegments(name, size, Codec(stored), cfa, place, cards, segment_bytes=segment_bytes)


def _size_of(page: Any, name: str) -> Size:
    """Return (height, width, planes) of a page that holds an image of brightness."""
    samples, kind = page.samplesperpixel, int(page.photometric)
    if page.dtype is None or page.bitspersample not in (8, 16, 32, 64):
        raise FrameError(name, f"its TIFF numbers of {page.bitspersample} bits are not read; save it with 16 or 32")
    if kind not in (_GREY, _RGB, _CFA) or samples not in ((1, 2) if kind != _RGB else (3, 4)):
        meaning = getattr(page.photometric, "name", kind)
        raise FrameError(
            name, f"is a TIFF file of {samples} {meaning} samples, which are no brightness; save it as RGB or grey"
        )
    if page.imagedepth != 1:
        raise FrameError(name, "is a TIFF file of a volume; save it as one image")
    height, width = page.imagelength, page.imagewidth
    size, _ = image_layout((height, width, 3) if kind == _RGB else (height, width), name, minimum=MIN_SIDE_PX)
    return size


def _cards(page: Any) -> dict[str, Any]:
    """Return the FITS cards that programs such as ASTAP put into the description of a TIFF file."""
    text = str(page.description or "")
    cards: dict[str, Any] = {}
    for line in text.splitlines() if "=" in text else ():
        found = _CARD.match(line)
        if found is None:
            continue
        value = found[2].strip()
        if value.startswith("'"):
            cards.setdefault(found[1], value.strip("'").replace("''", "'").strip())
        else:
            cards.setdefault(found[1], _number(value))
    if len(cards) < 2:  # any text may have one equals sign
        cards = {}
    pattern, cell = page.tags.get(_CFA_PATTERN), page.tags.get(_CFA_SIZE)
    if pattern is not None and (cell is None or tuple(cell.value) == (2, 2)):
        colours = pattern.value if isinstance(pattern.value, bytes) else bytes(pattern.value)
        if len(colours) == 4 and max(colours) < 3:
            cards.setdefault("BAYERPAT", "".join("RGB"[c] for c in colours))
    return {key: value for key, value in cards.items() if value != ""}


def _number(text: str) -> str | bool | int | float:
    if text in ("T", "F"):
        return text == "T"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def exif_cards(page: Any) -> dict[str, Any]:
    """Return what EXIF says of exposure, camera and time, as FITS cards.

    A time without its zone is local, and no moment: DATE-LOC.
    """
    cards: dict[str, Any] = {"ROWORDER": TOP_DOWN}
    tags = {tag.name: tag.value for tag in page.tags}
    exif = tags.get("ExifTag")
    known: dict[str, Any] = {**tags, **(exif if isinstance(exif, dict) else {})}
    model = known.get("Model")
    if isinstance(model, str) and model.strip():
        cards["INSTRUME"] = model.strip()
    for key, card in (("ExposureTime", "EXPTIME"), ("FocalLength", "FOCALLEN")):
        value = known.get(key)
        if isinstance(value, tuple) and len(value) == 2 and value[1]:
            value = value[0] / value[1]
        if isinstance(value, int | float) and value > 0:
            cards[card] = float(value)
    iso_speed = known.get("ISOSpeedRatings", known.get("PhotographicSensitivity"))
    iso_speed = iso_speed[0] if isinstance(iso_speed, tuple) and iso_speed else iso_speed
    if isinstance(iso_speed, int | float) and iso_speed > 0:
        cards["ISOSPEED"] = iso_speed
    cards.update(_time_cards(known))
    return cards


def _time_cards(known: dict[str, Any]) -> dict[str, str]:
    text = known.get("DateTimeOriginal", known.get("DateTime"))
    zone = known.get("OffsetTimeOriginal", known.get("OffsetTime"))
    if not isinstance(text, str):
        return {}
    part = str(known.get("SubsecTimeOriginal", known.get("SubSecTimeOriginal", ""))).strip()
    try:
        at = datetime.strptime(text.strip().rstrip("\0"), "%Y:%m:%d %H:%M:%S")  # noqa: DTZ007 - the zone is elsewhere
        at = at.replace(microsecond=int(part.ljust(6, "0")[:6]) if part.isdecimal() else 0)
        if isinstance(zone, str) and zone.strip():
            at = datetime.fromisoformat(f"{at.isoformat()}{zone.strip()}").astimezone(UTC).replace(tzinfo=None)
            return {"DATE-OBS": iso(at)}
    except ValueError:
        return {}
    return {"DATE-LOC": iso(at)}
