"""Lights with their dark, bias and flat applied as they are read: (light - dark) / flat, the flat's mean being 1."""

from __future__ import annotations

from typing import Final

import numpy as np

from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.wrapped_frame import WrappedSource

DEAD: Final = 0.01  # of the mean of its colour: where a flat has less, the light is invalid


class CalibratedSource(WrappedSource):
    """A frame calibrated as it is read; a mosaic stays one, samples are float32 and may be negative.

    ``(sample - dark) / flat`` in float32, sample by sample. No pedestal is added: nothing here cuts off what is
    negative.

    Parameters
    ----------
    source : FrameSource
        The light.
    dark : ndarray float32 or None
        Master dark or bias, ADU, of the shape in which the light is stored: (H, W) for mosaics.
    flat : ndarray float32 or None
        From :func:`relative_flat`.
    recipe : str
        Stands for both; "" if a later run cannot know them again.
    """

    __slots__ = ("_dark", "_flat")

    def __init__(self, source: FrameSource, dark: np.ndarray | None, flat: np.ndarray | None, recipe: str = "") -> None:
        super().__init__(source, np.dtype(np.float32), recipe)
        self._dark, self._flat = dark, flat

    @property
    def held(self) -> list[np.ndarray]:
        """The masters."""
        return [*super().held, *(master for master in (self._dark, self._flat) if master is not None)]

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        pixels = self.inner.read_rows(y0, y1).astype(np.float32, copy=False)
        if self._dark is not None:
            pixels -= self._dark[y0:y1]
        if self._flat is not None:
            pixels /= self._flat[y0:y1]
        return pixels.reshape(shape)


def relative_flat(flat: np.ndarray, cfa: str | None) -> np.ndarray:
    """Return a flat divided by its mean, each colour by its own, so that it changes no colour of a light.

    Parameters
    ----------
    flat : ndarray (H, W) or (H, W, 3) float32, ADU
        Without dark or bias.
    cfa : str or None
        Pattern of a mosaic; both greens share one mean.

    Returns
    -------
    ndarray float32
        About 1; NaN where the flat is not above 1 % of the mean: dead photosites, and what no light reached.
    """
    relative = np.array(flat, np.float32)
    places: list[list[tuple[slice, ...]]]
    if cfa is not None:
        cells = [(np.s_[k // 2 :: 2], np.s_[k % 2 :: 2]) for k in range(4)]
        places = [[cell for cell, c in zip(cells, cfa, strict=True) if c == colour] for colour in "RGB"]
    else:
        places = [[(slice(None), slice(None), *end)] for end in ([(c,) for c in range(3)] if flat.ndim == 3 else [()])]
    for parts in places:
        total, count = 0.0, 0
        for part in parts:
            valid = relative[part][np.isfinite(relative[part]) & (relative[part] > 0.0)]
            total, count = total + float(np.sum(valid, dtype=np.float64)), count + valid.size
        for part in parts:
            relative[part] /= np.float32(total / count if count else np.nan)
    with np.errstate(invalid="ignore"):
        relative[~(relative > DEAD)] = np.nan
    return relative


def scaled_dark(dark: np.ndarray, bias: np.ndarray, factor: float) -> np.ndarray:
    """Return a dark for another exposure: ``bias + factor (dark - bias)``, float32, ADU.

    Parameters
    ----------
    dark, bias : ndarray float32, ADU
        Masters; the dark has its bias in it.
    factor : float
        Exposure of the light over that of the dark.
    """
    return np.asarray(bias + np.float32(factor) * (dark - bias), np.float32)
