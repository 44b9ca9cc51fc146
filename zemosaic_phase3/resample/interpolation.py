"""Interpolation kernels as tables of weights by phase."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from zemosaic_phase3.resample.vector import TAPS

PHASES: Final = 1024  # positions per pixel; rounding moves a sample by 1/2048 px at most, 0.0003 px rms
PAD: Final = 32  # spare floats behind a source block: the inner loops read whole SIMD registers
MARGIN: Final = 3  # rows the interpolation needs above and below the mapped rows


def _lanczos3(x: np.ndarray) -> np.ndarray:
    """Lanczos window of order 3: sinc(x) sinc(x/3) for abs(x) < 3 (Duchon 1979)."""
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Cubic convolution with a = -1/2 (Keys 1981)."""
    a = np.abs(x)
    near = (1.5 * a - 2.5) * a * a + 1.0
    far = ((-0.5 * a + 2.5) * a - 4.0) * a + 2.0
    return np.where(a <= 1.0, near, np.where(a < 2.0, far, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _smooth(x: np.ndarray) -> np.ndarray:
    """Cubic filter of Mitchell and Netravali (1988) with B = 3/5, C = 1/5.

    It smooths at every phase, so that noise is nearly the same in all pixels, where a bilinear one leaves pixels on the
    frame's own as they are.
    """
    a = np.abs(x)
    near = ((5.4 * a - 9.6) * a * a + 4.8) / 6.0
    far = (((-1.8 * a + 9.6) * a - 16.8) * a + 9.6) / 6.0
    return np.where(a < 1.0, near, np.where(a < 2.0, far, 0.0))


def _nearest(x: np.ndarray) -> np.ndarray:
    """Take the pixel whose centre is nearest; the left one of two equally near."""
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


_FUNCTIONS: Final = {
    "lanczos3": _lanczos3,
    "bicubic": _bicubic,
    "bilinear": _bilinear,
    "smooth": _smooth,
    "nearest": _nearest,
}


@lru_cache(maxsize=8)
def weight_table(name: str) -> np.ndarray:
    """Return the weights of one interpolation, ``(PHASES, TAPS) float32``, each row summing to 1.

    Tap k of a position with integer part i is pixel ``i + k - 2``. The sum over a row is 1 before rounding to float32,
    so that a flat field stays flat and a star keeps its flux.
    """
    phase = np.arange(PHASES)[:, None] / PHASES
    taps = _FUNCTIONS[name](phase - (np.arange(TAPS)[None, :] - 2))
    taps[np.abs(taps) < 1e-12] = 0.0  # sinc(1) is 0, not 4e-17: a pixel without weight must not count
    table = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)
    table.flags.writeable = False
    return table


def needs_clamp(name: str) -> bool:
    """Return True for interpolations with negative weights, which ring unless clamped."""
    return name in ("lanczos3", "bicubic", "smooth")
