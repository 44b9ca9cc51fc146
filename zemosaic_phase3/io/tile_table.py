"""The table of a tile-compressed image, looked at before astropy and its decoders are trusted with it.

Each row of the table says where in the heap the bytes of a tile lie, and the decoders, which are C, believe what they
are told: a place outside of the heap, a length that a stream claims for itself, or a block of no pixels is memory that
is not theirs, or no end. So whatever bounds them is compared with what the file holds, once, when the file is opened.
Source: FITS standard 4.0, section 10; the decoders of CFITSIO, as in astropy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io import fits_header as headers

if TYPE_CHECKING:
    from io import BufferedIOBase

ITEM_BYTES: Final = {
    "L": 1, "B": 1, "A": 1, "I": 2, "J": 4, "K": 8, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16,
}  # fmt: skip
DATA_COLUMNS: Final = ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA")
METHODS: Final = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1", "NOCOMPRESS")
MOST_RATIO: Final = 4000  # bytes of pixels from one in the heap; of a sky frame 2 to 10 come
SPARE_PIXELS: Final = 1 << 20  # that a small file may claim besides
BLOCK_SIZES: Final = range(1, 1 << 16)  # pixels of a block, Rice
MOST_PLANES: Final = 62  # bit planes of a quadrant, HCOMPRESS
HCOMPRESS_HEAD: Final = 25  # bytes: magic, nx, ny, scale, sum of all, bit planes of three quadrants
PLIO_HEAD: Final = 14  # bytes: seven words
_WANTED: Final = re.compile(r"(TTYPE\d+|TFORM\d+|ZNAME\d+|ZVAL\d+|THEAP|ZCMPTYPE)$")
_FORM: Final = re.compile(r"\s*(\d*)([LXBAIJKEDCMPQ])([LXBAIJKEDCM]?)")


def check_tiles(stream: BufferedIOBase, hdu: headers.Hdu, name: str) -> None:
    """Make sure that the tiles of a compressed image can be decoded within the file and within bounds.

    Parameters
    ----------
    stream : file
        Of the file, decompressed where that is a ``.gz``.
    hdu : Hdu
        The unit of the image, whose sizes have been compared with the file's.
    name : str
        Of the frame, for the message.

    Raises
    ------
    FrameError
        They cannot.
    """
    raw = headers.header_bytes(stream, name, hdu.header_offset)
    cards = headers.values_like(raw, _WANTED, name)
    method = str(cards.get("ZCMPTYPE", "")).strip()
    if method not in METHODS:
        raise _damaged(name, f"ZCMPTYPE = {cards.get('ZCMPTYPE')!r} is none of {', '.join(METHODS)}")
    _check_settings(cards, method, name)
    width, rows = (int(hdu.cards.get(f"NAXIS{axis}", 0)) for axis in (1, 2))
    columns = _columns(cards, hdu.cards.get("TFIELDS", 0), width, name)
    theap = cards.get("THEAP", width * rows)
    heap = hdu.data_bytes - theap if isinstance(theap, int) and width * rows <= theap else -1
    if heap < 0:
        raise _damaged(name, f"its heap begins at THEAP = {theap!r}, its table ends at {width * rows}")
    pixel_bytes = abs(hdu.bitpix) // 8
    if prod(hdu.shape) * pixel_bytes > MOST_RATIO * heap + SPARE_PIXELS * pixel_bytes:
        size = " x ".join(map(str, reversed(hdu.shape)))
        raise _damaged(name, f"{heap} bytes of compressed data cannot hold {size} pixels")
    stream.seek(hdu.data_offset)
    table = np.frombuffer(stream.read(width * rows), np.uint8)
    if table.size < width * rows:
        raise _damaged(name, f"its table has {table.size} of {width * rows} bytes")
    for column, (place, kind, item) in columns.items():
        count, offset = _descriptors(table.reshape(rows, width), place, kind)
        limit = heap // max(item, 1)
        ends = offset + item * count.clip(0, limit)
        bad = np.flatnonzero((count < 0) | (count > limit) | (offset < 0) | (offset > heap) | (ends > heap))
        if bad.size:
            k = int(bad[0])
            told = f"tile {k + 1} of {rows} claims {count[k]} numbers at byte {offset[k]} of a heap of {heap} bytes"
            raise _damaged(name, f"{told} ({column})")
        if column == "COMPRESSED_DATA" and method in ("HCOMPRESS_1", "PLIO_1"):
            starts = hdu.data_offset + theap + offset
            _check_streams(stream, hdu, name, method, starts, count * item)


def _damaged(name: str, what: str) -> FrameError:
    return FrameError(name, f"its compressed image is damaged: {what}; copy it again")


def _check_settings(cards: dict[str, Any], method: str, name: str) -> None:
    """Refuse settings of a decoder that it cannot work with."""
    for key, setting in cards.items():
        if not key.startswith("ZNAME"):
            continue
        value = cards.get(f"ZVAL{key[5:]}")
        wanted = str(setting).strip().upper()
        good = {
            "BLOCKSIZE": type(value) is int and value in BLOCK_SIZES,
            "BYTEPIX": type(value) is int and value in (1, 2, 4, 8),
            "SCALE": isinstance(value, int | float) and 0.0 <= value < 2.0**31,
            "SMOOTH": type(value) is int and value in (0, 1),
        }.get(wanted, True)
        if not good and method.startswith(("RICE", "HCOMPRESS")):
            raise _damaged(name, f"{wanted} = {value!r} is no setting of {method}")


def _columns(cards: dict[str, Any], fields: int, width: int, name: str) -> dict[str, tuple[int, str, int]]:
    """Return by name where in a row the descriptors of the columns with tiles lie, of which kind, and the item size."""
    found: dict[str, tuple[int, str, int]] = {}
    place = 0
    for k in range(1, fields + 1):
        form = _FORM.match(str(cards.get(f"TFORM{k}", "")))
        if form is None:
            raise _damaged(name, f"TFORM{k} = {cards.get(f'TFORM{k}')!r} is no format of a column")
        repeat, kind = int(form[1] or 1), form[2]
        label = str(cards.get(f"TTYPE{k}", "")).strip().upper()
        if label in DATA_COLUMNS:
            if kind not in "PQ" or repeat != 1 or form[3] not in ITEM_BYTES or label in found:
                raise _damaged(name, f"its column {label} has the format {cards[f'TFORM{k}']!r}")
            found[label] = (place, kind, ITEM_BYTES[form[3]])
        place += -(-repeat // 8) if kind == "X" else repeat * ITEM_BYTES[kind]
    if place != width or "COMPRESSED_DATA" not in found:
        raise _damaged(name, f"its columns take {place} bytes of rows of {width}, COMPRESSED_DATA among them or not")
    return found


def _descriptors(table: np.ndarray, place: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return how many numbers each tile has, and where they begin in the heap, bytes; (tiles,) int64."""
    stored = np.dtype(">i4" if kind == "P" else ">i8")
    pair = np.ascontiguousarray(table[:, place : place + 2 * stored.itemsize]).view(stored).astype(np.int64)
    return pair[:, 0], pair[:, 1]


def _tile_shapes(hdu: headers.Hdu, name: str) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of the tiles in their order, slowest axis first; those at the far edges are smaller."""
    shape = hdu.shape
    default = (*(1 for _ in shape[1:]), shape[-1])
    sides = [max(1, int(hdu.cards.get(f"ZTILE{len(shape) - k}", default[k]))) for k in range(len(shape))]
    for index in np.ndindex(*(-(-n // side) for n, side in zip(shape, sides, strict=True))):
        yield tuple(min(side, n - k * side) for n, side, k in zip(shape, sides, index, strict=True))


def _check_streams(
    stream: BufferedIOBase, hdu: headers.Hdu, name: str, method: str, starts: np.ndarray, sizes: np.ndarray
) -> None:
    """Compare what the streams of tiles say of themselves with the tiles; their decoders write and read so much."""
    for k, shape in enumerate(_tile_shapes(hdu, name)):
        if sizes[k] == 0:  # stored in another column
            continue
        stream.seek(int(starts[k]))
        size = int(sizes[k])
        if method == "HCOMPRESS_1":
            head = stream.read(min(HCOMPRESS_HEAD, size))
            sides = [int.from_bytes(head[at : at + 4], "big", signed=True) for at in (2, 6)]
            wanted = [n for n in shape if n != 1]
            good = len(head) == HCOMPRESS_HEAD and head[:2] == b"\xdd\x99" and sides == wanted
            good = good and max(head[22:25]) <= MOST_PLANES
        else:
            words = np.frombuffer(stream.read(min(PLIO_HEAD, size // 2 * 2)), ">i2").astype(np.int64)
            good = words.size == PLIO_HEAD // 2 and (words[2] > 0 or words[1] >= 0)
            length = int(words[2] if words[2] > 0 else (words[4] << 15) + words[3]) if good else -1
            good = good and 0 <= length <= size // 2
        if not good:
            size_told = " x ".join(map(str, reversed(shape)))
            raise _damaged(name, f"the stream of tile {k + 1} is not that of {size_told} pixels")
