"""Stored numbers to samples: byte order, scaling, blank values."""

from __future__ import annotations

from math import isfinite
from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io import fits_header as headers

UINT16: Final = np.dtype(np.uint16)
FLOAT32: Final = np.dtype(np.float32)


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


def check_number_type(dtype: np.dtype, name: str) -> None:
    """Raise FrameError where pixels are no real numbers."""
    if dtype.kind not in "uif":
        raise FrameError(name, f"pixels of type {dtype} are no brightness; save them as float32 or unsigned integers")


def fits_codec(hdu: headers.Hdu, name: str) -> Codec:
    """Return how the numbers of a FITS image become samples; FrameError where its scaling cannot be understood."""
    stored = np.dtype(headers.BITPIX_DTYPE[hdu.bitpix])
    try:
        bscale, bzero = float(hdu.cards.get("BSCALE", 1)), float(hdu.cards.get("BZERO", 0))
        blank = int(hdu.cards["BLANK"]) if "BLANK" in hdu.cards and stored.kind != "f" else None
    except (TypeError, ValueError, OverflowError) as exc:
        raise FrameError(name, f"BSCALE, BZERO or BLANK is no number ({exc}); repair the header") from exc
    if not (isfinite(bscale) and isfinite(bzero)) or bscale == 0:
        raise FrameError(name, f"BSCALE = {bscale}, BZERO = {bzero} leave no brightness; repair the header")
    return Codec(stored, bscale, bzero, blank)


class Codec(NamedTuple):
    """How stored numbers become samples: ``stored * bscale + bzero``; ``blank`` marks an invalid one."""

    stored: np.dtype
    bscale: float = 1.0
    bzero: float = 0.0
    blank: int | None = None

    @property
    def target(self) -> np.dtype:
        """Type of the samples: uint16 for unsigned 16-bit numbers without blanks, else float32."""
        kind, size = self.stored.kind, self.stored.itemsize
        is_unsigned16 = size == 2 and self.bscale == 1 and (kind, self.bzero) in {("i", 32768), ("u", 0)}
        return UINT16 if is_unsigned16 and self.blank is None else FLOAT32

    @property
    def is_signed16(self) -> bool:
        """True for signed 16-bit numbers that mean what they say."""
        return (self.stored.kind, self.stored.itemsize, self.bscale, self.bzero) == ("i", 2, 1, 0)

    @property
    def loses_digits(self) -> bool:
        """True where stored numbers can have more digits than float32, in which samples are kept."""
        return self.stored.itemsize > (2 if self.stored.kind in "iu" else 4)

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
        if self.target == UINT16:
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
