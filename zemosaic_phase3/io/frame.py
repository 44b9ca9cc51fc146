"""What a frame is: one small object that gives any range of rows, and opens nothing between two calls.

A source holds numbers only (where the pixels begin, how they are stored): no handle, no header, no mapping. Ten
thousand of them cost a few megabytes, and mapped pages never count in the resident set.
"""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io import fits_header as headers
from zemosaic_phase3.io.codec import Codec, RawLayout
from zemosaic_phase3.records import IDENTITY, FrameStats

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    from zemosaic_phase3.io.origin import Origin

    Cards = Mapping[str, Any] | None
    Size = tuple[int, int, int]  # height, width, planes


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
    row_order : str
        How the rows lie, "TOP-DOWN" or "BOTTOM-UP", where the header says so (ROWORDER); else empty.
    """

    __slots__ = ("_codec", "_header", "_wcs", "cfa", "channels", "dtype", "height", "name", "row_order", "width")

    def __init__(self, name: str, size: Size, codec: Codec, cfa: str | None) -> None:
        self.name = name
        self.height, self.width, planes = size
        self.cfa = cfa
        self.channels = 3 if cfa else planes
        self.dtype = codec.target
        self._codec = codec
        self._header: Cards = None
        self._wcs: WCS | None = None
        self.row_order = ""

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
    def codec(self) -> Codec:
        """How the numbers that are stored become samples."""
        return self._codec

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

    @property
    def origin(self) -> Origin | None:
        """Where the pixels come from, as a later run can know it again; None where it could not, as for arrays."""
        return None

    def require_unchanged(self) -> None:  # noqa: B027 - most kinds of frame have nothing to look at
        """Make sure that the file is still the one that was opened; arrays have none. Whoever reads pixels calls it.

        Raises
        ------
        FrameError
            It was written, replaced or removed meanwhile.
        """

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

    def describe(self, header: Cards, wcs: WCS | None) -> None:
        """Take a header and a WCS that the caller knows, instead of what the file says; None leaves the file's."""
        self._header, self._wcs = header, wcs

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

    def some_cards(self, keys: Collection[str]) -> dict[str, Any]:
        """Return the values of those cards that the header has, read as well as they can be and without astropy.

        ``keys``: a set. See :func:`io.frame_kind.read_cards`; a header that came with the descriptor replaces the
        file's.

        Raises
        ------
        FrameError
            The file can no longer be read.
        """
        given = self._header
        if given is None:
            return self._file_cards(keys)
        values = {key: headers.given_value(given, key) for key in keys}
        return {key: value for key, value in values.items() if value is not None}

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

    def _file_cards(self, keys: Collection[str]) -> dict[str, Any]:
        """Read a few cards of the file's header, where there is one."""
        return {}

    def _file_header(self) -> Callable[[], Header]:
        """Read the header of the file, if there is one; return what makes it."""
        return lambda: headers.header_from_mapping({})


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
        Homogeneous map of a pixel (x, y, 1) of the result's grid, the reference's or a canvas, to this frame's own.
    stats : FrameStats or None
        Levels before normalisation, where they were measured.
    distortion : ndarray (rows, columns, 2) float32 or None
        What is added to the mapped position, pixels; see ``registration.distortion``. None: nothing.
    motion : ndarray (2,) float64 or None
        By how much the stack's target has moved in this frame, pixels of the grid: levels are matched as if nothing
        moved, then the frame's pixels are shifted so. None: the target is the sky.
    """

    source: FrameSource
    transform: np.ndarray = field(default_factory=IDENTITY.copy)
    stats: FrameStats | None = None
    distortion: np.ndarray | None = None
    motion: np.ndarray | None = None
