"""Where the samples of a frame lie that are measured: its channels, or of a mosaic the colours of its 2x2 cells."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Planes(NamedTuple):
    """Planes of a frame ``(H, W, C)``.

    ``table (P, 6) int64``: pixels of the frame from one sample to the next, channel, and the places (row, column) of
    whose pixels a sample is the mean; -1 for the second one where it is one alone. ``height, width``: samples of each.
    ``spacing``: pixels from one sample to the next.
    """

    table: np.ndarray
    height: int
    width: int
    spacing: int


@lru_cache(maxsize=64)
def planes_of(shape: tuple[int, ...], cfa: str | None = None) -> Planes:
    """Return the planes of a frame.

    Parameters
    ----------
    shape : (int, int) or (int, int, int)
        Of its pixels.
    cfa : str, optional
        Colours of the 2x2 cell of a mosaic, as "RGGB": the planes are then red, the mean of the two greens, and blue,
        with one sample a cell.
    """
    if cfa is None:
        channels = shape[2] if len(shape) == 3 else 1
        return Planes(np.array([[1, c, 0, 0, -1, -1] for c in range(channels)]), shape[0], shape[1], 1)
    place = {colour: [divmod(k, 2) for k in range(4) if cfa[k] == colour] for colour in "RGB"}
    rows = [[2, 0, *place[colour][0], *(place[colour][1] if colour == "G" else (-1, -1))] for colour in "RGB"]
    return Planes(np.array(rows), shape[0] // 2, shape[1] // 2, 2)
