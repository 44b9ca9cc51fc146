"""Frames in: one small object per file that gives any range of rows, and opens nothing between two calls.

A source holds numbers only (where the pixels begin, how they are stored): no handle, no header, no mapping. Ten
thousand of them cost a few megabytes, and mapped pages never count in the resident set. What a header claims is
compared with the size of the file before memory is taken.

Public names are re-exported by :mod:`zemosaic_utils`.
"""

from __future__ import annotations

import abc
import contextlib
import gzip
import os
import re
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import numpy as np

import zemosaic_headers as headers
from zemosaic_spec import IDENTITY, FrameError, FrameStats, NoFramesError, SpecError

if TYPE_CHECKING:
    from io import BufferedIOBase

    from astropy.io.fits import Header
    from astropy.wcs import WCS

    Cards = Mapping[str, Any] | None
    Size = tuple[int, int, int]  # height, width, planes

MIN_SIDE_PX: Final = 8  # a file with a shorter side is no sky frame
MAX_DEFLATE_RATIO: Final = 1032  # no deflate stream expands more (RFC 1951: 258 bytes from two bits)
_DRAIN_BYTES: Final = 65536  # read at a time from the rest of a .gz
FRAME_SUFFIXES: Final = (".fits", ".fit", ".fts", ".fz", ".npy")
_ARRAY_KEYS: Final = ("data", "array")
_PATH_KEYS: Final = ("path_preprocessed_cache", "path")  # the cache first: it is the frame made ready
_UINT16: Final = np.dtype(np.uint16)
_FLOAT32: Final = np.dtype(np.float32)


# --------------------------------------------------------------------------- what a frame is


class FrameSource(abc.ABC):
    """Pixels of one frame, by ranges of rows.

    Attributes
    ----------
    name : str
        Path as given, or a label.
    height, width : int
        Size in pixels.
    channels : int
        1 or 3, after debayering.
    cfa : str or None
        Colours of the 2 x 2 cell at row 0, column 0 as stored ("RGGB", ...); None when the frame is not a mosaic.
    dtype : numpy.dtype
        What :meth:`read_rows` gives: uint16 for unsigned 16-bit frames, float32 for everything else.
    """

    __slots__ = ("_codec", "_header", "_wcs", "cfa", "channels", "dtype", "height", "name", "width")

    def __init__(self, name: str, size: Size, codec: _Codec, cfa: str | None) -> None:
        self.name = name
        self.height, self.width, planes = size
        self.cfa = cfa
        self.channels = 3 if cfa else planes
        self.dtype = codec.target
        self._codec = codec
        self._header: Cards = None
        self._wcs: WCS | None = None

    def __repr__(self) -> str:
        """Return name, size and kind."""
        kind = f"mosaic {self.cfa}" if self.cfa else f"{self.channels} channel(s)"
        return f"<frame {self.name}: {self.width} x {self.height}, {kind}, {self.dtype}>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape after debayering: (H, W) or (H, W, 3)."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, 3)

    def read_rows(self, y0: int, y1: int) -> np.ndarray:
        """Read rows y0 (included) to y1 (excluded).

        Returns
        -------
        ndarray (y1 - y0, W) or (y1 - y0, W, 3), uint16 or float32, ADU
            C-contiguous, native byte order, owned by the caller. Mosaics come raw, as (rows, W). In float32, samples
            that are BLANK or infinite are NaN.

        Raises
        ------
        ValueError
            The range is not inside the frame.
        FrameError
            The file can no longer be read, or ends too early.
        """
        if not 0 <= y0 <= y1 <= self.height:
            raise ValueError(f"rows {y0}:{y1} are outside {self.name}, which has rows 0:{self.height}")
        planes = 1 if self.cfa else self.channels
        shape = (y1 - y0, self.width) if planes == 1 else (y1 - y0, self.width, planes)
        return np.empty(shape, self.dtype) if y0 == y1 else self._read(y0, y1, shape)

    @property
    def raw_layout(self) -> RawLayout | None:
        """How the pixels are stored; None where only :meth:`read_rows` can tell what they mean."""
        return None

    def read_raw(self, y0: int, y1: int, out: np.ndarray) -> None:
        """Read rows y0 (included) to y1 (excluded) as they are stored, without a copy on the way.

        Parameters
        ----------
        y0, y1 : int
            A range inside the frame, not empty.
        out : ndarray uint8, contiguous
            Of just the size of the rows; filled.

        Raises
        ------
        FrameError
            The file can no longer be read, or ends too early; or :attr:`raw_layout` is None.
        """
        raise FrameError(self.name, "its pixels cannot be read as stored; use read_rows")

    @property
    def raw_file(self) -> RawFile | None:
        """Where :meth:`read_raw` reads, if that is a file."""
        return None

    def expect_rows(self, y0: int, y1: int) -> None:
        """Have the system fetch rows y0 to y1 of a plain file while other work goes on; a hint, which cannot fail."""
        place = self.raw_file
        if place is None or y1 <= y0 or not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(OSError):  # whoever reads the rows says what is wrong
            descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for plane in range(place.planes):
                    start = place.offset + plane * place.plane_bytes + y0 * place.row_bytes
                    os.posix_fadvise(descriptor, start, (y1 - y0) * place.row_bytes, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    @property
    def pixels_in_memory(self) -> np.ndarray | None:
        """The caller's array, as stored, if that is where the pixels are and its rows lie one after the other."""
        return None

    def read_header(self) -> Header:
        """Return the frame's FITS header, read afresh (empty when it has none).

        A header that came with the descriptor replaces the file's. Of a dictionary, values that FITS cannot hold
        (NaN, arrays, objects) are left out. An image in an extension inherits the primary's keywords.

        Raises
        ------
        FrameError
            The file can no longer be read.
        """
        return self.deferred_header()()

    def deferred_header(self) -> Callable[[], Header]:
        """Read the header, and return what makes it: that takes astropy, and can be left to another thread.

        Raises
        ------
        FrameError
            The file can no longer be read.
        """
        given = self._header
        return self._file_header() if given is None else lambda: headers.copy_header(given)

    def card_values(self, *keys: str) -> list[Any]:
        """Return the values of a few cards of :meth:`read_header`; None where one is absent, empty or damaged.

        Raises
        ------
        FrameError
            The file can no longer be read.
        """
        header = self.read_header()
        return [headers.card_value(header, key) for key in keys]

    def wcs(self, header: Header | None = None) -> WCS | None:
        """Return the celestial two-axis WCS of the frame, or None when it has none that astropy understands.

        ``header``: what :meth:`read_header` gave, if it has been called.
        """
        if self._wcs is not None:  # came with the descriptor, so it may be anything
            if not getattr(self._wcs, "has_celestial", False):
                return None
            return self._wcs if self._wcs.naxis == 2 else self._wcs.celestial
        header = self.read_header() if header is None else header
        return headers.celestial_wcs(header, (self.width, self.height), self.name)

    @abc.abstractmethod
    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        """Read a range that is known to be inside the frame and not empty, as an array of ``shape``."""

    def _file_header(self) -> Callable[[], Header]:
        """Read the header of the file, if there is one; return what makes it."""
        return lambda: headers.header_from_mapping({})


class RawLayout(NamedTuple):
    """How the pixels of a frame are stored, where that is simple: what :meth:`FrameSource.read_raw` gives.

    Attributes
    ----------
    dtype : numpy.dtype
        float32, uint16 or int16, with the byte order of the file.
    flipped : bool
        The numbers are signed and stand for unsigned ones, 32768 to be added (FITS convention).
    planar : bool
        The rows asked for come plane by plane, (C, rows, W); otherwise (rows, W, C), or (rows, W).
    """

    dtype: np.dtype
    flipped: bool
    planar: bool


class RawFile(NamedTuple):
    """Where the pixels that :meth:`FrameSource.read_raw` gives lie in a file.

    ``offset``: of row 0, bytes; ``row_bytes``: of one row of one plane; ``planes``: how many lie one after the other,
    ``plane_bytes`` apart (1: all channels are in the row).
    """

    path: str
    offset: int
    row_bytes: int
    planes: int
    plane_bytes: int


@dataclass(frozen=True, eq=False)
class Frame:
    """A registered frame: its pixels and where they go.

    Attributes
    ----------
    source : FrameSource
        Pixels.
    transform : ndarray (3, 3) float64
        Homogeneous map of a reference pixel (x, y, 1) to this frame's own pixel.
    stats : FrameStats or None
        Levels before normalisation, where they were measured.
    distortion : ndarray (rows, columns, 2) float32 or None
        What is added to the mapped position, pixels; see ``zemosaic_distortion``. None: nothing.
    """

    source: FrameSource
    transform: np.ndarray = field(default_factory=IDENTITY.copy)
    stats: FrameStats | None = None
    distortion: np.ndarray | None = None


# --------------------------------------------------------------------------- doors


def open_source(descriptor: object, *, bayer: str = "auto") -> FrameSource:
    """Open a frame, whatever it comes as; nothing is read but its header.

    Parameters
    ----------
    descriptor : ndarray, path, dict, FrameSource or Frame
        Array (H, W), (H, W, 3) or, with H, W > 4, (3, H, W); path of a FITS file (plain, ``.gz``, tile-compressed) or
        of an ``.npy`` cache; dict with ``data``, ``array``, ``path_preprocessed_cache`` or ``path`` (in this order),
        and optionally ``name``, ``header`` and ``wcs``, which override the file's.
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


def expand_inputs(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the frames that files, folders and glob patterns name.

    Parameters
    ----------
    inputs : iterable of path
        A folder stands for its FITS and ``.npy`` files (hidden ones and sub-folders are left out). A path or pattern
        that matches nothing is kept, so that opening it reports it by name.

    Returns
    -------
    list of Path
        In natural order (``sub_2`` before ``sub_10``), each file once.

    Raises
    ------
    NoFramesError
        Nothing was found at all.
    """
    items = [Path(item) for item in inputs]
    named = [path for item in items for path in _expand(item)]
    found: dict[Path, Path] = {}
    for real, path in zip(real_paths(named), named, strict=True):
        found.setdefault(real, path)
    if not found:
        looked = ", ".join(map(str, items)) or "no input given"
        raise NoFramesError(f"no frames found in: {looked}; expected files ending in {', '.join(FRAME_SUFFIXES)}, .gz")
    return sorted(found.values(), key=_natural_key)


def real_paths(paths: Iterable[Path]) -> list[Path]:
    """Resolve many paths; folders that hold several of them are resolved once."""
    if os.name == "nt":  # a name has several spellings there
        return [path.resolve() for path in paths]
    folders: dict[Path, Path] = {}
    real = []
    for path in paths:
        if path.name in ("", "..") or path.is_symlink():
            real.append(path.resolve())
            continue
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        real.append(folders[path.parent] / path.name)
    return real


def _expand(item: Path) -> list[Path]:
    if item.is_dir():
        return [path for path in item.iterdir() if _is_frame_name(path.name) and path.is_file()]
    if item.exists() or not any(mark in str(item) for mark in "*?["):
        return [item]
    matches = [path for path in Path(item.anchor).glob(str(item.relative_to(item.anchor))) if not path.is_dir()]
    return matches or [item]


def _is_frame_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().removesuffix(".gz").endswith(FRAME_SUFFIXES)


def _natural_key(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


# --------------------------------------------------------------------------- opening


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
        source._header, source._wcs = header, descriptor.get("wcs")
        return source
    wanted, found = ", ".join((*_ARRAY_KEYS, *_PATH_KEYS)), ", ".join(map(str, descriptor))
    raise FrameError(str(label or "<dict>"), f"has none of the keys {wanted}; its keys are: {found}")


def _open_array(value: object, name: str, bayer: str, header: Cards) -> FrameSource:
    if isinstance(value, np.ma.MaskedArray):  # a masked sample is an invalid one, and np.asarray would forget the mask
        array = np.ma.filled(value.astype(np.float32), np.nan)
    else:
        array = np.asarray(value)
    size, planar = _layout(array.shape, name)
    _check_number_type(array.dtype, name)
    pixels = np.moveaxis(array, 0, -1) if planar else array
    pixels = pixels[..., 0] if array.ndim == 3 and size[2] == 1 else pixels
    cfa = _cfa(bayer, size, name, header)
    if cfa is not None and min(size[:2]) < MIN_SIDE_PX:
        raise FrameError(name, f"{size[1]} x {size[0]} pixels are too few for a mosaic; at least {MIN_SIDE_PX} a side")
    return _ArraySource(name, size, _Codec(array.dtype), cfa, pixels)


def _open_path(path: str, label: object, bayer: str, header: Cards) -> FrameSource:
    name = path if label is None else str(label)
    with _file_errors(name):
        status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        raise FrameError(name, "is a folder, not a frame; name the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise FrameError(name, "is not a regular file; copy its content to a file first")
    if status.st_size == 0:
        raise FrameError(name, "is empty (0 bytes); copy or capture it again")
    with _file_errors(name), Path(path).open("rb") as plain:
        gzipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        stream: BufferedIOBase = gzip.GzipFile(fileobj=plain) if gzipped else plain
        largest = status.st_size * (MAX_DEFLATE_RATIO if gzipped else 1)  # bytes that can come out of this file
        magic = stream.read(6)
        stream.seek(0)
        place = _Place(path, gzipped=gzipped)
        opener = _open_npy if magic == b"\x93NUMPY" else _open_fits
        return opener(stream, place, name, bayer, header, largest)


def npy_header(stream: BinaryIO | BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the head of an ``.npy`` array: shape, whether in Fortran order, type; the pixels follow in the stream.

    Raises
    ------
    ValueError
        The stream does not begin as such a file does. NumPy lets errors of Python's parser through as well.
    """
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"version {version} is for record arrays")
    try:
        return readers[version](stream)
    except (SyntaxError, TokenError) as exc:
        raise ValueError(f"it is damaged: {exc}") from exc


def _open_npy(stream: BufferedIOBase, place: _Place, name: str, bayer: str, header: Cards, largest: int) -> FrameSource:
    try:
        shape, is_fortran, stored = npy_header(stream)
    except ValueError as exc:
        raise FrameError(name, f"its .npy header cannot be used ({exc}); save the cache again") from exc
    _check_number_type(stored, name)
    size, planar = _layout(shape, name, minimum=MIN_SIDE_PX)
    if is_fortran and planar:
        raise FrameError(name, f"{shape} in Fortran order is not supported; save np.ascontiguousarray of it")
    offset = stream.tell()
    _check_file_size(name, offset + prod(shape) * stored.itemsize, largest, shape)
    order = "columns" if is_fortran else "planes" if planar else "rows"
    cfa = _cfa(bayer, size, name, header)
    return _PixelFile(name, size, _Codec(stored), cfa, place._replace(offset=offset, order=order))


def _open_fits(
    stream: BufferedIOBase, place: _Place, name: str, bayer: str, header: Cards, largest: int
) -> FrameSource:
    primary, unit, hdu = headers.find_image(stream, name)
    size, planar = _layout(hdu.shape, name, minimum=MIN_SIDE_PX)
    # Plain pixels are whole without the padding of their last block; astropy, which reads tiles, wants that too.
    stored_bytes = hdu.padded_bytes if hdu.is_compressed else hdu.data_bytes
    _check_file_size(name, hdu.data_offset + stored_bytes, largest, hdu.shape)
    cfa = _cfa(bayer, size, name, primary, hdu.cards, header)
    codec = _fits_codec(hdu, name)
    place = place._replace(
        offset=hdu.data_offset, order="planes" if planar else "rows", header_offset=hdu.header_offset, unit=unit
    )
    return (_TileCompressedFile if hdu.is_compressed else _PixelFile)(name, size, codec, cfa, place)


def _layout(shape: tuple[int, ...], name: str, minimum: int = 1) -> tuple[Size, bool]:
    """Return ((height, width, planes), channel axis is the first one) of an array of this shape."""
    if len(shape) == 2:
        size, planar = (shape[0], shape[1], 1), False
    elif len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 4:
        size, planar = (shape[1], shape[2], shape[0]), True
    elif len(shape) == 3 and shape[2] in (1, 3):
        size, planar = (shape[0], shape[1], shape[2]), False
    else:
        raise FrameError(name, f"shape {shape} is no image; expected (H, W), (H, W, 3) or (3, H, W)")
    if min(size[:2]) < minimum:
        raise FrameError(name, f"is {size[1]} x {size[0]} pixels; at least {minimum} x {minimum} are needed")
    return size, planar


def _check_number_type(dtype: np.dtype, name: str) -> None:
    if dtype.kind not in "uif":
        raise FrameError(name, f"pixels of type {dtype} are no brightness; save them as float32 or unsigned integers")


def _check_file_size(name: str, expected: int, largest: int, shape: tuple[int, ...]) -> None:
    if expected > largest:
        raise FrameError(
            name,
            f"truncated: expected {expected} bytes for the {' x '.join(map(str, shape))} pixels of its header,"
            f" found {largest} bytes at most; copy it again",
        )


def _fits_codec(hdu: headers.Hdu, name: str) -> _Codec:
    stored = np.dtype(headers.BITPIX_DTYPE[hdu.bitpix])
    try:
        bscale, bzero = float(hdu.cards.get("BSCALE", 1)), float(hdu.cards.get("BZERO", 0))
        blank = int(hdu.cards["BLANK"]) if "BLANK" in hdu.cards and stored.kind != "f" else None
    except (TypeError, ValueError) as exc:
        raise FrameError(name, f"BSCALE, BZERO or BLANK is no number ({exc}); repair the header") from exc
    if not (isfinite(bscale) and isfinite(bzero)) or bscale == 0:
        raise FrameError(name, f"BSCALE = {bscale}, BZERO = {bzero} leave no brightness; repair the header")
    return _Codec(stored, bscale, bzero, blank)


def _bayer_choice(bayer: str) -> str:
    text = str(bayer).strip()
    if text.lower() in ("auto", "none"):
        return text.lower()
    if text.upper() not in headers.BAYER_PATTERNS:
        allowed = ", ".join(("auto", "none", *headers.BAYER_PATTERNS))
        raise SpecError(f"unknown Bayer pattern {bayer!r}; choose one of: {allowed}")
    return text.upper()


def _cfa(bayer: str, size: Size, name: str, *header: Cards) -> str | None:
    if bayer == "none" or size[2] != 1:
        return None
    return headers.cfa_from_header(headers.bayer_cards(*header), size[0], name) if bayer == "auto" else bayer


@contextlib.contextmanager
def _file_errors(name: str) -> Iterator[None]:
    """Turn what the file system and the decompressors raise into one FrameError with the remedy."""
    try:
        yield
    except FileNotFoundError as exc:
        raise FrameError(name, "no such file; check the path or pattern") from exc
    except PermissionError as exc:
        raise FrameError(name, "may not be read; check the permissions") from exc
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise FrameError(name, f"its compressed data are cut short or damaged ({exc}); copy it again") from exc
    except OSError as exc:
        raise FrameError(name, f"cannot be read ({exc}); check the disk or copy it again") from exc


# --------------------------------------------------------------------------- pixels


class _Codec(NamedTuple):
    """How stored numbers become samples: ``stored * bscale + bzero``; ``blank`` marks an invalid one."""

    stored: np.dtype
    bscale: float = 1.0
    bzero: float = 0.0
    blank: int | None = None

    @property
    def target(self) -> np.dtype:
        kind, size = self.stored.kind, self.stored.itemsize
        is_unsigned16 = size == 2 and self.bscale == 1 and (kind, self.bzero) in {("i", 32768), ("u", 0)}
        return _UINT16 if is_unsigned16 and self.blank is None else _FLOAT32

    def raw_layout(self, *, planar: bool) -> RawLayout | None:
        """Return the layout if the numbers need no more than their bytes put in order."""
        is_plain = self.bscale == 1 and self.bzero == 0
        is_flipped = self.bscale == 1 and self.bzero == 32768 and self.stored.kind == "i"
        fits_16 = self.stored.itemsize == 2 and self.stored.kind in "iu" and (is_plain or is_flipped)
        fits_32 = self.stored.itemsize == 4 and self.stored.kind == "f" and is_plain
        return RawLayout(self.stored, is_flipped, planar) if self.blank is None and (fits_16 or fits_32) else None

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Return samples; ``raw`` is used up (bytes are swapped in place, so that no second copy is held)."""
        if not raw.dtype.isnative:
            raw = raw.byteswap(inplace=True).view(raw.dtype.newbyteorder("="))
        if self.target == _UINT16:
            raw = raw.view(np.uint16)
            if self.bzero:
                raw ^= 0x8000  # adding 32768 to a signed number is flipping its top bit
            return raw
        is_scaled = (self.bscale, self.bzero) != (1, 0)
        with np.errstate(over="ignore", invalid="ignore"):  # too large for float32 becomes inf, which is invalid below
            values = raw.astype(np.float64) * self.bscale + self.bzero if is_scaled else raw
            values = values.astype(np.float32, copy=False)
        if is_scaled or raw.dtype.kind == "f":
            values[np.isinf(values)] = np.nan
        if self.blank is not None:
            values[raw == self.blank] = np.nan
        return values


class _Place(NamedTuple):
    """Where the pixels of a file begin and in which order they lie: by "rows", by "planes" or by "columns"."""

    path: str
    offset: int = 0
    order: str = "rows"
    header_offset: int | None = None  # None: the file has no FITS header
    unit: int = 0  # number of the FITS header-data unit
    gzipped: bool = False


class _ArraySource(FrameSource):
    """An array in memory (or a memory map of the caller's); rows are copied out."""

    __slots__ = ("_pixels",)

    def __init__(self, name: str, size: Size, codec: _Codec, cfa: str | None, pixels: np.ndarray) -> None:
        super().__init__(name, size, codec, cfa)
        self._pixels = pixels

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._codec.decode(np.array(self._pixels[y0:y1], order="C").reshape(shape))

    @property
    def raw_layout(self) -> RawLayout | None:
        return self._codec.raw_layout(planar=False)

    def read_raw(self, y0: int, y1: int, out: np.ndarray) -> None:
        rows = self._pixels[y0:y1]
        np.copyto(out.view(rows.dtype).reshape(rows.shape), rows)

    @property
    def pixels_in_memory(self) -> np.ndarray | None:
        return self._pixels if self._pixels.flags.c_contiguous else None


class _PixelFile(FrameSource):
    """Pixels stored one after the other in a file: a FITS image or an ``.npy`` cache, plain or in a ``.gz``."""

    __slots__ = ("_place",)

    def __init__(self, name: str, size: Size, codec: _Codec, cfa: str | None, place: _Place) -> None:
        super().__init__(name, size, codec, cfa)
        self._place = place

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        with _file_errors(self.name), self._open() as stream:
            rows = self._read_stream(stream, y0, shape)
            # The checksum of a .gz stands behind its last byte; only there does a damaged one show.
            while self._place.gzipped and y1 == self.height and stream.read(_DRAIN_BYTES):
                continue
        return rows

    @property
    def raw_layout(self) -> RawLayout | None:
        planar = self._place.order == "planes" and self.channels > 1 and self.cfa is None
        is_simple = not self._place.gzipped and self._place.order != "columns"
        return self._codec.raw_layout(planar=planar) if is_simple else None

    @property
    def raw_file(self) -> RawFile | None:
        layout = self.raw_layout
        if layout is None:
            return None
        channels = 1 if self.cfa else self.channels
        planes = channels if layout.planar else 1
        row = self.width * (channels // planes) * layout.dtype.itemsize
        return RawFile(self._place.path, self._place.offset, row, planes, self.height * row)

    def read_raw(self, y0: int, y1: int, out: np.ndarray) -> None:
        place = self.raw_file
        if place is None:
            super().read_raw(y0, y1, out)
            return
        first = place.offset + y0 * place.row_bytes
        pieces = [(first + c * place.plane_bytes, part) for c, part in enumerate(np.split(out, place.planes))]
        with _file_errors(self.name):
            for got, (_, piece) in zip(_read_at(place.path, pieces), pieces, strict=True):
                if got < piece.size:
                    reason = f"truncated: expected {piece.size} bytes of pixels, found {got} bytes; copy it again"
                    raise FrameError(self.name, reason)

    def _read_stream(self, stream: BufferedIOBase, y0: int, shape: tuple[int, ...]) -> np.ndarray:
        planes = prod(shape[2:])
        if self._place.order == "columns":
            return self._read_columns(stream, y0, shape)
        if self._place.order == "rows" or planes == 1:
            block = np.empty(shape, self._codec.stored)
            self._fill(stream, y0 * self.width * planes, block)
            return self._codec.decode(block)
        out = np.empty(shape, self.dtype)
        plane = np.empty(shape[:2], self._codec.stored)
        for c in range(planes):
            self._fill(stream, (c * self.height + y0) * self.width, plane)
            out[..., c] = self._codec.decode(plane)
        return out

    def _read_columns(self, stream: BufferedIOBase, y0: int, shape: tuple[int, ...]) -> np.ndarray:
        """Read a Fortran-ordered array: its rows are scattered, so the whole is read and cut."""
        whole = np.empty((*shape[:0:-1], self.height), self._codec.stored)
        self._fill(stream, 0, whole)
        return self._codec.decode(np.array(whole.T[y0 : y0 + shape[0]], order="C"))

    def _open(self) -> BufferedIOBase:
        path = self._place.path
        return gzip.open(path) if self._place.gzipped else Path(path).open("rb")

    def _fill(self, stream: BufferedIOBase, first_pixel: int, block: np.ndarray) -> None:
        stream.seek(self._place.offset + first_pixel * block.itemsize)
        target = block.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(target):
            count = stream.readinto(target[done:])
            if not count:
                reason = f"truncated: expected {len(target)} bytes of pixels, found {done} bytes; copy it again"
                raise FrameError(self.name, reason)
            done += count

    def card_values(self, *keys: str) -> list[Any]:
        """Return the values of a few cards, without astropy where they are plain."""
        if self._header is not None or self._place.header_offset:  # of an extension: it inherits the primary's
            return super().card_values(*keys)
        if self._place.header_offset is None:
            return [None] * len(keys)
        with _file_errors(self.name), self._open() as stream:
            values = headers.plain_values(headers.header_bytes(stream, self.name, 0), keys)
        return super().card_values(*keys) if values is None else list(values.values())

    def wcs(self, header: Header | None = None) -> WCS | None:
        """Return the celestial two-axis WCS; a raw frame is seen to have none without astropy."""
        if header is None and self._wcs is None and self.card_values("CTYPE1") == [None]:
            return None
        return super().wcs(header)

    def _file_header(self) -> Callable[[], Header]:
        offset = self._place.header_offset
        if offset is None:
            return super()._file_header()
        with _file_errors(self.name), self._open() as stream:
            primary = headers.header_bytes(stream, self.name, 0)
            extension = headers.header_bytes(stream, self.name, offset) if offset else None

        def parse() -> Header:
            header = headers.parse_header(primary)
            return header if extension is None else headers.inherit(headers.parse_header(extension), header)

        return parse


def _read_at(path: str, pieces: Iterable[tuple[int, np.ndarray]]) -> list[int]:
    """Read from places of a file into arrays of bytes; return how many bytes each got, fewer at the end of the file.

    No buffer in between. One system call a piece where the system can read at an offset.
    """
    counts: list[int] = []
    if not hasattr(os, "preadv"):  # Windows
        with Path(path).open("rb", buffering=0) as stream:
            for offset, piece in pieces:
                stream.seek(offset)
                counts.append(_read_all(lambda rest, _: stream.readinto(rest), piece, offset))
        return counts
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, piece in pieces:
            counts.append(_read_all(lambda rest, at: os.preadv(descriptor, [rest], at), piece, offset))
    finally:
        os.close(descriptor)
    return counts


def _read_all(read: Callable[[memoryview, int], int | None], piece: np.ndarray, offset: int) -> int:
    """Call ``read(rest, place)`` until an array of bytes is full or nothing comes."""
    target, done = piece.data, 0
    while done < len(target):
        count = read(target[done:], offset + done)
        if not count:
            break
        done += count
    return done


_HCOMPRESS_LOCK = threading.Lock()


class _TileCompressedFile(_PixelFile):
    """A tile-compressed FITS image (``.fz``): astropy decompresses the tiles that the rows touch."""

    __slots__ = ()

    @property
    def raw_layout(self) -> RawLayout | None:
        return None

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        from astropy.io import fits

        options = {"memmap": False, "do_not_scale_image_data": True}
        is_planar = self._place.order == "planes"
        try:
            with _file_errors(self.name), fits.open(self._place.path, **options) as hdus:
                unit = hdus[self._place.unit]
                # The HCOMPRESS decoder keeps its state in static memory: two threads in it spoil each other's tiles.
                one_at_a_time = unit.compression_type == "HCOMPRESS_1"
                with _HCOMPRESS_LOCK if one_at_a_time else contextlib.nullcontext():
                    block = unit.section[:, y0:y1] if is_planar else unit.section[y0:y1]
        except FrameError:
            raise
        except Exception as exc:  # noqa: BLE001 - the decoders' own error derives from nothing narrower
            raise FrameError(self.name, f"its compressed tiles are damaged ({exc}); copy it again") from exc
        block = np.moveaxis(block, 0, -1) if is_planar else block
        return self._codec.decode(np.array(block, order="C").reshape(shape))

    def _file_header(self) -> Callable[[], Header]:
        from astropy.io import fits

        with _file_errors(self.name), fits.open(self._place.path, memmap=False) as hdus:
            header = headers.inherit(hdus[self._place.unit].header, hdus[0].header)
        return lambda: header
