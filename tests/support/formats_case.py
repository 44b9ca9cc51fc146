"""Files of other formats than FITS, written by the libraries of these formats."""

from __future__ import annotations

import struct
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

TIFF_SHORT, TIFF_BYTE, TIFF_TEXT, TIFF_LONG, TIFF_FRACTION, TIFF_SIGNED_FRACTION = "H", "B", "s", "I", 5, 10
SER_COLOURS = {"mono": 0, "RGGB": 8, "GRBG": 9, "GBRG": 10, "BGGR": 11, "rgb": 100, "bgr": 101}


def write_dng(path: Path, pixels: np.ndarray, *, cfa: str = "GRBG", black: int = 512, white: int = 16000) -> None:
    """Write a camera raw file, as Adobe's DNG 1.4 defines it, with exposure and camera."""
    import tifffile

    colours = tuple("RGB".index(c) for c in cfa)
    matrix = tuple(v for entry in (1, 0, 0, 0, 1, 0, 0, 0, 1) for v in (entry, 1))
    tags = [
        (50706, TIFF_BYTE, 4, (1, 4, 0, 0), True),  # DNGVersion
        (50708, TIFF_TEXT, 0, "Test Cam X", True),  # UniqueCameraModel
        (33421, TIFF_SHORT, 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, TIFF_BYTE, 4, colours, True),  # CFAPattern
        (50714, TIFF_SHORT, 1, black, True),
        (50717, TIFF_SHORT, 1, white, True),
        (50721, TIFF_SIGNED_FRACTION, 9, matrix, True),  # ColorMatrix1
        (50778, TIFF_SHORT, 1, 21, True),  # CalibrationIlluminant1
        (271, TIFF_TEXT, 0, "Test", True),
        (272, TIFF_TEXT, 0, "Cam X", True),
        (33434, TIFF_FRACTION, 1, (30, 1), True),  # ExposureTime
        (34855, TIFF_SHORT, 1, 800, True),  # ISO
        (36867, TIFF_TEXT, 0, "2025:01:15 23:30:00", True),  # DateTimeOriginal
        (36881, TIFF_TEXT, 0, "+02:00", True),  # OffsetTimeOriginal
    ]
    tifffile.imwrite(path, pixels, photometric=32803, extratags=tags, metadata=None)


def write_xisf(path: Path, pixels: np.ndarray, cards: dict[str, Any] | None = None, **options: Any) -> None:
    """Write an XISF file with FITS keywords."""
    import xisf

    keywords = {
        key: [{"value": f"'{value}'" if isinstance(value, str) else str(value), "comment": ""}]
        for key, value in (cards or {}).items()
    }
    planes = pixels if pixels.ndim == 3 else pixels[..., None]
    xisf.XISF.write(str(path), planes, image_metadata={"FITSKeywords": keywords}, **options)


def write_ser(
    path: Path, frames: list[np.ndarray], colours: str = "mono", *, start: datetime | None = None, step: float = 10.0
) -> None:
    """Write a SER video by its definition; with a start, a table of times stands behind the frames."""
    height, width = frames[0].shape[:2]
    depth = 8 * frames[0].itemsize
    ticks = [] if start is None else [_ticks(start + timedelta(seconds=k * step)) for k in range(len(frames))]
    text = [name.ljust(40, "\0").encode() for name in ("me", "ASI 533", "80 mm")]
    head = struct.pack(
        "<14s7i40s40s40s2q", b"LUCAM-RECORDER", 0, SER_COLOURS[colours], 0, width, height, depth, len(frames), *text,
        0, ticks[0] if ticks else 0,
    )  # fmt: skip
    body = b"".join(frame.astype(frame.dtype.newbyteorder("<")).tobytes() for frame in frames)
    path.write_bytes(head + body + struct.pack(f"<{len(ticks)}q", *ticks))


def _ticks(at: datetime) -> int:
    return round((at - datetime(1, 1, 1)) / timedelta(microseconds=1)) * 10
