"""Frames whose pixels are not all what they seem: some are no data, some were wrapped when they were stored.

What is wrong with a frame is found once, when it is measured, and kept as a few rectangles. It is put right as rows are
read, before anything else is done with them, so that both devices stack the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.value_bytes import digest
from zemosaic_phase3.io.wrapped_frame import WrappedSource

if TYPE_CHECKING:
    pass

WRAP: Final = 65536.0  # ADU, between a number and what it becomes where 16 bits are too few
NO_AREAS: Final = np.empty((0, 4), np.int32)


def areas_of(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask ``(h, w) bool`` as rectangles ``(n, 4) int32``: rows from, to, columns from, to.

    Runs that are alike in consecutive rows are one rectangle, so that a straight border is one, and a slanted one has
    one for each row.
    """
    found: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int], int] = {}
    rows = np.flatnonzero(mask.any(axis=1))
    last = -2
    for y in rows.tolist():
        edges = np.flatnonzero(np.diff(mask[y].astype(np.int8), prepend=0, append=0))
        runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        before = growing if y == last + 1 else {}
        if y != last + 1:
            found.extend((first, last + 1, *run) for run, first in growing.items())
        else:
            found.extend((first, y, *run) for run, first in growing.items() if run not in runs)
        growing = {run: before.get(run, y) for run in runs}
        last = y
    found.extend((first, last + 1, *run) for run, first in growing.items())
    return np.array(sorted(found), np.int32).reshape(-1, 4)


def planes_of(pixels: np.ndarray, is_mosaic: bool, y0: int = 0) -> list[np.ndarray]:
    """Return views of rows from ``y0`` on, one for each place in the 2x2 cell of a mosaic, or for each channel."""
    if is_mosaic:
        return [pixels[(row - y0) % 2 :: 2, column::2] for row in (0, 1) for column in (0, 1)]
    return [pixels] if pixels.ndim == 2 else [pixels[:, :, c] for c in range(pixels.shape[2])]


@dataclass(frozen=True, eq=False)
class Mend:
    """What is put right in a frame: rectangles ``(n, 4) int32`` of pixels, from :func:`areas_of`.

    ``invalid``: hold no data, and become NaN; ``wrapped``: 65536 is added to. ``value``: the number that most of the
    invalid ones have, of the first channel, ADU; nan where there are none. ``floors``: of each plane (of a mosaic, of
    each place in its cell) the lowest number, what samples that have it count as, ADU, and their share; see
    :mod:`detection.floor`.
    """

    invalid: np.ndarray = field(default_factory=lambda: NO_AREAS)
    wrapped: np.ndarray = field(default_factory=lambda: NO_AREAS)
    value: float = float("nan")
    floors: tuple[tuple[float, float, float], ...] = ()

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return len(self.invalid) + len(self.wrapped) + len(self.floors) > 0

    @property
    def invalid_pixels(self) -> int:
        """Number of pixels that are no data."""
        sides = self.invalid.astype(np.int64)
        return int(((sides[:, 1] - sides[:, 0]) * (sides[:, 3] - sides[:, 2])).sum())

    @property
    def wrapped_pixels(self) -> int:
        """Number of pixels that are lifted."""
        return Mend(invalid=self.wrapped).invalid_pixels

    def apply(self, pixels: np.ndarray, y0: int = 0) -> np.ndarray:
        """Return rows of the frame from ``y0`` on as float32, put right; ``pixels (rows, W, ...)`` stay as they are."""
        mended = pixels.astype(np.float32)
        if self.floors:
            is_mosaic = mended.ndim == 2 and len(self.floors) == 4
            for plane, (floor, mean_below, _) in zip(planes_of(mended, is_mosaic, y0), self.floors, strict=True):
                plane[plane == np.float32(floor)] = np.float32(mean_below if mean_below == mean_below else floor)
        for areas, lift in ((self.wrapped, WRAP), (self.invalid, np.nan)):
            y1 = y0 + len(pixels)
            touched = areas[(areas[:, 0] < y1) & (areas[:, 1] > y0)] if len(areas) else areas
            for first, end, left, right in touched.tolist():
                mended[max(first - y0, 0) : end - y0, left:right] += np.float32(lift)
        return mended


class MendedSource(WrappedSource):
    """A frame with what is wrong in it put right.

    Parameters
    ----------
    source : FrameSource
        The frame.
    mend : Mend
        What is done to its pixels.
    """

    __slots__ = ("mend",)

    def __init__(self, source: FrameSource, mend: Mend) -> None:
        seal = digest(mend.invalid.tobytes(), mend.wrapped.tobytes(), repr(mend.floors))
        super().__init__(source, np.dtype(np.float32), f"mended {seal}")
        self.mend = mend

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        return self.mend.apply(self.inner.read_rows(y0, y1), y0)
