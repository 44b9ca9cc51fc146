"""Samples that were clipped, where other frames were not: those decide.

A pixel at full scale says only that there was at least so much light. Where shorter exposures, or another gain, show
the same star below their own full scale, the mean of both is neither. So the clipped samples of frames that clip at a
much lower level than others, once the levels are matched, become no data where one of the others shows the place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.io.value_bytes import digest
from zemosaic_phase3.io.wrapped_frame import WrappedSource
from zemosaic_phase3.registration.transform import transform_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zemosaic_phase3.io.frame import FrameSource
    from zemosaic_phase3.records import FrameStats, FrameTable

HEADROOM: Final = 1.5  # times a level that clips, that another is above, to decide; air and gains vary by less
GUARD: Final = 1  # px around clipped ones: what ran over from them, and the flank that demosaicing mixes in
MARGIN: Final = 3.0  # px inside another frame's border, that a place must lie
MOST_OTHERS: Final = 16  # frames that are asked whether they show a place
SAME_UNIT: Final = 30.0  # ratio of scales up to which two frames count in the same unit


class Clipping(NamedTuple):
    """Levels at which frames clip, ADU of the result: the lowest of their channels.

    ``level (N,)``: infinity where nothing is known to be clipped; ``headroom (N,)``: where a frame would clip if it had
    anything as bright.
    """

    level: np.ndarray
    headroom: np.ndarray


def clipping(stats: Sequence[FrameStats], table: FrameTable) -> Clipping:
    """Return where the frames of a table clip once their levels are matched.

    A frame that shows nothing clipped would clip where the others do, which are of the same camera; but for one in
    another unit, of which nothing is known.
    """
    channels = table.scale.shape[1]
    clip = np.array([s.clip if s.clip.size == channels else np.full(channels, np.inf) for s in stats])
    lowest = np.min(table.scale * clip + table.offset, axis=1, initial=np.inf, where=np.isfinite(clip))
    known = np.isfinite(clip).any(axis=1)
    headroom = lowest.copy()
    if known.any():
        common = np.median(np.where(np.isfinite(clip[known]), clip[known], np.nanmax(clip[known])), axis=0)
        scale = np.median(table.scale[known], axis=0)
        ratio = table.scale / scale
        alike = ((ratio < SAME_UNIT) & (ratio > 1.0 / SAME_UNIT)).all(axis=1)
        would = np.min(table.scale * common + table.offset, axis=1)
        headroom = np.where(known, lowest, np.where(alike, would, 0.0))
    return Clipping(lowest, headroom)


class UnclippedSource(WrappedSource):
    """A frame whose clipped samples are no data where other frames show the place.

    Parameters
    ----------
    source : FrameSource
        The frame.
    clip : ndarray (C,) float64
        Levels that clip, ADU as stored; of a mosaic they are alike.
    to_others : list of ndarray (3, 3) float64
        Pixel of the frame to pixel of others, of the same size, that decide.
    """

    __slots__ = ("_clip", "_to_others")

    def __init__(self, source: FrameSource, clip: np.ndarray, to_others: list[np.ndarray]) -> None:
        self._clip = clip[:1] if source.cfa is not None else clip
        self._to_others = to_others
        seal = digest(self._clip.tobytes(), *[transform.tobytes() for transform in to_others])
        super().__init__(source, np.dtype(np.float32), f"unclipped {seal}")

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        first, end = max(y0 - GUARD, 0), min(y1 + GUARD, self.height)
        pixels = self.inner.read_rows(first, end).astype(np.float32)
        planes = pixels.reshape(*pixels.shape[:2], -1)
        clipped = np.asarray((planes >= self._clip.astype(np.float32)).any(axis=2))
        if clipped.any():
            y, x = np.nonzero(clipped)
            for dy in range(-GUARD, GUARD + 1):
                for dx in range(-GUARD, GUARD + 1):
                    clipped[np.clip(y + dy, 0, len(clipped) - 1), np.clip(x + dx, 0, self.width - 1)] = True
            y, x = np.nonzero(clipped)
            seen = self._seen_by_others(x.astype(np.float64), (y + first).astype(np.float64))
            planes[y[seen], x[seen]] = np.nan
        return np.ascontiguousarray(pixels[y0 - first : y1 - first])

    def _seen_by_others(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return which places of the frame lie inside one of the others, (n,) bool."""
        seen = np.zeros(len(x), bool)
        for transform in self._to_others:
            there = transform_points(transform, np.column_stack((x, y)))
            end = np.array([self.width - 1.0, self.height - 1.0]) - MARGIN
            seen |= ((there >= MARGIN) & (there <= end)).all(axis=1)
        return seen


def unclipped_sources(
    sources: list[FrameSource], stats: Sequence[FrameStats], table: FrameTable
) -> tuple[list[FrameSource], list[str]]:
    """Return the frames without clipped samples where others, with more headroom, decide; and what to say of it.

    Where the frames clip at much the same level, which they do in nearly every session, they are returned as they are.
    """
    level, headroom = clipping(stats, table)
    if not np.isfinite(level).any() or not (headroom > HEADROOM * level.min()).any():
        return sources, []
    result, names = list(sources), []
    for i in np.flatnonzero(np.isfinite(level)).tolist():
        others = np.flatnonzero((headroom > HEADROOM * level[i]) & (table.weight > 0.0).all(axis=1))
        if len(others) == 0:
            continue
        chosen = others[np.linspace(0, len(others) - 1, min(MOST_OTHERS, len(others))).astype(np.intp)]
        from_grid = np.linalg.inv(table.transform[i])
        result[i] = UnclippedSource(sources[i], stats[i].clip, [table.transform[j] @ from_grid for j in chosen])
        names.append(table.names[i])
    if not names:
        return sources, []
    deciding = len(np.flatnonzero(headroom > HEADROOM * level.min()))
    return result, [
        f"clipped: the samples at full scale of {len(names)} of {len(sources)} frames count as no data where the "
        f"{deciding} frames that clip at a higher level of the result show the place"
    ]


def saturation_level(sources: Sequence[FrameSource], stats: Sequence[FrameStats], table: FrameTable) -> float:
    """Return the lowest level of the result at which samples that count are clipped, ADU; infinity where none is."""
    level = clipping(stats, table).level
    left = [value for value, source in zip(level.tolist(), sources, strict=True) if not _is_unclipped(source)]
    return min(left, default=np.inf)


def _is_unclipped(source: FrameSource) -> bool:
    while isinstance(source, WrappedSource):
        if isinstance(source, UnclippedSource):
            return True
        source = source.inner
    return False
