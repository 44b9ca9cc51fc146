"""Where the pixels of a frame come from: arrays in memory, plain and compressed files."""

from __future__ import annotations

import contextlib
import gzip
import os
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io import fits_header as headers
from zemosaic_phase3.io.codec import Codec, RawLayout
from zemosaic_phase3.io.frame import FrameSource, RawFile
from zemosaic_phase3.io.frame_kind import read_cards
from zemosaic_phase3.io.origin import Identity, Origin
from zemosaic_phase3.io.plain_wcs import plain_cards, tangent_plane
from zemosaic_phase3.io.remote import identity_at, is_remote, opened, read_remote_at

if TYPE_CHECKING:
    from io import BufferedIOBase

    from astropy.io.fits import HDUList, Header
    from astropy.wcs import WCS

    from zemosaic_phase3.io.archive import Member
    from zemosaic_phase3.io.frame import Size

_DRAIN_BYTES: Final = 65536  # read at a time from the rest of a .gz


@contextlib.contextmanager
def file_errors(name: str) -> Iterator[None]:
    """Turn what the file system and the decompressors raise into one FrameError with the remedy."""
    try:
        yield
    except FileNotFoundError as exc:
        raise FrameError(name, "no such file or folder; check the path or pattern") from exc
    except PermissionError as exc:
        raise FrameError(name, "may not be read; check the permissions") from exc
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise FrameError(name, f"its compressed data are cut short or damaged ({exc}); copy it again") from exc
    except OSError as exc:
        raise FrameError(name, f"cannot be read ({exc}); check the disk or copy it again") from exc


class Place(NamedTuple):
    """Where the pixels of a file begin and in which order they lie: by "rows", by "planes" or by "columns"."""

    path: str
    offset: int = 0
    order: str = "rows"
    header_offset: int | None = None  # None: the file has no FITS header
    unit: int = 0  # number of the FITS header-data unit
    gzipped: bool = False
    member: Member | None = None  # of the archive that ``path`` is; None: the file itself

    @property
    def is_packed(self) -> bool:
        """Whether the bytes must be decompressed from their beginning."""
        return self.gzipped or (self.member is not None and not self.member.is_plain)

    @contextlib.contextmanager
    def opened(self, plain: BinaryIO) -> Iterator[BufferedIOBase]:
        """Give the frame's file as a stream, out of its archive and decompressed; ``plain``: the file at ``path``."""
        if self.member is None:
            yield gzip.GzipFile(fileobj=plain) if self.gzipped else plain  # type: ignore[misc]
            return
        with self.member.opened(plain) as stream:
            yield gzip.GzipFile(fileobj=stream) if self.gzipped else stream


class ArraySource(FrameSource):
    """An array in memory (or a memory map of the caller's); rows are copied out."""

    __slots__ = ("_pixels",)

    def __init__(self, name: str, size: Size, codec: Codec, cfa: str | None, pixels: np.ndarray) -> None:
        super().__init__(name, size, codec, cfa)
        self._pixels = pixels

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._codec.decode(np.array(self._pixels[y0:y1], order="C").reshape(shape))

    @property
    def raw_layout(self) -> RawLayout | None:
        """How the bytes of a row lie, for a device that opens them itself; None where they must be decoded first."""
        return self._codec.raw_layout(planar=False)

    def read_raw(self, y0: int, y1: int, out: np.ndarray) -> None:
        """Fill rows y0 .. y1 - 1 as they are stored into ``out``, bytes."""
        rows = self._pixels[y0:y1]
        np.copyto(out.view(rows.dtype).reshape(rows.shape), rows)

    @property
    def pixels_in_memory(self) -> np.ndarray | None:
        """Return all pixels as they lie in memory, row after row; None where they do not."""
        return self._pixels if self._pixels.flags.c_contiguous else None


class PixelFile(FrameSource):
    """Pixels stored one after the other in a file: a FITS image or an ``.npy`` cache, plain or in a ``.gz``.

    What was measured of a file is only true of the file that was measured. So each opening looks whether the file is
    still the one this source was made for, before the reading and after it.
    """

    __slots__ = ("_identity", "_place")

    def __init__(self, name: str, size: Size, codec: Codec, cfa: str | None, place: Place) -> None:
        super().__init__(name, size, codec, cfa)
        self._place = place
        with file_errors(name):
            self._identity = identity_at(place.path)

    def require_unchanged(self, descriptor: int | None = None) -> None:
        """Make sure that the file, or the one behind an open descriptor, is still the one that was opened."""
        with file_errors(self.name):
            now = identity_at(self._place.path) if descriptor is None else Identity.of(os.fstat(descriptor))
        if not self._identity.is_same(now):
            reason = "its file was written or replaced after it was opened, so that what was measured of it is not true"
            raise FrameError(self.name, f"{reason}; stack again when nothing writes there")

    @property
    def origin(self) -> Origin | None:
        """The file, and how its pixels are opened; None where the caller's header or WCS stand for the file's."""
        if self._header is not None or self._wcs is not None:
            return None
        place = self._place._replace(path="")
        recipe = f"{type(self).__name__} {tuple(place)} {self.width}x{self.height} {self.cfa} {tuple(self._codec)}"
        where = self._place.path if self.is_remote else os.path.abspath(self._place.path)  # noqa: PTH100 - many files
        named = where.encode(errors="backslashreplace").decode()  # names on Linux are bytes, which may be no text
        return Origin(named, self._identity, recipe)

    @property
    def is_remote(self) -> bool:
        """Whether its bytes come from an address rather than from a file that this machine has open."""
        return is_remote(self._place.path)

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        with self._open() as stream:
            rows = self._read_stream(stream, y0, shape)
            # The checksum of a .gz stands behind its last byte; only there does a damaged one show.
            while self._place.is_packed and y1 == self.height and stream.read(_DRAIN_BYTES):
                continue
        return rows

    @property
    def raw_layout(self) -> RawLayout | None:
        """How the bytes of a row lie, for a device that opens them itself; None where they must be decoded first."""
        planar = self._place.order == "planes" and self.channels > 1 and self.cfa is None
        is_simple = not self._place.is_packed and self._place.order != "columns"
        return self._codec.raw_layout(planar=planar) if is_simple else None

    @property
    def raw_file(self) -> RawFile | None:
        """Where the rows lie in a file, for threads that read it themselves; None where they do not."""
        layout = self.raw_layout
        if layout is None or self.is_remote:
            return None
        return self._rows_in_file(layout)

    def _rows_in_file(self, layout: RawLayout) -> RawFile:
        channels = 1 if self.cfa else self.channels
        planes = channels if layout.planar else 1
        row = self.width * (channels // planes) * layout.dtype.itemsize
        start = self._place.offset + (0 if self._place.member is None else self._place.member.start)
        return RawFile(self._place.path, start, row, planes, self.height * row)

    def read_raw(self, y0: int, y1: int, out: np.ndarray) -> None:
        """Fill rows y0 .. y1 - 1 as they are stored into ``out``, bytes."""
        layout = self.raw_layout
        if layout is None:
            super().read_raw(y0, y1, out)
            return
        place = self._rows_in_file(layout)
        first = place.offset + y0 * place.row_bytes
        pieces = [(first + c * place.plane_bytes, part) for c, part in enumerate(np.split(out, place.planes))]
        with file_errors(self.name):
            for got, (_, piece) in zip(_read_at(place.path, pieces, self.require_unchanged), pieces, strict=True):
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

    @contextlib.contextmanager
    def _open(self) -> Iterator[BufferedIOBase]:
        """Open the file, decompressed; FrameError where it cannot be read or is another one than before."""
        with file_errors(self.name), opened(self._place.path, self._identity.size) as plain:
            # Of a remote file a look after the reading tells both, and is one request less.
            number = None if self.is_remote else plain.fileno()
            if number is not None:
                self.require_unchanged(number)
            with self._place.opened(plain) as stream:
                yield stream
            self.require_unchanged(number)

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
        with self._open() as stream:
            values = headers.plain_values(headers.header_bytes(stream, self.name, 0), keys)
        return super().card_values(*keys) if values is None else list(values.values())

    def _file_cards(self, keys: Collection[str]) -> dict[str, Any]:
        offset = self._place.header_offset
        if offset is None:
            return {}
        with self._open() as stream:
            primary = read_cards(headers.header_bytes(stream, self.name, 0), keys)
            if offset == 0:
                return primary
            return {**primary, **read_cards(headers.header_bytes(stream, self.name, offset), keys)}

    @property
    def place(self) -> Place:
        """Where its pixels begin in which file."""
        return self._place

    @property
    def stored_type(self) -> np.dtype:
        """Type of the numbers in the file."""
        return self._codec.stored

    @property
    def storage(self) -> tuple[object, ...]:
        """What makes equal stored bytes equal samples: frames that differ in it cannot be compared by their bytes."""
        place = self._place
        return (type(self).__name__, place.is_packed, place.order, self._codec, self.shape)

    @property
    def is_encoded(self) -> bool:
        """Whether the bytes of the file are to be decoded to pixels by more than their codec."""
        return False

    @property
    def identity(self) -> Identity:
        """The file it was opened from."""
        return self._identity

    def wcs(self, header: Header | None = None) -> WCS | None:
        """Return the celestial two-axis WCS; a plain one is read, and none is seen to be there, without astropy."""
        is_own = header is None and self._wcs is None and self._header is None
        if is_own and self._place.header_offset == 0:
            with self._open() as stream:
                cards = plain_cards(headers.header_bytes(stream, self.name, 0))
            if cards is not None:
                return tangent_plane(cards, (self.width, self.height)) if cards else None
        elif header is None and self._wcs is None and self.card_values("CTYPE1") == [None]:
            return None
        return super().wcs(header)

    def _file_header(self) -> Callable[[], Header]:
        offset = self._place.header_offset
        if offset is None:
            return super()._file_header()
        with self._open() as stream:
            primary = headers.header_bytes(stream, self.name, 0)
            extension = headers.header_bytes(stream, self.name, offset) if offset else None

        def parse() -> Header:
            header = headers.parse_header(primary)
            return header if extension is None else headers.inherit(headers.parse_header(extension), header)

        return parse


def _read_at(path: str, pieces: Iterable[tuple[int, np.ndarray]], require: Callable[[int | None], None]) -> list[int]:
    """Read from places of a file into arrays of bytes; return how many bytes each got, fewer at the end of the file.

    No buffer in between. One system call a piece where the system can read at an offset. ``require`` looks at the open
    file before and after, or at the address after.
    """
    counts: list[int] = []
    if is_remote(path):
        counts = read_remote_at(path, list(pieces))
        require(None)
        return counts
    if not hasattr(os, "preadv"):  # Windows
        with Path(path).open("rb", buffering=0) as stream:
            require(stream.fileno())
            for offset, piece in pieces:
                stream.seek(offset)
                counts.append(_read_all(lambda rest, _: stream.readinto(rest), piece, offset))
            require(stream.fileno())
        return counts
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        require(descriptor)
        for offset, piece in pieces:
            counts.append(_read_all(lambda rest, at: os.preadv(descriptor, [rest], at), piece, offset))
        require(descriptor)
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


class TileCompressedFile(PixelFile):
    """A tile-compressed FITS image (``.fz``): astropy decompresses the tiles that the rows touch."""

    __slots__ = ()

    @property
    def raw_layout(self) -> RawLayout | None:
        """How the bytes of a row lie, for a device that opens them itself; None where they must be decoded first."""
        return None

    @property
    def is_encoded(self) -> bool:
        """True: the bytes of the file are tiles, to be decompressed."""
        return True

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        options = {"memmap": False, "do_not_scale_image_data": True}
        is_planar = self._place.order == "planes"
        try:
            with self._tiles(**options) as hdus:
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

    @contextlib.contextmanager
    def _tiles(self, **options: Any) -> Iterator[HDUList]:
        """Let astropy read the file: before and after it is the one that was opened."""
        from astropy.io import fits

        with file_errors(self.name):
            self.require_unchanged()
            if self._place.member is None and not self.is_remote:
                with fits.open(self._place.path, **options) as hdus:
                    yield hdus
            else:  # astropy closes what it is given
                with (
                    opened(self._place.path, self._identity.size) as plain,
                    self._place.opened(plain) as stream,
                    fits.open(stream, **options) as hdus,
                ):
                    yield hdus
            self.require_unchanged()

    def _file_header(self) -> Callable[[], Header]:
        try:
            with self._tiles(memmap=False) as hdus:
                header = headers.inherit(hdus[self._place.unit].header, hdus[0].header)
        except FrameError:
            raise
        except Exception as exc:  # astropy reads the table's whole header here, and fails in many ways
            raise FrameError(self.name, f"its header is damaged ({exc}); copy it again") from exc
        return lambda: header
