"""From the bytes of a frame as they are stored to samples: one pass that swaps bytes, turns signs, scales, interleaves.

A sample is ``float32(scale * v + offset)`` computed in float64, v the stored number as the file means it; a float that
is not finite becomes NaN. The planes of a colour file lie one behind the other, samples channel by channel in a pixel.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_kernels import kernel

if TYPE_CHECKING:
    from zemosaic_frames import FrameSource, RawLayout

AT_ONCE: Final = 1 << 16  # pixels scaled at a time where no kernel does it: the product is float64, and twice as large
_FOREIGN_ORDER: Final = ">" if sys.byteorder == "little" else "<"  # byte order that is not this machine's

# --------------------------------------------------------------------------- kernels


@kernel
def _number(word: int, swap: bool, flip: int, bias: int) -> float:
    """Return what a 16-bit word means: its bytes swapped, bits flipped, less ``bias``."""
    if swap:
        word = np.uint16((word >> np.uint16(8)) | (word << np.uint16(8)))
    return np.float64(np.int32(np.uint16(word ^ flip)) - bias)


@kernel
def open_words(words, swap, flip, bias, is_planar, channels, scale, offset, out) -> None:
    """Turn 16-bit numbers into samples.

    Parameters
    ----------
    words : ndarray (n * channels,) uint16
        Plane by plane if ``is_planar``, else pixel by pixel.
    swap : bool
        Their bytes are in the other order than this machine's.
    flip : uint16
        Bits to flip: the top one turns a signed number into an unsigned one, 32768 larger.
    bias : int32
        Taken off then, ADU.
    channels : int
        1 or 3.
    scale, offset : ndarray (channels,) float64
    out : ndarray (n * channels,) float32, ADU
        Pixel by pixel.
    """
    n = words.size // channels
    s0 = scale[0]
    o0 = offset[0]
    if channels == 1:
        for i in range(n):
            out[i] = np.float32(_number(words[i], swap, flip, bias) * s0 + o0)
        return
    s1 = scale[1]
    s2 = scale[2]
    o1 = offset[1]
    o2 = offset[2]
    if is_planar:
        red = words[:n]
        green = words[n : 2 * n]
        blue = words[2 * n :]
        for i in range(n):
            out[3 * i] = np.float32(_number(red[i], swap, flip, bias) * s0 + o0)
            out[3 * i + 1] = np.float32(_number(green[i], swap, flip, bias) * s1 + o1)
            out[3 * i + 2] = np.float32(_number(blue[i], swap, flip, bias) * s2 + o2)
    else:
        for i in range(n):
            out[3 * i] = np.float32(_number(words[3 * i], swap, flip, bias) * s0 + o0)
            out[3 * i + 1] = np.float32(_number(words[3 * i + 1], swap, flip, bias) * s1 + o1)
            out[3 * i + 2] = np.float32(_number(words[3 * i + 2], swap, flip, bias) * s2 + o2)


@kernel
def _finite(value: float, scale: float, offset: float) -> float:
    return np.float32(np.float64(value) * scale + offset) if value - value == np.float32(0.0) else np.float32(np.nan)


@kernel
def open_floats(words, swap, is_planar, channels, scale, offset, out) -> None:
    """Do the same for float32, given as ``words (n * channels,) uint32``, which are used up."""
    if swap:
        for i in range(words.size):
            w = words[i]
            ends = (w >> np.uint32(24)) | (w << np.uint32(24))
            middle = ((w >> np.uint32(8)) & np.uint32(0xFF00)) | ((w << np.uint32(8)) & np.uint32(0xFF0000))
            words[i] = np.uint32(ends | middle)
    values = words.view(np.float32)
    n = words.size // channels
    s0 = scale[0]
    o0 = offset[0]
    if channels == 1:
        for i in range(n):
            out[i] = _finite(values[i], s0, o0)
        return
    s1 = scale[1]
    s2 = scale[2]
    o1 = offset[1]
    o2 = offset[2]
    if is_planar:
        red = values[:n]
        green = values[n : 2 * n]
        blue = values[2 * n :]
        for i in range(n):
            out[3 * i] = _finite(red[i], s0, o0)
            out[3 * i + 1] = _finite(green[i], s1, o1)
            out[3 * i + 2] = _finite(blue[i], s2, o2)
    else:
        for i in range(n):
            out[3 * i] = _finite(values[3 * i], s0, o0)
            out[3 * i + 1] = _finite(values[3 * i + 1], s1, o1)
            out[3 * i + 2] = _finite(values[3 * i + 2], s2, o2)


# --------------------------------------------------------------------------- doors


def open_raw(
    raw: np.ndarray, layout: RawLayout, channels: int, scale: np.ndarray, offset: np.ndarray, out: np.ndarray
) -> None:
    """Turn stored bytes into samples.

    Parameters
    ----------
    raw : ndarray uint8, contiguous
        As :meth:`zemosaic_frames.FrameSource.read_raw` gives them; used up.
    layout : RawLayout
        How they are stored.
    channels : int
        Values of a pixel, 1 or 3.
    scale, offset : ndarray (channels,) float64
        Dimensionless; ADU.
    out : ndarray (n * channels,) float32, ADU
        Filled, pixel by pixel.
    """
    swap = layout.dtype.byteorder == _FOREIGN_ORDER
    if layout.dtype.kind == "f":
        open_floats(raw.view(np.uint32), swap, layout.planar, channels, scale, offset, out)
        return
    is_signed = layout.dtype.kind == "i"
    flip = np.uint16(0x8000 if is_signed else 0)
    bias = np.int32(0x8000 if is_signed and not layout.flipped else 0)
    open_words(raw.view(np.uint16), swap, flip, bias, layout.planar, channels, scale, offset, out)


def read_samples(source: FrameSource, y0: int, y1: int, scale: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
    """Read rows y0 (included) to y1 (excluded) of a frame as samples; a mosaic stays one.

    Parameters
    ----------
    source : FrameSource
    scale, offset : ndarray (C,) float64
        Of every channel, C = 1 for a mosaic.
    out : ndarray ((y1 - y0) * W * C,) float32, ADU

    Raises
    ------
    FrameError
        The frame can no longer be read.
    """
    layout = source.raw_layout
    channels = 1 if source.cfa else source.channels
    if layout is not None:
        raw = np.empty(out.size * layout.dtype.itemsize, np.uint8)
        source.read_raw(y0, y1, raw)
        open_raw(raw, layout, channels, scale, offset, out)
        return
    values, samples = source.read_rows(y0, y1).reshape(-1, channels), out.reshape(-1, channels)
    for start in range(0, len(values), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        samples[part] = values[part] * scale + offset
