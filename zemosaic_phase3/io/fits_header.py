"""FITS headers: find the image in a file, say how its pixels are coloured and where they lie on the sky.

A file's headers are walked card by card, and only the dozen cards that matter are parsed: opening ten thousand frames
costs seconds, not minutes. Cards that are written as nearly all are need no astropy, which takes 0.2 s to import. What
the cards claim is checked here for being possible at all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.mosaic_cards import ALIAS_KEYS, BAYER_KEYS, LONG_KEYS
from zemosaic_phase3.io.other_formats import not_fits
from zemosaic_phase3.io.wcs_cards import wcs_cards_of

if TYPE_CHECKING:
    from io import BufferedIOBase

    from astropy.io.fits import Header
    from astropy.wcs import WCS

logger = logging.getLogger("zemosaic.frames")


FITS_BLOCK: Final = 2880  # bytes; FITS standard 4.0, section 3.1
FITS_CARD: Final = 80  # bytes of one header card
MAX_HEADER_BLOCKS: Final = 2000  # 72,000 cards; a longer "header" is binary data that happens to begin like one
BITPIX_DTYPE: Final = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_SHAPE_KEYS: Final = (
    "SIMPLE", "XTENSION", "BITPIX", "NAXIS", "PCOUNT", "GCOUNT", "ZIMAGE", "ZBITPIX", "ZNAXIS", "TFIELDS",
)  # fmt: skip
_NEEDED_KEYS: Final = frozenset((*_SHAPE_KEYS, *BAYER_KEYS, "BZERO", "BSCALE", "BLANK"))
_NUMBERED_KEY: Final = re.compile(r"(NAXIS|ZNAXIS|ZTILE)[1-9]\d*$")
_ONCE_KEY: Final = re.compile(r"(SIMPLE|XTENSION|BITPIX|[PG]COUNT|TFIELDS|ZIMAGE|ZBITPIX|Z?NAXIS\d*)$")
MOST_COLUMNS: Final = 999  # of a table; FITS standard 4.0, section 7.3.1
MOST_DEGREES: Final = 720.0  # of a longitude that went round once too often
WCS_KEY: Final = re.compile(
    r"(WCSAXES|WCSNAME|LONPOLE|LATPOLE|RADESYS|EQUINOX)$"
    r"|(CTYPE|CRVAL|CRPIX|CDELT|CUNIT|CROTA|CD|PC|PV|PS)\d|[AB]P?_(ORDER|\d)"
)

# What stands behind "KEYWORD = " in nearly all cards. Texts with a quote or "&" in them, and empty ones (where astropy
# looks for a further quote in the comment), are left to astropy.
_PLAIN_VALUE: Final = re.compile(
    rb" *(?:'(?P<text>[ -%(-~]+)'|(?P<flag>[TF])|(?P<whole>[+-]?\d{1,18})"
    rb"|(?P<real>[+-]?\d+(?:\.\d*(?:E[+-]?\d{1,3})?|E[+-]?\d{1,3})))"
    rb" *(?:/[ -~]*)?\Z"
)

# What ``Header.strip`` of astropy removes.
_STRUCTURE_KEY: Final = re.compile(
    r"(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|[PG]COUNT|GROUPS|BSCALE|BZERO|TFIELDS)$"
    r"|T(FORM|SCAL|ZERO|NULL|TYPE|UNIT|DISP|DIM|BCOL)\d+$"
)
_CONTROL_CHARACTERS: Final = dict.fromkeys((*range(32), 127), " ")

# ``warnings.catch_warnings`` swaps the filters of the whole process; two threads in it would restore wrong ones.
_WARNINGS_LOCK = threading.Lock()


class Hdu(NamedTuple):
    """One header-data unit: its byte offsets in the file and the few cards that say what it holds."""

    header_offset: int
    data_offset: int
    cards: dict[str, Any]

    @property
    def is_compressed(self) -> bool:
        """True for a tile-compressed image, which is stored as a table."""
        return self.cards.get("ZIMAGE") is True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in array order, slowest axis first; of the image inside when it is compressed."""
        return self._axes("ZNAXIS" if self.is_compressed else "NAXIS")

    @property
    def bitpix(self) -> int:
        """FITS code of the number type of the image."""
        return self.cards["ZBITPIX" if self.is_compressed else "BITPIX"]

    @property
    def data_bytes(self) -> int:
        """Bytes of the data, without padding (FITS standard 4.0, equation 2)."""
        numbers = self.cards.get("PCOUNT", 0) + prod(self._axes("NAXIS")) if self.cards["NAXIS"] else 0
        return abs(self.cards["BITPIX"]) // 8 * self.cards.get("GCOUNT", 1) * numbers

    @property
    def padded_bytes(self) -> int:
        """Bytes of the data with the padding of the last block."""
        return -(-self.data_bytes // FITS_BLOCK) * FITS_BLOCK

    @property
    def is_image(self) -> bool:
        """True when the unit holds pixels on two or three axes."""
        is_pixels = self.is_compressed or str(self.cards.get("XTENSION", "IMAGE")).strip() == "IMAGE"
        return is_pixels and len(self.shape) in (2, 3) and min(self.shape) > 0

    def describe(self) -> str:
        """Return kind and size in words, for a message."""
        kind = str(self.cards.get("XTENSION", "primary")).strip()
        return f"{kind} {' x '.join(map(str, reversed(self.shape))) or 'without data'}"

    def _axes(self, key: str) -> tuple[int, ...]:
        return tuple(self.cards[f"{key}{i}"] for i in range(self.cards[key], 0, -1))


def find_image(stream: BufferedIOBase, name: str, unit: int | None = None) -> tuple[dict[str, Any], int, Hdu]:
    """Find the first unit of a FITS file that holds an image with two or three axes, or the one with a number.

    Returns
    -------
    primary : dict
        The cards of the primary header that matter.
    index : int
        Number of the unit, 0 = primary.
    hdu : Hdu

    Raises
    ------
    FrameError
        Not a FITS file, a damaged header, or no image in it, or not in that unit.
    """
    seen: list[Hdu] = []
    offset = 0
    while raw := header_bytes(stream, name, offset):
        hdu = Hdu(offset, offset + len(raw), scan_cards(raw, name))
        seen.append(hdu)
        if hdu.is_image and unit in (None, len(seen) - 1):
            _check_storage(hdu, name)
            return seen[0].cards, len(seen) - 1, hdu
        offset = hdu.data_offset + hdu.padded_bytes
        if offset > sys.maxsize:
            raise FrameError(name, f"unit {len(seen)} claims {hdu.data_bytes} bytes; repair the header")
    found = "; ".join(hdu.describe() for hdu in seen)
    if unit is not None:
        raise FrameError(name, f"unit {unit} holds no image with 2 or 3 axes (units from 0: {found}); name another one")
    raise FrameError(name, f"holds no image with 2 or 3 axes (found: {found}); convert it to one image per file")


def header_bytes(stream: BufferedIOBase, name: str, offset: int) -> bytes:
    """Read one header, END card and padding included; empty where no further unit begins.

    Raises
    ------
    FrameError
        The file does not begin as FITS does, or the header has no end.
    """
    stream.seek(offset)
    block = stream.read(FITS_BLOCK)
    if offset and not block.startswith(b"XTENSION="):
        return b""
    if not offset and not block.startswith(b"SIMPLE  ="):
        raise FrameError(name, not_fits(block, name))
    raw = bytearray()
    while block and len(raw) < MAX_HEADER_BLOCKS * FITS_BLOCK:
        start = len(raw)
        raw += block
        for card in range(start, len(raw), FITS_CARD):
            if raw[card : card + FITS_CARD].rstrip(b" \0") == b"END":
                return bytes(raw)
        block = stream.read(FITS_BLOCK)
    raise FrameError(name, f"truncated: its header has no END card in {len(raw)} bytes; copy it again")


def plain_value(image: bytes) -> str | bool | int | float | None:
    """Return the value of a card of 80 bytes as astropy does; None where it takes astropy to tell."""
    found = _PLAIN_VALUE.match(image, 10) if image[8:10] == b"= " else None
    if found is None:
        return None
    kind, value = found.lastgroup, found[found.lastgroup or 0].decode("ascii")
    if kind == "text":
        return None if ": " in value else value.rstrip()  # "name: number" may be a record of several values
    return value == "T" if kind == "flag" else int(value) if kind == "whole" else float(value)


def plain_values(raw: bytes, keys: Iterable[str]) -> dict[str, Any] | None:
    """Return the first value of each of a few keywords in a header, None where it has none.

    Returns
    -------
    dict or None
        None where it takes astropy to tell.
    """
    values: dict[str, Any] = dict.fromkeys(keys)
    for start in range(0, len(raw), FITS_CARD):
        key = raw[start : start + 8].decode("latin-1").partition("=")[0].rstrip().upper()
        if key == "END":  # cards of a longer header may be left behind it
            break
        if values.get(key, "unwanted") is None:
            values[key] = plain_value(raw[start : start + FITS_CARD])
            if values[key] is None:
                return None
    return {key: None if value == "" else value for key, value in values.items()}


def card_value(header: Header, key: str) -> Any:
    """Return the value of a card; None where it is absent, empty, or breaks the standard."""
    from astropy.io.fits.card import Undefined

    try:
        value = header.get(key)
    except Exception as exc:  # noqa: BLE001 - astropy's parser fails in many ways, and all mean the same here
        logger.debug("card %s is not used: %s", key, exc)
        return None
    return None if isinstance(value, Undefined) or str(value).strip() == "" else value


def given_value(cards: Mapping[str, Any], key: str) -> str | bool | int | float | None:
    """Return a plain value of a header that a caller gave, whatever that is; None where there is none."""
    try:
        value = cards.get(key)
    except Exception as exc:  # noqa: BLE001 - a header of astropy reads its cards now, and a caller's may be anything
        logger.debug("card %s is not used: %s", key, exc)
        return None
    return value if isinstance(value, str | bool | int | float) and value != "" else None


def scan_cards(raw: bytes, name: str) -> dict[str, Any]:
    """Parse the few cards that say what the unit holds, and check the sizes among them."""
    cards: dict[str, Any] = {}
    for start in range(0, len(raw), FITS_CARD):
        key = raw[start : start + 8].decode("latin-1").rstrip().upper()
        if key == "END":  # cards of a longer header may be left behind it
            break
        if key == "HIERARCH":  # astropy takes HIERARCH NAXIS for another NAXIS
            long_key = raw[start + 8 : start + FITS_CARD].decode("latin-1").partition("=")[0].strip().upper()
            key = long_key if _ONCE_KEY.match(long_key) or long_key in LONG_KEYS else key
        if not (key in _NEEDED_KEYS or _NUMBERED_KEY.match(key)) or (key in cards and not _ONCE_KEY.match(key)):
            continue
        image = raw[start : start + FITS_CARD]
        value = plain_value(image)
        if value is None:
            try:
                value = _astropy_value(image, name)
            except FrameError:
                if key not in ALIAS_KEYS:
                    raise
        if value is not None and cards.setdefault(key, value) != value:
            # Which of them holds is anybody's guess, and astropy, which reads compressed images, may take the other.
            raise FrameError(name, f"header card {key} stands twice, {cards[key]!r} and {value!r}; repair the header")
    for prefix in ("", "Z") if cards.get("ZIMAGE") is True else ("",):
        for axis in range(_size(cards, f"{prefix}NAXIS", name, 999)):
            _size(cards, f"{prefix}NAXIS{axis + 1}", name)
        bitpix = cards.get(f"{prefix}BITPIX")
        if bitpix not in BITPIX_DTYPE:
            raise FrameError(name, f"{prefix}BITPIX = {bitpix!r} is no number type; repair the header")
    for key in cards.keys() & {"PCOUNT", "GCOUNT", "ZTILE1", "ZTILE2", "ZTILE3"}:
        _size(cards, key, name)
    if "TFIELDS" in cards:
        _size(cards, "TFIELDS", name, MOST_COLUMNS)
    return cards


def values_like(raw: bytes, wanted: re.Pattern[str], name: str) -> dict[str, Any]:
    """Return the first value of every card of a header whose keyword matches.

    Raises
    ------
    FrameError
        One of them cannot be read, or stands again with another value.
    """
    values: dict[str, Any] = {}
    for start in range(0, len(raw), FITS_CARD):
        key = raw[start : start + 8].decode("latin-1").rstrip().upper()
        if key == "END":
            break
        if not wanted.match(key):
            continue
        image = raw[start : start + FITS_CARD]
        value = plain_value(image)
        value = _astropy_value(image, name) if value is None else value
        if values.setdefault(key, value) != value:
            raise FrameError(name, f"header card {key} stands twice, {values[key]!r} and {value!r}; repair the header")
    return values


def _astropy_value(image: bytes, name: str) -> Any:
    """Return the value of any card; None where it has none."""
    from astropy.io import fits

    try:
        value = fits.Card.fromstring(image).value
    except Exception as exc:  # astropy's parser fails in many ways, and all mean the same here
        text = image.decode("latin-1").rstrip()
        raise FrameError(name, f"header card {text!r} cannot be read; repair the header") from exc
    return None if isinstance(value, fits.card.Undefined) else value


def _size(cards: Mapping[str, Any], key: str, name: str, high: float = float("inf")) -> int:
    value = cards.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise FrameError(name, f"header card {key} = {value!r} is no size; repair the header or copy the file again")
    return value


def _check_storage(hdu: Hdu, name: str) -> None:
    """Refuse groups, and a compressed image whose table has another number of rows than the image has tiles."""
    if hdu.cards.get("GCOUNT", 1) != 1:
        raise FrameError(name, f"GCOUNT = {hdu.cards['GCOUNT']} describes no single image; repair the header")
    if not hdu.is_compressed:
        return
    axes = hdu.shape[::-1]
    default = (axes[0], 1, 1)  # the standard's: one tile per row
    sides = [max(1, hdu.cards.get(f"ZTILE{i + 1}", default[i])) for i in range(len(axes))]
    tiles = prod(-(-n // side) for n, side in zip(axes, sides, strict=True))
    if tiles != hdu.cards.get("NAXIS2"):
        rows = hdu.cards.get("NAXIS2")
        raise FrameError(name, f"damaged: its image needs {tiles} tiles, its table has {rows}; copy it again")


@contextlib.contextmanager
def without_warnings(*categories: type[Warning]) -> Iterator[None]:
    """Ignore warnings of these kinds; one thread at a time, because the filters are those of the whole process."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("ignore", category)
        yield


def parse_header(raw: bytes) -> Header:
    """Return the header in these bytes; characters that FITS does not allow become question marks or blanks."""
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyUserWarning

    # Cameras write place names in Latin-1; astropy would do the same replacement, with a warning per file.
    text = raw.decode("latin-1").translate(_CONTROL_CHARACTERS).encode("ascii", "replace")
    with without_warnings(AstropyUserWarning):  # keywords that break the standard are kept as they are
        return fits.Header.fromstring(text)


def inherit(header: Header, primary: Header) -> Header:
    """Return an extension's header with the primary's keywords that it lacks; a WCS is taken whole or not at all.

    Cards that astropy cannot read are left out of both.
    """
    merged, primary = readable_cards(header), without_structure(readable_cards(primary))
    for key in {*primary}:
        if key in ("CHECKSUM", "DATASUM") or ("CTYPE1" in merged and WCS_KEY.match(key)):
            primary.remove(key, remove_all=True)
    merged.extend(primary, unique=True)
    return merged


def readable_cards(header: Header) -> Header:
    """Return a copy of a header without the cards that astropy cannot read, such as a damaged CONTINUE."""
    from astropy.io.fits import Header

    readable = []
    for card in header.cards:
        try:
            _ = card.keyword, card.value, card.comment
        except Exception as exc:  # noqa: BLE001 - astropy's parser fails in many ways, and all mean the same here
            logger.debug("a header card is left out: %s", exc)
        else:
            readable.append(card)
    return Header(readable, copy=True)


def without_structure(header: Header) -> Header:
    """Return a copy of a header without the cards that describe how the pixels, or a table, are stored.

    As ``Header.strip`` of astropy, which trusts what NAXIS and TFIELDS say.
    """
    kept = header.copy()
    for key in {*kept}:
        if _STRUCTURE_KEY.match(key):
            kept.remove(key, remove_all=True)
    return kept


def copy_header(given: Mapping[str, Any]) -> Header:
    """Return a FITS header of what a caller gave as one: a header itself, or a dictionary."""
    from astropy.io import fits

    return given.copy() if isinstance(given, fits.Header) else header_from_mapping(given)


def header_from_mapping(cards: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Header:
    """Make a FITS header of a dictionary; values that FITS cannot hold (NaN, arrays, objects) are left out."""
    from astropy.io import fits

    header = fits.Header()
    for key, value in dict(cards).items():
        name = str(key)
        if isinstance(value, str):
            value = value.encode("ascii", "replace").decode().replace("\n", " ")
        try:
            header[name if len(name) <= 8 else f"HIERARCH {name}"] = value
        except (ValueError, TypeError) as exc:
            logger.debug("header entry %s = %r left out: %s", name, value, exc)
    return header


def celestial_wcs(header: Header, pixel_shape: tuple[int, int], name: str) -> WCS | None:
    """Return the celestial two-axis WCS of a header, or None when it has none that astropy understands.

    Parameters
    ----------
    header : Header
        A colour axis is dropped, wherever it stands.
    pixel_shape : (int, int)
        Width and height in pixels, recorded in the result.
    name : str
        Frame, for the log: what is left out of its WCS (see :mod:`io.wcs_cards`), and why it has none.
    """
    if "CTYPE1" not in header:
        return None
    from astropy.utils.exceptions import AstropyUserWarning
    from astropy.wcs import WCS, FITSFixedWarning

    try:
        with without_warnings(FITSFixedWarning, AstropyUserWarning):
            cards, fault, sip_fault, notes = wcs_cards_of(header)
            for note in notes:
                logger.info("%s: card %s", name, note)
            if fault:
                raise ValueError(fault)
            if sip_fault:
                logger.warning("%s: card %s; the distortion (SIP) of its WCS is left out", name, sip_fault)
            is_colour_first = "-" in cards.get("CTYPE3", "")  # axes 2 and 3 are the sky
            # naxis=2 keeps a SIP polynomial, which astropy refuses beside a third axis.
            wcs = WCS(cards).celestial if is_colour_first else WCS(cards, naxis=2)
            if not wcs.has_celestial:
                return None
            _check_middle(wcs, pixel_shape)
    except Exception as exc:  # noqa: BLE001 - wcslib reports broken headers in many ways, as MemoryError among them
        logger.warning("%s: its WCS cannot be used (%s)", name, " ".join(str(exc).split()))
        return None
    wcs.pixel_shape = pixel_shape
    return wcs


def _check_middle(wcs: WCS, pixel_shape: tuple[int, int]) -> None:
    """Raise ValueError for a WCS that has no place on the sky, or no system, for the middle of its own frame."""
    from astropy.wcs.utils import wcs_to_celestial_frame

    wcs_to_celestial_frame(wcs)
    if max(abs(wcs.wcs.crval)) > MOST_DEGREES:
        raise ValueError(f"CRVAL {', '.join(map(str, wcs.wcs.crval))} are no angles")
    x, y = ((side - 1) / 2.0 for side in pixel_shape)
    sky = wcs.all_pix2world([[x, y]], 0)[0]
    back = wcs.wcs_world2pix([sky], 0)[0]
    if not all(math.isfinite(number) for number in (*sky, *back)):
        raise ValueError("it gives the middle of the frame no place on the sky")
