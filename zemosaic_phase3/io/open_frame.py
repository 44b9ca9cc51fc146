"""From a path, an array or a dictionary to a frame.

What a header claims is compared with the size of the file before memory is taken.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from zemosaic_phase3.errors import FrameError, SpecError
from zemosaic_phase3.io import fits_header as headers
from zemosaic_phase3.io.archive import member_of, split_member
from zemosaic_phase3.io.camera_raw import open_camera_raw
from zemosaic_phase3.io.codec import Codec, check_number_type, fits_codec
from zemosaic_phase3.io.frame import Frame, FrameSource
from zemosaic_phase3.io.layout import MIN_SIDE_PX, check_file_size, image_layout, mosaic_of
from zemosaic_phase3.io.mosaic_cards import BAYER_PATTERNS, bayer_cards, row_order
from zemosaic_phase3.io.other_formats import kind_of_file
from zemosaic_phase3.io.pixel_files import ArraySource, PixelFile, Place, TileCompressedFile, file_errors
from zemosaic_phase3.io.remote import identity_at, is_remote, opened
from zemosaic_phase3.io.ser_file import open_ser
from zemosaic_phase3.io.tiff_file import open_tiff
from zemosaic_phase3.io.tile_table import check_tiles
from zemosaic_phase3.io.xisf_file import open_xisf
from zemosaic_phase3.runtime.python_parser import PARSER

if TYPE_CHECKING:
    from io import BufferedIOBase

    from zemosaic_phase3.io.frame import Cards


LONGEST_NPY_HEAD: Final = 1000  # characters; NumPy writes about 100 for an image
LONGEST_PADDED_NPY_HEAD: Final = 10_000  # with blanks behind it; NumPy itself reads no more
MAX_DEFLATE_RATIO: Final = 1032  # no deflate stream expands more (RFC 1951: 258 bytes from two bits)
_UNIT: Final = re.compile(r"(.+\.(?:fits?|fts|fz|gz))\[(\d{1,4})\]|(.+\.ser)\[(\d{1,7})\]", re.IGNORECASE)
_ARRAY_KEYS: Final = ("data", "array")
_PATH_KEYS: Final = ("path_preprocessed_cache", "path")  # the cache first: it is the frame made ready


def open_source(descriptor: object, *, bayer: str = "auto") -> FrameSource:
    """Open a frame, whatever it comes as; nothing is read but its header.

    Parameters
    ----------
    descriptor : ndarray, path, dict, FrameSource or Frame
        Array (H, W), (H, W, 3) or, with H, W > 4, (3, H, W); path of a FITS file (plain, ``.gz``, tile-compressed; of
        several images in it the first, with ``[2]`` behind the name that of unit 2) or of an ``.npy`` cache; dict with
        ``data``, ``array``, ``path_preprocessed_cache`` or ``path`` (in this order), and optionally ``name``,
        ``header`` and ``wcs``, which override the file's.
    bayer : str
        "auto" (what the header says), "none" (a mosaic is taken as mono) or the pattern as it applies to row 0 of the
        array. Images of three planes are never debayered.

    Returns
    -------
    FrameSource

    Raises
    ------
    FrameError
        The frame cannot be used; names it, the reason and the remedy.
    SpecError
        ``bayer`` is none of the above.

    Notes
    -----
    A plain file is read with one seek per range (per plane for (3, H, W)); a Fortran-ordered ``.npy`` is read whole
    and cut. A tile-compressed image decompresses the tiles that the range touches. A ``.gz`` is decompressed from its
    beginning on each call, holding only the rows asked for.
    """
    bayer = _bayer_choice(bayer)
    if isinstance(descriptor, FrameSource):
        return descriptor
    if isinstance(descriptor, Frame):
        return descriptor.source
    if isinstance(descriptor, np.ndarray):
        return _open_array(descriptor, "<array>", bayer, None)
    if isinstance(descriptor, str | os.PathLike):
        return _open_path(os.fspath(descriptor), None, bayer, None)
    if isinstance(descriptor, Mapping):
        return _open_mapping(descriptor, bayer)
    raise FrameError("<descriptor>", f"{type(descriptor).__name__} is no frame; give an array, a path or a dict")


def _open_mapping(descriptor: Mapping[str, Any], bayer: str) -> FrameSource:
    header, label = descriptor.get("header"), descriptor.get("name")
    for key in (*_ARRAY_KEYS, *_PATH_KEYS):
        value = descriptor.get(key)
        if value is None:
            continue
        if key in _ARRAY_KEYS:
            source = _open_array(value, str(label or descriptor.get("path") or "<array>"), bayer, header)
        else:
            source = _open_path(os.fspath(value), label, bayer, header)
        source.describe(header, descriptor.get("wcs"))
        return source
    wanted, found = ", ".join((*_ARRAY_KEYS, *_PATH_KEYS)), ", ".join(map(str, descriptor))
    raise FrameError(str(label or "<dict>"), f"has none of the keys {wanted}; its keys are: {found}")


def _open_array(value: object, name: str, bayer: str, header: Cards) -> FrameSource:
    if isinstance(value, np.ma.MaskedArray):  # a masked sample is an invalid one, and np.asarray would forget the mask
        array = np.ma.filled(value.astype(np.float32), np.nan)
    else:
        array = np.asarray(value)
    size, planar = image_layout(array.shape, name)
    check_number_type(array.dtype, name)
    pixels = np.moveaxis(array, 0, -1) if planar else array
    pixels = pixels[..., 0] if array.ndim == 3 and size[2] == 1 else pixels
    cfa = mosaic_of(bayer, size, name, header)
    if cfa is not None and min(size[:2]) < MIN_SIDE_PX:
        raise FrameError(name, f"{size[1]} x {size[0]} pixels are too few for a mosaic; at least {MIN_SIDE_PX} a side")
    source = ArraySource(name, size, Codec(array.dtype), cfa, pixels)
    source.row_order = row_order(bayer_cards(header))
    return source


def _open_path(path: str, label: object, bayer: str, header: Cards) -> FrameSource:
    name = path if label is None else str(label)
    path, unit = split_unit(path)
    inside = None if is_remote(path) else split_member(path)
    member = None if inside is None else member_of(*inside, name)
    path = path if inside is None else inside[0]
    size = _size_of_file(path, name)
    held = size if member is None else member.size
    if held == 0:
        raise FrameError(name, "is empty (0 bytes); copy or capture it again")
    with file_errors(name), opened(path, size) as plain:
        place = Place(path, member=member)
        with place.opened(plain) as stream:
            place = place._replace(gzipped=stream.read(2) == b"\x1f\x8b")
        plain.seek(0)
        largest = held * (MAX_DEFLATE_RATIO if place.gzipped else 1)  # bytes that can come out of this file
        with place.opened(plain) as stream:
            magic = stream.read(16)
            stream.seek(0)
            if magic.startswith(b"\x93NUMPY"):
                return _open_npy(stream, place, name, bayer, header, largest)
            if not magic.startswith(b"SIMPLE"):
                found = _open_foreign(stream, magic, place, name, bayer, header, unit)
                if found is not None:
                    return found
            return _open_fits(stream, place, name, bayer, header, largest, unit)


def _open_foreign(
    stream: BufferedIOBase, magic: bytes, place: Place, name: str, bayer: str, header: Cards, unit: int | None
) -> FrameSource | None:
    """Open a file of another format than FITS, told by its first bytes and its name; None: it is none that is read."""
    kind = kind_of_file(magic, place.path)
    if kind and is_remote(place.path):
        raise FrameError(name, "is of another format than FITS at an address; copy it to this machine first")
    if kind and place.member is not None:
        raise FrameError(name, "is of another format than FITS inside an archive; unpack it first")
    if kind and place.gzipped:
        raise FrameError(name, "is compressed with gzip around another format than FITS; decompress it with gunzip")
    if kind == "ser":
        return open_ser(stream, place, name, bayer, header, unit)
    if kind == "xisf":
        return open_xisf(place, name, bayer, header)
    if kind == "raw":
        return open_camera_raw(place, name, bayer, header)
    return open_tiff(place, name, bayer, header) if kind == "tiff" else None


def _size_of_file(path: str, name: str) -> int:
    """Return the bytes of a file, which must be one and hold something."""
    with file_errors(name):
        if is_remote(path):
            mode, size = stat.S_IFREG, identity_at(path).size
        else:
            status = Path(path).stat()
            mode, size = status.st_mode, status.st_size
    if stat.S_ISDIR(mode):
        raise FrameError(name, "is a folder, not a frame; name the files in it")
    if not stat.S_ISREG(mode):
        raise FrameError(name, "is not a regular file; copy its content to a file first")
    if size == 0:
        raise FrameError(name, "is empty (0 bytes); copy or capture it again")
    return size


def split_unit(path: str) -> tuple[str, int | None]:
    """Return the file of a path such as ``a.fits[2]``, and the FITS unit; None where no unit is named.

    A file that has such a name itself is that file.
    """
    found = _UNIT.fullmatch(path)
    if found is None or (not is_remote(path) and Path(path).exists()):
        return path, None
    return (found[1], int(found[2])) if found[1] else (found[3], int(found[4]))


def npy_header(stream: BinaryIO | BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the head of an ``.npy`` array: shape, whether in Fortran order, type; the pixels follow in the stream.

    Raises
    ------
    ValueError
        The stream does not begin as such a file does. NumPy lets errors of Python's parser through as well, and that
        parser is not asked to read what is longer than the head of an image.
    """
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"version {version} is for record arrays")
    start = stream.tell()
    length = int.from_bytes(stream.read(2 * version[0]), "little")  # of two bytes, or of four in version 2
    # NumPy would make room for all of it before it looks at its length.
    if length > LONGEST_PADDED_NPY_HEAD or len(stream.read(length).rstrip()) > LONGEST_NPY_HEAD:
        raise ValueError(f"it is damaged: {length} characters describe no image")
    stream.seek(start)
    try:
        with PARSER:
            return readers[version](stream)
    except (SyntaxError, TokenError, TypeError, MemoryError, RecursionError, OverflowError) as exc:
        raise ValueError(f"it is damaged: {exc}") from exc


def _open_npy(stream: BufferedIOBase, place: Place, name: str, bayer: str, header: Cards, largest: int) -> FrameSource:
    try:
        shape, is_fortran, stored = npy_header(stream)
    except ValueError as exc:
        raise FrameError(name, f"its .npy header cannot be used ({exc}); save the cache again") from exc
    check_number_type(stored, name)
    size, planar = image_layout(shape, name, minimum=MIN_SIDE_PX)
    if is_fortran and planar:
        raise FrameError(name, f"{shape} in Fortran order is not supported; save np.ascontiguousarray of it")
    offset = stream.tell()
    check_file_size(name, offset + prod(shape) * stored.itemsize, largest, shape)
    order = "columns" if is_fortran else "planes" if planar else "rows"
    cfa = mosaic_of(bayer, size, name, header)
    source = PixelFile(name, size, Codec(stored), cfa, place._replace(offset=offset, order=order))
    source.row_order = row_order(bayer_cards(header))
    return source


def _open_fits(
    stream: BufferedIOBase, place: Place, name: str, bayer: str, header: Cards, largest: int, wanted: int | None
) -> FrameSource:
    primary, unit, hdu = headers.find_image(stream, name, wanted)
    size, planar = image_layout(hdu.shape, name, minimum=MIN_SIDE_PX)
    # Plain pixels are whole without the padding of their last block; astropy, which reads tiles, wants that too.
    stored_bytes = hdu.padded_bytes if hdu.is_compressed else hdu.data_bytes
    check_file_size(name, hdu.data_offset + stored_bytes, largest, hdu.shape)
    if hdu.is_compressed:
        check_tiles(stream, hdu, name)
    cfa = mosaic_of(bayer, size, name, primary, hdu.cards, header)
    codec = fits_codec(hdu, name)
    place = place._replace(
        offset=hdu.data_offset, order="planes" if planar else "rows", header_offset=hdu.header_offset, unit=unit
    )
    source = (TileCompressedFile if hdu.is_compressed else PixelFile)(name, size, codec, cfa, place)
    source.row_order = row_order(bayer_cards(primary, hdu.cards, header))
    return source


def _bayer_choice(bayer: str) -> str:
    text = str(bayer).strip()
    if text.lower() in ("auto", "none"):
        return text.lower()
    if text.upper() not in BAYER_PATTERNS:
        allowed = ", ".join(("auto", "none", *BAYER_PATTERNS))
        raise SpecError(f"unknown Bayer pattern {bayer!r}; choose one of: {allowed}")
    return text.upper()
