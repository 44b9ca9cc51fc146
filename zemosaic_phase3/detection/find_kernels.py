"""From a frame to the places where stars may be, compiled: what :func:`detection.star_finder.find_stars` describes."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from zemosaic_phase3.detection.mesh_kernels import COLUMN, OTHER_COLUMN, OTHER_ROW, ROW, SPACING
from zemosaic_phase3.detection.order_statistics import MOST_COUNTS, ascending, median, two_of_sorted
from zemosaic_phase3.runtime.array_views import flat
from zemosaic_phase3.runtime.jit import kernel

MESH_CELL: Final = 32  # pixels of the binned frame, cell of the background and noise maps
KERNEL_NOISE: Final = 0.375  # noise of white unit noise after the 3 x 3 kernel (1 2 1; 2 4 2; 1 2 1) / 16
RING_PX: Final = 5  # binned pixels, radius of the ring that a detection must stand out from
RING: Final = 16  # pixels on it
CREST: Final = 1.5  # units of the noise, that a star may stand less high above a ring's crest than above its median
THIN: Final = 4  # pixels of the binned frame between those that tell the noise of a nebula
APART: Final = 4  # pixels to either side that they are compared with: a star is narrower
SPREAD: Final = 1.4  # times that noise, that a cell without structure does not spread: its error is 6 %
STRUCTURED: Final = 0.1  # of a detection's height, that the ring's median has where it is no star's wing
NOISE_SAMPLES: Final = 60_000  # pixels that tell the noise of a filtered frame
TO_SIGMA: Final = 1.4826  # standard deviation of a Gaussian over its median absolute deviation


@kernel
def bin_frame(frame: np.ndarray, planes: np.ndarray, out: np.ndarray) -> None:
    """Fill the 2x2 cells ``out (H // 2, W // 2) float32`` on which stars are found, ADU.

    The mean of 2x2 pixels and all channels of ``frame (H, W, C)``; of a mosaic, whose second plane is green, the mean
    of the two greens. Centred on the cells.
    """
    height, width = out.shape
    if planes[0, SPACING] == 2:
        green = planes[1]
        for y in range(height):
            one, other = flat(frame[2 * y + green[ROW]]), flat(frame[2 * y + green[OTHER_ROW]])
            row = out[y]
            for x in range(width):
                row[x] = one[2 * x + green[COLUMN]] + other[2 * x + green[OTHER_COLUMN]]
            for x in range(width):
                row[x] *= np.float32(0.5)
        return
    channels = frame.shape[2]
    share = np.float32(0.25 / channels)
    for y in range(height):
        upper, lower = frame[2 * y], frame[2 * y + 1]
        for x in range(width):
            total = np.float32(0.0)
            at = np.uint64(2 * x)
            for c in range(channels):
                total += (upper[at, c] + upper[at + np.uint64(1), c]) + (lower[at, c] + lower[at + np.uint64(1), c])
            out[y, x] = total * share


@kernel
def settle_sky(level: np.ndarray, noise: np.ndarray) -> float:
    """Give cells without a sky the median of the others; return a tenth of the median noise, NaN without any sky.

    A cell without any noise (clipped, constant) would make every pixel beside it infinitely significant.
    """
    flat_level, flat_noise = flat(level), flat(noise)
    known, n = np.empty((2, flat_level.size)), 0
    for k in range(flat_level.size):
        if math.isfinite(flat_level[k]):
            known[0, n], known[1, n] = flat_level[k], flat_noise[k]
            n += 1
    if n == 0:
        return np.nan
    usual_level, usual_noise = median(known[0], n), median(known[1], n)
    for k in range(flat_level.size):
        if not math.isfinite(flat_level[k]):
            flat_level[k], flat_noise[k] = usual_level, usual_noise
    every = flat_noise.copy()
    return 0.1 * median(every, every.size)


@kernel
def median_of_nine(grid: np.ndarray, out: np.ndarray) -> None:
    """Median of every cell and its eight neighbours; at the edge the nearest count for those beyond."""
    rows, columns = grid.shape
    nine = np.empty(9)
    for y in range(rows):
        for x in range(columns):
            for k in range(9):
                v, u = y + k // 3 - 1, x + k % 3 - 1
                nine[k] = grid[min(max(v, 0), rows - 1), min(max(u, 0), columns - 1)]
            out[y, x] = median(nine, 9)


@kernel
def difference_noise(binned: np.ndarray, usual: np.ndarray, out: np.ndarray) -> None:
    """Noise of every cell from each pixel and the two beside it at some distance, ``out (rows, columns)``, ADU.

    A nebula whose brightness changes evenly from one to the next does not count, and stars are few. Where less than a
    quarter of what is looked at is valid it is the ``usual`` noise.
    """
    height, width = binned.shape
    values = np.empty((MESH_CELL // THIN) ** 2)
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            n = 0
            for y in range(r * MESH_CELL, min((r + 1) * MESH_CELL, height), THIN):
                for x in range(max(c * MESH_CELL, APART), min((c + 1) * MESH_CELL, width - APART), THIN):
                    beside = 0.5 * np.float64(binned[y, x - APART]) + 0.5 * np.float64(binned[y, x + APART])
                    difference = abs(binned[y, x] - beside)
                    if difference < np.inf:
                        values[n] = difference
                        n += 1
            enough = 4 * n >= values.size
            out[r, c] = TO_SIGMA / math.sqrt(1.5) * median(values, n) if enough else usual[r, c]


@kernel
def without_structure(noise: np.ndarray, local: np.ndarray) -> None:
    """Give cells whose spread is that of a nebula, and not of the noise, the noise that neighbouring pixels show."""
    for r in range(noise.shape[0]):
        for c in range(noise.shape[1]):
            if noise[r, c] > SPREAD * local[r, c]:
                noise[r, c] = local[r, c]


@kernel
def _spread_row(mesh: np.ndarray, inverse: bool, y: int, first: np.ndarray, part: np.ndarray, out: np.ndarray) -> None:
    """Row y of the bilinear interpolation of a mesh (of its reciprocals), float32; ``first, part``: of its columns."""
    rows, columns = mesh.shape
    place = min(max((y + 0.5) / MESH_CELL - 0.5, 0.0), rows - 1.0)
    r = int(place)
    below, fraction = min(r + 1, rows - 1), place - r
    line = np.empty(columns + 1, np.float32)
    for c in range(columns):
        upper = 1.0 / mesh[r, c] if inverse else mesh[r, c]
        lower = 1.0 / mesh[below, c] if inverse else mesh[below, c]
        line[c] = np.float32(upper + fraction * (lower - upper))
    line[columns] = line[columns - 1]
    for x in range(out.size):
        at = np.uint64(first[x])
        out[x] = (line[at + np.uint64(1)] - line[at]) * part[x] + line[at]


@kernel
def significance(binned: np.ndarray, level: np.ndarray, noise: np.ndarray, out: np.ndarray) -> None:
    """Signal after the matched filter, ``out (h, w) float32`` in units of one pixel's noise; invalid pixels count as 0.

    The filter is (1 2 1; 2 4 2; 1 2 1) / 16; the outermost pixels become 0.
    """
    height, width = binned.shape
    first, part = np.empty(width, np.int64), np.empty(width, np.float32)
    for x in range(width):
        place = min(max((x + 0.5) / MESH_CELL - 0.5, 0.0), level.shape[1] - 1.0)
        first[x] = int(place)
        part[x] = np.float32(place - first[x])
    sky, weight, signal = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    across = np.zeros((3, width), np.float32)  # the last three rows, filtered along them
    for y in range(height):
        _spread_row(level, False, y, first, part, sky)
        _spread_row(noise, True, y, first, part, weight)
        row = across[y % 3]
        for x in range(width):
            value = (binned[y, x] - sky[x]) * weight[x]
            signal[x] = value if abs(value) < np.inf else np.float32(0.0)
        for x in range(1, width - 1):
            row[x] = ((signal[x - 1] + signal[x + 1]) + signal[x]) + signal[x]
        out[y] = 0.0
        if y >= 2:
            above, middle = across[(y - 2) % 3], across[(y - 1) % 3]
            for x in range(1, width - 1):
                out[y - 1, x] = (((above[x] + row[x]) + middle[x]) + middle[x]) * np.float32(1.0 / 16.0)


@kernel
def noise_step(height: int, width: int) -> int:
    """Rows and columns of a filtered image from one pixel to the next that tell its noise."""
    return max(1, int(np.rint(math.sqrt(height * width / NOISE_SAMPLES))))


def most_differences(height: int, width: int) -> int:
    """Return how many numbers :func:`pixel_noise` needs room for, twice."""
    step = noise_step(height, width)
    return max(1, -(-height // step) * -(-width // step))


@kernel
def pixel_noise(filtered: np.ndarray, work: np.ndarray) -> float:
    """Noise of a filtered image, from pixels some way apart, so that a background left in does not count.

    ``work (2, n) float32``: scratch, n from :func:`most_differences`.
    """
    height, width = filtered.shape
    step = noise_step(height, width)
    difference = work[0]
    n = 0
    for y in range(1, height - 1, step):
        for x in range(1, width - 1 - RING_PX, step):
            difference[n] = abs(filtered[y, x + RING_PX] - filtered[y, x])
            n += 1
    if n == 0:
        return 0.0
    counts = np.empty(MOST_COUNTS, np.int64)
    lower, middle = two_of_sorted(difference[:n], (n - 1) // 2, n // 2, work[1, :n], counts)
    if n % 2 == 0:
        middle = (lower + middle) / np.float32(2.0)
    return TO_SIGMA / math.sqrt(2.0) * np.float64(middle)


@kernel
def ring_about(
    filtered: np.ndarray, y: int, x: int, ring: np.ndarray, values: np.ndarray, ordered: np.ndarray
) -> tuple[np.float32, np.float32]:
    """Median of the pixels on a ring about (x, y), and its crest; beyond the edge the nearest pixel counts.

    The crest is the highest level that two opposite pixels reach: that of a filament that runs through the middle.
    ``values (16,) float32``: filled, in their order on the ring; ``ordered (16,) float32``: scratch.
    """
    height, width = filtered.shape
    for k in range(RING):
        v, u = y + ring[0, k], x + ring[1, k]
        value = filtered[min(max(v, 0), height - 1), min(max(u, 0), width - 1)]
        values[k] = value
        j = k
        while j > 0 and ordered[j - 1] > value:
            ordered[j] = ordered[j - 1]
            j -= 1
        ordered[j] = value
    crest = np.float32(-np.inf)
    for k in range(RING // 2):
        crest = max(crest, min(values[k], values[k + RING // 2]))
    return (ordered[RING // 2 - 1] + ordered[RING // 2]) / np.float32(2.0), crest


@kernel
def _vertex(before: float, at: float, after: float) -> float:
    """Offset of a parabola's vertex from the middle one of three samples, the largest."""
    bend = 2.0 * at - before - after
    return 0.5 * np.float64(after - before) / bend if bend > 0.0 else 0.0


@kernel
def find_maxima(filtered: np.ndarray, sigma: float, noise: float, bright_pixels: int, most: int) -> np.ndarray:
    """Return detections ``(6, n) float64``, most significant first: place, level and slopes below it, height above it.

    A detection is a pixel that none of its eight neighbours exceeds, ``sigma`` times the noise of the filtered image
    high as ``bright_pixels - 1`` beside it are, and as far above the median of a ring around it: on a bright background
    whose level the mesh has not followed, every ripple of the noise is high. Nor does it lie on a filament: it must
    stand out from the crest of the ring too. Of equal neighbours the first in reading order counts; at most ``most``
    are returned.

    Places are subpixel, x and y. Level (units of a pixel's noise, as the height) and slopes (per pixel of the filtered
    image, x and y) are those of the ring, where it has a tenth of the height or more: a nebula. Else they are 0, and
    the star's wings are not taken for sky.
    """
    height, width = filtered.shape
    limit = np.float32(sigma * noise)
    least = np.float32((sigma - CREST) * noise)
    ring, values, ordered = np.empty((2, RING), np.int64), np.empty(RING, np.float32), np.empty(RING, np.float32)
    for k in range(RING):
        angle = k * (math.pi / 8.0)
        ring[0, k], ring[1, k] = int(np.rint(RING_PX * math.sin(angle))), int(np.rint(RING_PX * math.cos(angle)))
    places, heights = np.empty(1024, np.int64), np.empty(1024)
    n = 0
    for y in range(1, height - 1):
        row, above, below = filtered[y], filtered[y - 1], filtered[y + 1]
        for x in range(1, width - 1):
            value = row[x]
            if not value >= limit:
                continue
            if not (value > above[x - 1] and value > above[x] and value > above[x + 1] and value > row[x - 1]):
                continue
            if not (value >= row[x + 1] and value >= below[x - 1] and value >= below[x] and value >= below[x + 1]):
                continue
            bright = 1
            for u in range(x - 1, x + 2):
                bright += (1 if above[u] >= limit else 0) + (1 if below[u] >= limit else 0)
            bright += (1 if row[x - 1] >= limit else 0) + (1 if row[x + 1] >= limit else 0)
            if bright < bright_pixels:
                continue
            around, crest = ring_about(filtered, y, x, ring, values, ordered)
            if not (value - around >= limit and value - crest >= least):
                continue
            if n == places.size:
                more_places, more_heights = np.empty(2 * n, np.int64), np.empty(2 * n)
                for k in range(n):
                    more_places[k], more_heights[k] = places[k], heights[k]
                places, heights = more_places, more_heights
            is_structured = abs(around) >= STRUCTURED * value
            places[n], heights[n] = y * width + x, -(value - around if is_structured else value)
            n += 1
    order = ascending(heights[:n])
    kept = min(n, most)
    out = np.zeros((6, kept))
    for k in range(kept):
        y, x = divmod(places[order[k]], width)
        out[0, k] = x + _vertex(filtered[y, x - 1], filtered[y, x], filtered[y, x + 1])
        out[1, k] = y + _vertex(filtered[y - 1, x], filtered[y, x], filtered[y + 1, x])
        out[5, k] = -heights[order[k]]
        around, _ = ring_about(filtered, y, x, ring, values, ordered)
        if abs(around) >= STRUCTURED * filtered[y, x]:
            out[2, k] = around
            for j in range(RING):
                out[3, k] += values[j] * ring[1, j] / (RING / 2.0 * RING_PX * RING_PX)
                out[4, k] += values[j] * ring[0, j] / (RING / 2.0 * RING_PX * RING_PX)
    return out
