"""SER videos, of planetary and live-stacking programs: one file, many frames, each of which is a frame of the stack.

Source: "SER format description version 3" (Heiko Wilkens, Grischa Hahn, 2014). Its flag for the order of bytes is
written by nearly all programs in the opposite sense, and read so here as by Siril: 0 is little-endian.
"""

from __future__ import annotations

import math
import struct
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.codec import Codec
from zemosaic_phase3.io.foreign_file import TOP_DOWN, ForeignFile
from zemosaic_phase3.io.layout import MIN_SIDE_PX, image_layout, mosaic_of
from zemosaic_phase3.io.moments import iso
from zemosaic_phase3.io.pixel_files import Place, file_errors

if TYPE_CHECKING:
    from io import BufferedIOBase

    from zemosaic_phase3.io.codec import RawLayout
    from zemosaic_phase3.io.frame import Cards

SER_MAGIC: Final = b"LUCAM-RECORDER"
HEAD: Final = struct.Struct("<14s7i40s40s40s2q")  # 178 bytes
_MOSAICS: Final = {8: "RGGB", 9: "GRBG", 10: "GBRG", 11: "BGGR"}
_GREY, _RGB, _BGR = 0, 100, 101
_TICKS_ZERO: Final = datetime(1, 1, 1)  # noqa: DTZ001 - UTC, as FITS writes it
_DAYS: Final = (datetime(1990, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001 - other times are none


class SerFrame(ForeignFile):
    """One frame of a SER video; ``count``: how many the video has."""

    __slots__ = ("_is_bgr", "count")

    def __init__(self, *args: Any, count: int, is_bgr: bool) -> None:
        super().__init__(*args)
        self.count = count
        self._is_bgr = is_bgr

    @property
    def storage(self) -> tuple[object, ...]:
        """What makes equal stored bytes equal samples."""
        return (*super().storage, self._is_bgr)

    @property
    def raw_layout(self) -> RawLayout | None:
        """How the bytes of a row lie; None where blue comes first."""
        return None if self._is_bgr else super().raw_layout

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        rows = super()._read(y0, y1, shape)
        return np.ascontiguousarray(rows[..., ::-1]) if self._is_bgr else rows


def open_ser(stream: BufferedIOBase, place: Place, name: str, bayer: str, header: Cards, unit: int | None) -> SerFrame:
    """Open one frame of a SER video, the first where none is named.

    Raises
    ------
    FrameError
        The video is cut short or damaged, has no such frame, or its colours are not read.
    """
    raw = stream.read(HEAD.size)
    if len(raw) < HEAD.size:
        raise FrameError(name, f"truncated: its SER header has {len(raw)} of {HEAD.size} bytes; copy it again")
    _, _, colour, big, width, height, depth, count, observer, instrument, telescope, _, utc = HEAD.unpack(raw)
    if not (1 <= depth <= 16 and 0 < width < 1 << 20 and 0 < height < 1 << 20 and count > 0):
        raise FrameError(
            name, f"its SER header has {count} frames of {width} x {height} pixels, {depth} bits; copy it again"
        )
    if colour not in (_GREY, _RGB, _BGR, *_MOSAICS):
        raise FrameError(name, f"is a SER video with colours {colour}, which are not read; convert it to FITS")
    planes = 3 if colour in (_RGB, _BGR) else 1
    stored = np.dtype("u1" if depth <= 8 else ">u2" if big else "<u2")
    size, _ = image_layout((height, width, 3) if planes == 3 else (height, width), name, minimum=MIN_SIDE_PX)
    frame_bytes = width * height * planes * stored.itemsize
    with file_errors(name):
        held = Path(place.path).stat().st_size - HEAD.size
    there = min(count, held // frame_bytes)  # a recording that was cut off keeps its whole frames
    wanted = unit or 0
    if wanted >= there:
        reason = f"frame {wanted} is not there ({there} of {count} frames, numbered from 0, are whole)"
        raise FrameError(name, f"truncated: {reason}; copy it again, or name another frame")
    cards: dict[str, Any] = {"ROWORDER": TOP_DOWN}
    for key, text in (("OBSERVER", observer), ("INSTRUME", instrument), ("TELESCOP", telescope)):
        if said := text.split(b"\0")[0].decode("ascii", "replace").strip():
            cards[key] = said
    start = _moment_of_frame(stream, HEAD.size + count * frame_bytes, wanted) or (_moment(utc) if not wanted else None)
    if start is not None:
        cards["DATE-OBS"] = iso(start)
    if colour in _MOSAICS:
        cards["BAYERPAT"] = _MOSAICS[colour]
    cfa = mosaic_of(bayer, size, name, cards, header)
    offset = HEAD.size + wanted * frame_bytes
    return SerFrame(
        name, size, Codec(stored), cfa, place._replace(offset=offset, unit=wanted), cards, count=there,
        is_bgr=colour == _BGR,
    )  # fmt: skip


def _moment_of_frame(stream: BufferedIOBase, trailer: int, k: int) -> datetime | None:
    """Return the time of a frame, from the table behind the last one; None where there is none."""
    stream.seek(trailer + 8 * k)
    raw = stream.read(8)
    return _moment(struct.unpack("<q", raw)[0]) if len(raw) == 8 else None


def _moment(ticks: int) -> datetime | None:
    """Return the moment of a number of 100 ns since the year 1; None where it is none."""
    seconds = ticks / 1e7
    if not 0 < seconds < 86400.0 * 365.25 * 2200 or math.isnan(seconds):
        return None
    found = _TICKS_ZERO + timedelta(microseconds=ticks // 10)
    return found if _DAYS[0] <= found < _DAYS[1] else None
