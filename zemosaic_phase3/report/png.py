"""PNG files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from zemosaic_phase3.io.atomic_write import written_whole

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR_TYPE: Final = {1: 0, 3: 2}  # channels -> grey, RGB


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encode_png(picture: np.ndarray) -> bytes:
    """Return an 8-bit grey or RGB picture, uint8 (H, W), (H, W, 1) or (H, W, 3), as the bytes of a PNG file.

    Rows use the filter "up" (difference to the row above), which helps compression of smooth skies.
    Source: Portable Network Graphics specification, W3C, second edition.
    """
    pixels = picture[..., None] if picture.ndim == 2 else picture
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = 2  # filter type of each row
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as the format wants
    head = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOUR_TYPE[channels], 0, 0, 0)
    body = zlib.compress(filtered.tobytes(), 6)
    return PNG_SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def write_png(picture: np.ndarray, path: Path, flip_vertical: bool) -> Path:
    """Write a picture that appears complete or not at all."""
    data = encode_png(picture[::-1] if flip_vertical else picture)
    with written_whole(path, len(data), overwrite=True) as stream:
        stream.write(data)
    return path
