"""Defective photosites of a sensor, and frames in which they are replaced by their neighbours of the same colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.value_bytes import digest
from zemosaic_phase3.io.wrapped_frame import WrappedSource

if TYPE_CHECKING:
    from collections.abc import Callable

AROUND: Final = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
FEWEST: Final = 2  # sound neighbours of one colour that a replacement needs, of 8; with fewer the sample is invalid


class DefectMap:
    """Where the defective photosites of a sensor are, and which neighbours stand in for each.

    Parameters
    ----------
    defect : ndarray (H, W) bool
        True where a photosite is defective.
    step : int
        Pixels between neighbours of the same colour: 2 on a Bayer sensor, else 1.
    columns, rows : int
        Whole columns and rows among them, for the report.

    Attributes
    ----------
    places : ndarray (n,) int64
        Flat indices, ascending.
    neighbours : ndarray (n, 8) int64
        Flat indices of the neighbours of the same colour; -1 where there is none or it is defective too.
    """

    def __init__(self, defect: np.ndarray, step: int, columns: int = 0, rows: int = 0) -> None:
        height, width = defect.shape
        self.shape, self.step, self.columns, self.rows = (height, width), step, columns, rows
        self.places = np.flatnonzero(defect)
        y, x = np.divmod(self.places, width)
        self.neighbours = np.full((self.places.size, len(AROUND)), -1, np.int64)
        for k, (dy, dx) in enumerate(AROUND):
            v, u = y + step * dy, x + step * dx
            inside = (v >= 0) & (v < height) & (u >= 0) & (u < width)
            at = np.where(inside, v * width + u, 0)
            sound = inside & ~defect.reshape(-1)[at]
            self.neighbours[sound, k] = at[sound]
        few = np.count_nonzero(self.neighbours >= 0, axis=1) < FEWEST
        self.neighbours[few] = -1
        self.leaves_gaps = bool(few.any())
        self.seal = digest(str((self.shape, step)), self.places.tobytes())

    def __len__(self) -> int:
        """Return the number of defective photosites, those of whole columns and rows among them."""
        return int(self.places.size)

    @property
    def arrays(self) -> list[np.ndarray]:
        """What it keeps in memory."""
        return [self.places, self.neighbours]

    def describe(self) -> str:
        """Say how many there are: "312 defects (0.25 %), 2 columns"."""
        height, width = self.shape
        lines = self.columns * height + self.rows * width - self.columns * self.rows
        count = len(self) - lines
        parts = [f"{count} {'defect' if count == 1 else 'defects'} ({100.0 * count / (height * width):.2g} %)"]
        for number, word in ((self.columns, "column"), (self.rows, "row")):
            if number:
                parts.append(f"{number} {word}{'' if number == 1 else 's'}")
        return ", ".join(parts)

    def replace_in(self, block: np.ndarray, top: int, y0: int, y1: int, *, whole: bool = False) -> None:
        """Replace the defects of rows y0 .. y1 - 1 by the median of their sound neighbours, in place.

        Parameters
        ----------
        block : ndarray (rows, W) uint16 or float32
            Rows ``top`` and following: all from y0 - step to y1 + step that the frame has.
        top, y0, y1 : int
            Rows of the frame.
        whole : bool
            The samples are whole numbers, whatever their type.

        Notes
        -----
        The median of an even number is the mean of the middle two; in integers rounded half up. Neighbours that are
        NaN do not count; where none is left, a float sample becomes NaN.
        """
        width = self.shape[1]
        first, last = np.searchsorted(self.places, (y0 * width, y1 * width))
        if first == last:
            return
        flat, shift = block.reshape(-1), top * width
        at = self.neighbours[first:last]
        values = flat[np.maximum(at - shift, 0)].astype(np.float32)
        values[(at < 0) | np.isnan(values)] = np.inf
        values.sort(axis=1)
        count = np.count_nonzero(np.isfinite(values), axis=1)
        line = np.arange(len(values))
        low = values[line, np.maximum(count - 1, 0) // 2]
        high = values[line, np.minimum(count // 2, len(AROUND) - 1)]
        middle = np.where(count > 0, low * np.float32(0.5) + high * np.float32(0.5), np.float32(np.nan))
        if whole or block.dtype == np.uint16:
            middle = np.floor(middle + np.float32(0.5))
        flat[self.places[first:last] - shift] = middle.astype(block.dtype)


class CosmeticSource(WrappedSource):
    """A frame whose defective photosites are replaced as it is read, before anything is demosaiced.

    Parameters
    ----------
    source : FrameSource
        A mosaic or a grey frame of the map's size.
    defects : DefectMap
        Shared by all frames of the sensor.
    """

    __slots__ = ("_defects",)

    def __init__(self, source: FrameSource, defects: DefectMap) -> None:
        dtype = np.dtype(np.float32) if defects.leaves_gaps else source.dtype
        super().__init__(source, dtype, f"defects {defects.seal}")
        self._defects = defects

    def expect_rows(self, y0: int, y1: int) -> None:
        """Have the system fetch rows of the frame, and those beside them."""
        step = self._defects.step
        self.inner.expect_rows(max(y0 - step, 0), min(y1 + step, self.height))

    @property
    def held(self) -> list[np.ndarray]:
        """The map, and what the frame inside keeps."""
        return [*super().held, *self._defects.arrays]

    def float_rows(self, y0: int, y1: int, read: Callable[[FrameSource, int, int], np.ndarray]) -> np.ndarray:
        """Return mended rows as float32."""
        step = self._defects.step
        top, bottom = max(y0 - step, 0), min(y1 + step, self.height)
        block = read(self.inner, top, bottom)
        self._defects.replace_in(block, top, y0, y1, whole=self.dtype == np.uint16)
        return block[y0 - top : y1 - top]

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        step = self._defects.step
        top, bottom = max(y0 - step, 0), min(y1 + step, self.height)
        block = self.inner.read_rows(top, bottom)
        if block.dtype != self.dtype:
            block = block.astype(self.dtype)
        self._defects.replace_in(block, top, y0, y1)
        return np.ascontiguousarray(block[y0 - top : y1 - top]).reshape(shape)
