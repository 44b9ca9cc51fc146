"""Pixels that a program or a broken transfer filled with one exact number, where no light was measured.

Canvases around a smaller frame, footprints of frames that were registered before, rows that never came. A camera's
noise does not repeat one number over an area, so a block of 8 x 8 equal pixels, or a long run of them along the border,
is looked for. It is filler where what surrounds it is plainly something else: sky whose noise does not reach the
number, or has it in its midst without ever standing still. A sky that was clipped at 0 goes over into its zeros
gradually, and a saturated star has a bright rim; neither is filler.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.robust import MAD_TO_SIGMA

BLOCK: Final = 8  # px, side of a block that must be constant
RUN: Final = 16  # px, of one number along the border
RIM: Final = 6  # px around filler that tell what surrounds it
MARGIN: Final = 24  # px around the blocks that are looked at closely
MIN_AREA: Final = 32  # px
MIN_RIM: Final = 16  # px of a channel or a colour in the rim
MOST_OF_VALUE: Final = 0.25  # of the rim, that may have the number too
SEPARATE: Final = 5.0  # units of the rim's noise, between the number and what surrounds it
STRADDLED: Final = 0.1  # of the rim, that lies below the number, and above, where it is in the midst of the noise
BRIGHT_RIM: Final = 0.1  # of what a number lies above the sky: a rim above that is the flank of a star
ANGULAR: Final = 0.9  # of its bounding box, that filler brighter than the sky takes; a disc takes 0.79
LONG_BORDER: Final = 64  # px of the border, a corner among them: then it may have any shape
MOST_REGIONS: Final = 256  # areas of a frame that are looked at
SOLID: Final = 4  # px from filler, that a part of the sky must lie where filler takes most of the frame
EDGE: Final = 3  # px beside filler, in which an interpolation mixed it with the sky


def _sides(pixels: np.ndarray) -> list[np.ndarray]:
    """Return the outermost lines of a frame, each (n, C)."""
    planes = pixels.reshape(*pixels.shape[:2], -1)
    return [planes[0], planes[-1], planes[:, 0], planes[:, -1]]


def _runs(line: np.ndarray) -> list[np.ndarray]:
    """Return the values (C,) of long runs of equal pixels of a line (n, C)."""
    changes = np.flatnonzero((line[1:] != line[:-1]).any(axis=1))
    starts = np.concatenate(([0], changes + 1))
    lengths = np.diff(starts, append=len(line))
    return [line[start] for start in starts[lengths >= min(RUN, len(line))]]


def constant_blocks(pixels: np.ndarray) -> np.ndarray:
    """Return which blocks of 8 x 8 pixels are constant in every channel, (H // 8, W // 8) bool.

    Four pixels of each are compared first, which is all that is looked at in a frame without any.
    """
    rows, columns = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    planes = pixels.reshape(*pixels.shape[:2], -1)[: rows * BLOCK, : columns * BLOCK]
    first = planes[:, :, 0]
    corner = first[::BLOCK, ::BLOCK]
    constant = corner == first[3::BLOCK, 5::BLOCK]
    if constant.any():
        constant &= corner == first[5::BLOCK, 2::BLOCK]
        constant &= corner == first[7::BLOCK, 7::BLOCK]
    y, x = np.nonzero(constant)
    if len(y):
        blocks = planes.reshape(rows, BLOCK, columns, BLOCK, -1)[y, :, x]
        constant[y, x] = (blocks == blocks[:, :1, :1]).all(axis=(1, 2, 3))
    return constant


def has_long_runs(lines: np.ndarray) -> bool:
    """Return whether any of some rows (n, W) or (n, W, C) begins or ends with a long run of one number."""
    planes = lines.reshape(*lines.shape[:2], -1)
    ends = (planes[:, :RUN], planes[:, -RUN:])
    return any(bool((end == end[:, :1]).all(axis=(1, 2)).any()) for end in ends)


class _Sky(NamedTuple):
    """Level and noise of what is not the number, per plane, ADU."""

    level: np.ndarray
    noise: np.ndarray


def _planes(values: np.ndarray, y: np.ndarray, x: np.ndarray, is_mosaic: bool) -> list[np.ndarray]:
    """Split pixels (n, C) at (y, x) into those of one colour each."""
    if is_mosaic:
        cell = 2 * (y % 2) + x % 2
        return [values[cell == k, 0] for k in range(4)]
    return list(values.T)


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """Return a mask grown by so many pixels in every direction, diagonals too."""
    grown = mask.copy()
    for _ in range(by):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        before = grown.copy()
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
    return grown


def _shrunk(mask: np.ndarray, at_border: tuple[tuple[bool, bool], tuple[bool, bool]]) -> np.ndarray:
    """Return a mask without its outermost pixels; at the sides that are the frame's border it may go on beyond."""
    beyond = ~np.pad(mask, 1)
    for axis, sides in enumerate(at_border):
        for side, is_border in zip((0, -1), sides, strict=True):
            if is_border:
                np.moveaxis(beyond, axis, 0)[side] = False
    return ~_grown(beyond, 1)[1:-1, 1:-1]


def _is_scattered(pixels: np.ndarray, value: np.ndarray) -> bool:
    """Return whether a number comes and goes within the sky: a clipped one, or one of a few that the noise reaches."""
    rows = (pixels[::4] == value).all(axis=2)
    other = ~rows[:, :-1]
    return bool(np.count_nonzero(other & rows[:, 1:]) > MOST_OF_VALUE * np.count_nonzero(other))


def _level_and_noise(values: np.ndarray) -> tuple[float, float]:
    level = float(np.median(values))
    return level, MAD_TO_SIGMA * float(np.median(np.abs(values - level)))


class _Search:
    """Filler of one frame."""

    def __init__(self, pixels: np.ndarray, cfa: str | None) -> None:
        self.pixels = pixels.reshape(*pixels.shape[:2], -1)
        self.is_mosaic = cfa is not None
        self.mask: np.ndarray = np.zeros(pixels.shape[:2], bool)
        self._skies: dict[bytes, _Sky] = {}
        self._seen_whole: set[bytes] = set()

    def sky(self, value: np.ndarray) -> _Sky:
        """Level and noise of every plane of the frame without a number."""
        key = value.tobytes()
        if key not in self._skies:
            step = max(2, int((self.mask.size / 65536.0) ** 0.5) // 2 * 2 + 1)  # odd: all colours of a mosaic
            y, x = (grid.ravel() for grid in np.mgrid[: len(self.mask) : step, : self.mask.shape[1] : step])
            seen = self.pixels[y, x].astype(np.float32)
            good = np.isfinite(seen).all(axis=1) & (seen != value).any(axis=1)
            planes = _planes(seen[good], y[good], x[good], self.is_mosaic)
            pairs = [_level_and_noise(plane) if plane.size else (np.nan, np.nan) for plane in planes]
            self._skies[key] = _Sky(*np.array(pairs).T)
        return self._skies[key]

    def look(self, value: np.ndarray, box: tuple[int, int, int, int]) -> None:
        """Mark the filler of a number in a box (first row, end row, column, end column), or beyond where it goes on."""
        from scipy import ndimage

        if value.tobytes() in self._seen_whole:
            return
        height, width = self.mask.shape
        y0, x0 = max(box[0], 0), max(box[2], 0)
        y1, x1 = min(box[1], height), min(box[3], width)
        part = self.pixels[y0:y1, x0:x1]
        same = (part == value).all(axis=2)
        # Beyond the frame's own border it may go on; beyond the box's it is seen that it does.
        around = ((y0 == 0, y1 == height), (x0 == 0, x1 == width))
        cores, n = ndimage.label(_shrunk(same, around))
        if n == 0:
            return
        # What hangs together with a core belongs to it, thin ends too.
        labels, _ = ndimage.label(same, np.ones((3, 3), bool))
        boxes = ndimage.find_objects(labels)
        sizes = np.bincount(labels[cores > 0], minlength=len(boxes) + 1)
        largest = np.argsort(-sizes, kind="stable")[:MOST_REGIONS]
        for k in largest[sizes[largest] > 0].tolist():
            where = boxes[k - 1]
            goes_on = any(
                (span.start == 0 and not low) or (span.stop == length and not high)
                for span, length, (low, high) in zip(where, same.shape, around, strict=True)
            )
            if goes_on:
                self.look(value, (0, height, 0, width))
                self._seen_whole.add(value.tobytes())
                return
            reach = RIM + EDGE
            near = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in where)
            region = labels[near] == k
            if region.sum() >= MIN_AREA:
                self._judge(region, value, (y0 + near[0].start, x0 + near[1].start))

    def _judge(self, region: np.ndarray, value: np.ndarray, offset: tuple[int, int]) -> None:
        """Mark a region (h, w) bool at (row, column) of the frame if its surroundings say that it is filler."""
        y0, x0 = offset
        h, w = region.shape
        part = self.pixels[y0 : y0 + h, x0 : x0 + w]
        ring = _grown(region, RIM) & ~region
        y, x = np.nonzero(ring)
        values = part[y, x].astype(np.float32)
        known = np.isfinite(values).all(axis=1)
        y, x, values = y[known], x[known], values[known]
        is_value = (values == value).all(axis=1)
        if len(y) == 0 or is_value.mean() > MOST_OF_VALUE:
            return
        y, x, values = y[~is_value], x[~is_value], values[~is_value]
        number = [value[0]] * 4 if self.is_mosaic else list(value)
        planes = _planes(values, y + y0, x + x0, self.is_mosaic)
        sky = self.sky(value)
        levels = []
        for plane, own, level, noise in zip(planes, number, *sky, strict=True):
            if plane.size < MIN_RIM:
                continue
            rim, spread = _level_and_noise(plane)
            spread = max(spread, 0.5 * float(noise)) if np.isfinite(noise) else spread
            if abs(rim - own) >= SEPARATE * spread:
                if own > rim and not self._may_be_bright(region, offset, rim, float(level), float(noise), float(own)):
                    return
                levels.append((rim, spread))
            elif min((plane < own).mean(), (plane > own).mean()) >= STRADDLED and region.sum() >= BLOCK * BLOCK:
                levels.append((float(own), np.inf))
            else:
                return
        if not levels:
            return
        if all(np.isfinite(spread) for _, spread in levels):
            region = self._with_mixed(region, ring, part, number, levels, offset)
        self.mask[y0 : y0 + h, x0 : x0 + w] |= region

    def _may_be_bright(
        self, region: np.ndarray, offset: tuple[int, int], rim: float, level: float, noise: float, own: float
    ) -> bool:
        """Return whether a region brighter than its rim is filler, and not the core of a saturated star."""
        if rim - level > BRIGHT_RIM * (own - level) + SEPARATE * noise:
            return False
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        if region.sum() >= ANGULAR * box:
            return True
        height, width = self.mask.shape
        top, left = offset[0] == 0, offset[1] == 0
        bottom, right = offset[0] + len(region) == height, offset[1] + region.shape[1] == width
        corners = ((top, left, 0, 0), (top, right, 0, -1), (bottom, left, -1, 0), (bottom, right, -1, -1))
        has_corner = any(one and other and region[row, column] for one, other, row, column in corners)
        lines = ((top, region[0]), (bottom, region[-1]), (left, region[:, 0]), (right, region[:, -1]))
        return has_corner and max(line.sum() for is_border, line in lines if is_border) >= LONG_BORDER

    def _with_mixed(
        self, region: np.ndarray, ring: np.ndarray, part: np.ndarray, number: list[float],
        levels: list[tuple[float, float]], offset: tuple[int, int],
    ) -> np.ndarray:  # fmt: skip
        """Add pixels beside the region that lie between its number and the sky: an interpolation mixed the two."""
        if self.is_mosaic or len(levels) != part.shape[2]:  # a raw frame was not interpolated
            return region
        near = _grown(region, EDGE) & ring
        mixed = np.zeros_like(region)
        for c, (own, (rim, spread)) in enumerate(zip(number, levels, strict=True)):
            mixed |= (part[:, :, c] - np.float32(rim)) * np.float32(np.sign(own - rim)) > SEPARATE * spread
        return region | (near & mixed)


def find_filler(pixels: np.ndarray, cfa: str | None = None) -> tuple[np.ndarray, float] | None:
    """Look for pixels of a frame that were filled with one exact number.

    Parameters
    ----------
    pixels : ndarray (H, W) or (H, W, C) uint16 or float32, ADU
        As stored; NaN = invalid.
    cfa : str, optional
        Colours of the 2x2 cell of a mosaic.

    Returns
    -------
    mask : ndarray (H, W) bool
        Filler.
    value : float
        The number it has, of the first channel, that of most of it, ADU.

    None where there is no filler, which is seen from a sixteenth of the pixels.
    """
    from_border = [value for line in _sides(pixels) for value in _runs(line) if np.isfinite(value).all()]
    blocks = constant_blocks(pixels)
    if not from_border and not blocks.any():
        return None
    search = _Search(pixels, cfa)
    _look_at_blocks(search, blocks)
    _look_at_border(search, from_border)
    if not search.mask.any() or not _leaves_sky(search.mask):
        return None
    values, counts = np.unique(search.pixels[:, :, 0][search.mask], return_counts=True)
    return search.mask, float(values[np.argmax(counts)])


def _leaves_sky(filler: np.ndarray) -> bool:
    """Return whether what is left beside filler is an area that can be sky, and not stars alone on a constant one."""
    left = np.count_nonzero(~filler)
    return bool(left > 0.5 * filler.size or np.count_nonzero(~_grown(filler, SOLID)) >= MOST_OF_VALUE * left)


def _look_at_blocks(search: _Search, blocks: np.ndarray) -> None:
    """Look at constant blocks that hang together and are of one number."""
    from scipy import ndimage

    corner = search.pixels[: len(blocks) * BLOCK : BLOCK, : blocks.shape[1] * BLOCK : BLOCK]
    values = np.unique(corner[blocks], axis=0)
    for value in values[:MOST_REGIONS]:
        if _is_scattered(search.pixels, value):
            continue
        labels, _ = ndimage.label(blocks & (corner == value).all(axis=2))
        for rows, columns in ndimage.find_objects(labels)[:MOST_REGIONS]:
            middle = search.mask[rows.start * BLOCK : rows.stop * BLOCK, columns.start * BLOCK : columns.stop * BLOCK]
            if middle[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].all():
                continue
            box = (
                rows.start * BLOCK - MARGIN, rows.stop * BLOCK + MARGIN,
                columns.start * BLOCK - MARGIN, columns.stop * BLOCK + MARGIN,
            )  # fmt: skip
            search.look(value, box)


def _look_at_border(search: _Search, values: list[np.ndarray]) -> None:
    """Look at strips along the border that are too narrow to hold a block."""
    height, width = search.mask.shape
    strips = [(0, MARGIN, 0, width), (height - MARGIN, height, 0, width)]
    strips += [(0, height, 0, MARGIN), (0, height, width - MARGIN, width)]
    done: set[bytes] = set()
    for value in values:
        if value.tobytes() in done:
            continue
        done.add(value.tobytes())
        if _is_scattered(search.pixels, value):
            continue
        for strip, line in zip(strips, _sides(search.pixels), strict=True):
            if any((run == value).all() for run in _runs(line)):
                search.look(value, strip)
                _mark_lines(search, value, strip)


def _mark_lines(search: _Search, value: np.ndarray, strip: tuple[int, int, int, int]) -> None:
    """Mark whole lines of one number at a side: too thin for an area, and no camera's noise."""
    y0, y1, x0, x1 = strip
    part = search.pixels[max(y0, 0) : y1, max(x0, 0) : x1]
    mask = search.mask[max(y0, 0) : y1, max(x0, 0) : x1]
    is_level = y0 == 0 and y1 == MARGIN or y1 == len(search.mask) and y0 > 0
    lines = (part == value).all(axis=(1, 2) if is_level else (0, 2))
    from_border = lines if (y0 if is_level else x0) == 0 else lines[::-1]
    count = int(np.argmin(from_border)) if not from_border.all() else len(from_border)
    if count == 0 or count == len(from_border):
        return
    beside = part == value
    next_line = count if lines is from_border else len(lines) - 1 - count
    if (beside[next_line] if is_level else beside[:, next_line]).all(axis=-1).mean() > MOST_OF_VALUE:
        return  # it comes and goes: a sky that was clipped
    taken = slice(0, count) if (y0 if is_level else x0) == 0 else slice(len(lines) - count, None)
    mask[taken if is_level else slice(None), taken if not is_level else slice(None)] = True
