"""From the bytes of frames as they are stored to samples: one pass that swaps bytes, turns signs, scales, interleaves.

A sample is ``float32(scale * v + offset)`` computed in float64, v the stored number as the file means it; a float that
is not finite becomes NaN. The planes of a colour file lie one behind the other, samples channel by channel in a pixel.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.io.wrapped_frame import WrappedSource
from zemosaic_phase3.runtime.jit import kernel
from zemosaic_phase3.runtime.workspace import Workspace

if TYPE_CHECKING:
    from zemosaic_phase3.io.codec import RawLayout
    from zemosaic_phase3.io.frame import FrameSource


AT_ONCE: Final = 1 << 16  # pixels scaled at a time where no kernel does it: the product is float64, and twice as large
_FOREIGN_ORDER: Final = ">" if sys.byteorder == "little" else "<"  # byte order that is not this machine's


@kernel
def _number(word: int | np.uint16, swap: bool, flip: int, bias: int) -> float:
    """Return what a 16-bit word means: its bytes swapped, bits flipped, less ``bias``."""
    if swap:
        word = np.uint16((word >> np.uint16(8)) | (word << np.uint16(8)))
    return np.float64(np.int32(np.uint16(word ^ flip)) - bias)


@kernel
def open_words(
    words: np.ndarray,
    first: int,
    plane: int,
    swap: bool,
    flip: int,
    bias: int,
    scale: np.ndarray,
    offset: np.ndarray,
    out: np.ndarray,
) -> None:
    """Turn 16-bit numbers of N frames into samples.

    Parameters
    ----------
    words : ndarray (N, M) uint16
        The rows of a frame as they are stored.
    first : int
        Pixel to begin with.
    plane : int
        Pixels of a plane, where planes lie one behind the other; 0 where a pixel's channels lie together.
    swap : bool
        The bytes are in the other order than this machine's.
    flip : uint16
        Bits to flip: the top one turns a signed number into an unsigned one, 32768 larger.
    bias : int32
        Taken off then, ADU.
    scale, offset : ndarray (N, C) float64
        C is 1 or 3; dimensionless, ADU.
    out : ndarray (N, pixels * C) float32, ADU
        Filled with the pixels from ``first`` on, channels interleaved.
    """
    channels = scale.shape[1]
    pixels = out.shape[1] // channels
    for f in range(words.shape[0]):
        o = out[f]
        s0 = scale[f, 0]
        o0 = offset[f, 0]
        if channels == 1:
            grey = words[f, first : first + pixels]
            for i in range(pixels):
                o[i] = np.float32(_number(grey[i], swap, flip, bias) * s0 + o0)
            continue
        s1 = scale[f, 1]
        s2 = scale[f, 2]
        o1 = offset[f, 1]
        o2 = offset[f, 2]
        if plane > 0:
            red = words[f, first : first + pixels]
            green = words[f, plane + first : plane + first + pixels]
            blue = words[f, 2 * plane + first : 2 * plane + first + pixels]
            for i in range(pixels):
                o[3 * i] = np.float32(_number(red[i], swap, flip, bias) * s0 + o0)
                o[3 * i + 1] = np.float32(_number(green[i], swap, flip, bias) * s1 + o1)
                o[3 * i + 2] = np.float32(_number(blue[i], swap, flip, bias) * s2 + o2)
        else:
            rgb = words[f, 3 * first : 3 * (first + pixels)]
            for i in range(pixels):
                o[3 * i] = np.float32(_number(rgb[3 * i], swap, flip, bias) * s0 + o0)
                o[3 * i + 1] = np.float32(_number(rgb[3 * i + 1], swap, flip, bias) * s1 + o1)
                o[3 * i + 2] = np.float32(_number(rgb[3 * i + 2], swap, flip, bias) * s2 + o2)


@kernel
def _swap_bytes(words: np.ndarray) -> None:
    for i in range(words.size):
        w = words[i]
        ends = (w >> np.uint32(24)) | (w << np.uint32(24))
        middle = ((w >> np.uint32(8)) & np.uint32(0xFF00)) | ((w << np.uint32(8)) & np.uint32(0xFF0000))
        words[i] = np.uint32(ends | middle)


@kernel
def _finite(value: float, scale: float, offset: float) -> np.float32:
    return np.float32(np.float64(value) * scale + offset) if value - value == np.float32(0.0) else np.float32(np.nan)


@kernel
def open_floats(
    words: np.ndarray, first: int, plane: int, swap: bool, scale: np.ndarray, offset: np.ndarray, out: np.ndarray
) -> None:
    """Do the same for float32, given as ``words (N, M) uint32``; those that are opened are used up."""
    channels = scale.shape[1]
    pixels = out.shape[1] // channels
    for f in range(words.shape[0]):
        if swap and plane > 0:
            for c in range(channels):
                _swap_bytes(words[f, c * plane + first : c * plane + first + pixels])
        elif swap:
            _swap_bytes(words[f, channels * first : channels * (first + pixels)])
        values = words[f].view(np.float32)
        o = out[f]
        s0 = scale[f, 0]
        o0 = offset[f, 0]
        if channels == 1:
            grey = values[first : first + pixels]
            for i in range(pixels):
                o[i] = _finite(grey[i], s0, o0)
            continue
        s1 = scale[f, 1]
        s2 = scale[f, 2]
        o1 = offset[f, 1]
        o2 = offset[f, 2]
        if plane > 0:
            red = values[first : first + pixels]
            green = values[plane + first : plane + first + pixels]
            blue = values[2 * plane + first : 2 * plane + first + pixels]
            for i in range(pixels):
                o[3 * i] = _finite(red[i], s0, o0)
                o[3 * i + 1] = _finite(green[i], s1, o1)
                o[3 * i + 2] = _finite(blue[i], s2, o2)
        else:
            rgb = values[3 * first : 3 * (first + pixels)]
            for i in range(pixels):
                o[3 * i] = _finite(rgb[3 * i], s0, o0)
                o[3 * i + 1] = _finite(rgb[3 * i + 1], s1, o1)
                o[3 * i + 2] = _finite(rgb[3 * i + 2], s2, o2)


def open_raw(
    raw: np.ndarray, layout: RawLayout, first: int, scale: np.ndarray, offset: np.ndarray, out: np.ndarray
) -> None:
    """Turn stored bytes of N frames into samples.

    Parameters
    ----------
    raw : ndarray (N, bytes) uint8, contiguous
        For each frame what :meth:`io.frame.FrameSource.read_raw` gives for the same rows. What is opened is
        used up.
    layout : RawLayout
        How they are stored, the same for all.
    first : int
        Pixel to begin with.
    scale, offset : ndarray (N, C) float64
        Dimensionless; ADU.
    out : ndarray (N, pixels * C) float32, ADU
        Filled with the pixels from ``first`` on.
    """
    channels = scale.shape[1]
    plane = raw.shape[1] // (channels * layout.dtype.itemsize) if layout.planar else 0
    swap = layout.dtype.byteorder == _FOREIGN_ORDER
    if layout.dtype.kind == "f":
        open_floats(raw.view(np.uint32), first, plane, swap, scale, offset, out)
        return
    is_signed = layout.dtype.kind == "i"
    flip = np.uint16(0x8000 if is_signed else 0)
    bias = np.int32(0x8000 if is_signed and not layout.flipped else 0)
    open_words(raw.view(np.uint16), first, plane, swap, flip, bias, scale, offset, out)


def read_samples(
    source: FrameSource,
    y0: int,
    y1: int,
    scale: np.ndarray,
    offset: np.ndarray,
    out: np.ndarray,
    workspace: Workspace | None = None,
) -> None:
    """Read rows y0 (included) to y1 (excluded) of a frame as samples; a mosaic stays one.

    Parameters
    ----------
    source : FrameSource
    scale, offset : ndarray (C,) float64
        Of every channel, C = 1 for a mosaic.
    out : ndarray ((y1 - y0) * W * C,) float32, ADU
    workspace : Workspace, optional
        Keeps the memory that stored bytes are read into.

    Raises
    ------
    FrameError
        The frame can no longer be read.
    """
    layout, channels = source.raw_layout, scale.size
    if layout is not None:
        raw = (workspace or Workspace()).array("stored", (out.size * layout.dtype.itemsize,), np.uint8)
        source.read_raw(y0, y1, raw)
        open_raw(raw[None], layout, 0, scale[None], offset[None], out[None])
        return
    changed = source.float_rows(y0, y1, _float_rows) if isinstance(source, WrappedSource) else None
    rows = source.read_rows(y0, y1) if changed is None else changed
    scale_samples(rows.reshape(-1, channels), scale, offset, out)


def _float_rows(source: FrameSource, y0: int, y1: int) -> np.ndarray:
    """Read rows of a frame as float32, of the shape of ``read_rows``; the bytes of files are opened in one pass."""
    if isinstance(source, WrappedSource):
        changed = source.float_rows(y0, y1, _float_rows)
        if changed is not None:
            return changed
    if source.raw_layout is None:
        return source.read_rows(y0, y1).astype(np.float32, copy=False)
    planes = 1 if source.cfa else source.channels
    shape = (y1 - y0, source.width) if planes == 1 else (y1 - y0, source.width, planes)
    rows = np.empty(shape, np.float32)
    read_samples(source, y0, y1, np.ones(planes), np.zeros(planes), rows.reshape(-1))
    return rows


def scale_samples(values: np.ndarray, scale: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
    """Scale numbers that are in memory.

    Parameters
    ----------
    values : ndarray (pixels, C)
        Unsigned 16-bit numbers or float32, ADU; NaN where invalid.
    scale, offset : ndarray (C,) float64
        Dimensionless; ADU.
    out : ndarray (pixels * C,) float32, ADU
    """
    samples = out.reshape(values.shape)
    if not offset.any() and (scale == 1.0).all():
        np.add(values, np.float32(0.0), out=samples, casting="unsafe", dtype=np.float32)  # which makes 0 of -0 too
        return
    for start in range(0, len(values), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        samples[part] = values[part] * scale + offset
