"""By how much the samples of a pixel may differ because seeing and focus change: a tolerance for rejection.

Rejection takes what lies far from the others for a fault. In the core of a bright star the sharpest frames of
a night lie far above the others and the most blurred ones below, by many times the noise, and they are right: without
them a star loses light, a bright one more than a faint one.

The tolerance is what the frames themselves show. Three medians are made at each pixel: of the three sharpest frames
that cover it, of the three most blurred, and of five whose stars are of middling width. Where the first or the second
differs from the third by more than noise, over several pixels together, samples may differ by as much from the median
of their pixel, and by half as much again. A trail or a hit of a cosmic ray is in one frame of three and moves no
median; where seeing is steady, and in the sky between the stars, the medians are equal but for noise.

Where trails of two frames cross, both may be among the same three. Seeing moves light, it makes none: what is brighter
in some frames for its sake is so by a multiple of what the middling frames show there above their sky, and that
multiple follows from the widths. So light that those frames do not show at all is not spared. Nor is what sharp and
blurred frames lack alike: it is in the middling ones by accident.

It is a map of the result, made on the processor from a few frames in an order of their own, so that it has the same
bits for any device, number of threads and slab height.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.detection.masks import dilated
from zemosaic_phase3.detection.planes import planes_of
from zemosaic_phase3.detection.sky_mesh import between_cells, sky_of_planes
from zemosaic_phase3.engine.cpu import SHARES_PER_WORKER, fill_slab, shares, slab_plan
from zemosaic_phase3.engine.job import Job, without_unreadable
from zemosaic_phase3.engine.slab import Slab, slab_for
from zemosaic_phase3.engine.slab_plan import row_slabs
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.runtime.threads import parallel_map

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zemosaic_phase3.engine.resources import Resources

EXTREMES: Final = 3  # frames of a median of the sharpest, or of the most blurred: one of them may be wrong at a pixel
MIDDLE: Final = 5  # of the median between them
FEWEST: Final = 4  # frames whose stars' widths are known: of three all medians are the same
MOST: Final = 6  # frames of a median, where the first ones do not cover the result; times the frames' areas it has
NODES: Final = 17  # of a grid on which is seen what a frame covers, in each direction
BORDER: Final = 0.04  # of height and width that such points keep from the border: dithered frames leave it to others
FACTOR: Final = 1.5  # tolerance over what the medians differ by: frames differ by more than their widths, and by noise
NOISE: Final = 1.5  # standard deviations of the difference of two medians that are taken for noise
SIGNIFICANT: Final = 5.0  # standard deviations of the mean of 3x3 differences, beyond which they are a star's
REACH: Final = 3  # pixels around those that belong to the star: its light there is less in one of two frames, or equal
QUARTILE: Final = 0.3186  # half of the values of a normal deviate of 1 lie nearer to 0 than 0.6745, a quarter than this
SAMPLED: Final = 200_000  # pixels whose differences tell the noise of a channel
BAND: Final = 8  # rows of them together
BLOCK_ROWS: Final = 128
HALO: Final = REACH + 4  # rows that a block looks at beyond its own
LEAST_CHANGE: Final = 0.05  # of a profile, below which a ratio of changes tells nothing
BETA: Final = 4.0  # exponent of the Moffat profile by which stars of different widths are compared
LARGEST_RATIO: Final = 3.0  # of the outermost frame's difference to the median's of its group
MESH_CELL: Final = 32  # pixels, side of a cell of the sky above which the middling frames show a star
DARK: Final = 3.0  # standard deviations of that sky, less than which is no light
MARGIN: Final = 2.0  # over the multiple of that light by which a median may be brighter: neither has one width only
LEAST_GROWTH: Final = 0.5  # of it, where widths are nearly the same: of undersampled stars the place counts as much


class Groups(NamedTuple):
    """Frames of the three medians, in the order in which they are taken, and what the widths of their stars say.

    ``sharp``, ``blurred``, ``middle``: positions in the job, more than a median takes where the first ones do not
    cover the whole result. ``ratios``: how much farther the sharpest frame, and the most blurred one, is from the
    middle than the median of its group is. ``growth``: by how many times the light of a middling star the median of
    the sharpest, and of the most blurred, may be brighter.
    """

    sharp: list[int]
    blurred: list[int]
    middle: list[int]
    ratios: tuple[float, float]
    growth: tuple[float, float]


def with_star_tolerance(job: Job, fwhm: Mapping[str, float], resources: Resources) -> Job:
    """Return a job with the tolerance of its pixels; a frame that can no longer be read is dropped.

    Parameters
    ----------
    job : Job
    fwhm : mapping
        Width of the stars of each frame by its name, full width at half maximum, pixels of the frame; NaN: not known.
    resources : Resources

    Returns
    -------
    Job
        As it was, if the specification spares no stars, the widths of fewer than ``FEWEST`` frames are known, or no
        pixel has a tolerance.

    Raises
    ------
    FrameError
        No frame can be read.
    PlanError
        Not even one row fits into the memory.
    """
    while job.spec.spares:
        try:
            return replace(job, tolerance=star_tolerance(job, fwhm, resources))
        except FrameError as exc:
            job = without_unreadable(job, exc)
    return job


def star_tolerance(job: Job, fwhm: Mapping[str, float], resources: Resources) -> np.ndarray | None:
    """Return the tolerance of every pixel, of the job's shape, float32, ADU; None: it is 0 everywhere.

    It is 0 too where a median is not that of three frames, because fewer cover the pixel.
    """
    widths = np.array([fwhm.get(name, np.nan) for name in job.table.names])
    area = np.abs(np.linalg.det(job.table.transform[:, :2, :2]))  # of a pixel of the result, pixels of the frame
    groups = choose_groups(widths / np.sqrt(area), coverage_nodes(job), _most(job))
    if groups is None:
        return None
    sharp, blurred, middle = _differences(job, groups, resources)
    skies = skies_of(middle)
    tolerance = np.zeros(job.shape, np.float32)
    for c in range(job.channels):
        _spare_stars(
            (channel(sharp, c), channel(blurred, c)), channel(middle, c), skies[c], groups, channel(tolerance, c)
        )
    return tolerance if tolerance.any() else None


def channel(image: np.ndarray, c: int) -> np.ndarray:
    """Return one channel of an image, ``(H, W)``."""
    return image if image.ndim == 2 else image[:, :, c]


def coverage_nodes(job: Job) -> np.ndarray:
    """Return what of a grid of points over the result lies in each frame, ``(N, NODES * NODES) bool``."""
    height, width = job.shape[:2]
    places = np.linspace(BORDER, 1.0 - BORDER, NODES)
    y, x = (a.reshape(-1) for a in np.meshgrid((height - 1) * places, (width - 1) * places))
    mapped = job.table.transform @ np.stack([x, y, np.ones(x.size)])
    size = np.array([[source.width, source.height] for source in job.sources])[:, :, None]
    ahead = mapped[:, 2] > 0
    place = mapped[:, :2] / np.where(ahead, mapped[:, 2], 1.0)[:, None]
    inside: np.ndarray = ((place >= 0) & (place <= size - 1)).all(axis=1) & ahead
    return inside


def _most(job: Job) -> int:
    """Return of how many frames a median is made at most, not all of which show any one pixel."""
    frame = max(source.height * source.width for source in job.sources)
    of_pixel = float(np.median(np.abs(np.linalg.det(job.table.transform[:, :2, :2]))))
    return MOST * max(1, round(job.shape[0] * job.shape[1] * of_pixel / frame))


def choose_groups(widths: np.ndarray, inside: np.ndarray, most: int = MOST) -> Groups | None:
    """Choose the frames of the three medians.

    Parameters
    ----------
    widths : ndarray (N,) float64
        Of the stars, pixels of the result; NaN: not known.
    inside : ndarray (N, nodes) bool
        From :func:`coverage_nodes`.
    most : int
        Frames of a median at most, where the first ones do not cover the whole result.

    Returns
    -------
    Groups or None
        None: fewer than ``FEWEST`` widths are known.
    """
    order = np.argsort(widths, kind="stable")
    order = order[: int(np.isfinite(widths).sum())]
    n = len(order)
    if n < FEWEST:
        return None
    from_middle = order[np.argsort(np.abs(np.arange(n) - (n - 1) / 2), kind="stable")]
    sharp, blurred = (_covering(some, inside, EXTREMES, most) for some in (order, order[::-1]))
    middle = float(np.median(widths[order]))
    sharper, wider = (float(np.median(widths[group[:EXTREMES]])) for group in (sharp, blurred))
    ratios = _ratio(float(widths[order[0]]), sharper, middle), _ratio(float(widths[order[-1]]), wider, middle)
    growth = _growth(sharper, middle), _growth(wider, middle)
    return Groups(sharp, blurred, _covering(from_middle, inside, min(MIDDLE, n), most), ratios, growth)


def _covering(order: np.ndarray, inside: np.ndarray, wanted: int, most: int) -> list[int]:
    """Return the first frames, and of the next ones those without which points would be covered by too few."""
    chosen = order[:wanted].tolist()
    covered = inside[chosen].sum(axis=0)
    for i in order[wanted:].tolist():
        if len(chosen) == most:
            break
        lacking = covered < EXTREMES
        if not lacking.any():
            break
        if (inside[i] & lacking).any():
            chosen.append(i)
            covered += inside[i]
    return chosen


def _profile(fwhm: float, r: np.ndarray) -> np.ndarray:
    u = (2.0 * r / fwhm) ** 2 * (2.0 ** (1.0 / BETA) - 1.0)
    return np.asarray((1.0 + u) ** -BETA / fwhm**2)


def _ratio(outermost: float, typical: float, middle: float) -> float:
    """Return how much farther from the profile of a middling star the outermost one's is than the typical one's.

    The largest ratio, at the centre of the star and at up to 1.5 times its width, of those places where the typical
    profile differs by a fifth of its largest difference or more; 1 to ``LARGEST_RATIO``.
    """
    r = np.array([0.0, 0.5, 1.0, 1.5]) * middle
    own = _profile(middle, r)
    near, far = np.abs(_profile(typical, r) - own), np.abs(_profile(outermost, r) - own)
    if near.max() < LEAST_CHANGE * own.max():
        return 1.0
    tells = near > 0.2 * near.max()
    return float(np.clip((far[tells] / near[tells]).max(), 1.0, LARGEST_RATIO))


def _growth(typical: float, middle: float) -> float:
    """Return by how many times the light of a middling star a typical one may be brighter somewhere.

    Of the larger profile over the other, at the centre of the star or at twice its width, where wide ones gain.
    """
    r = np.array([0.0, 2.0]) * middle
    return MARGIN * max(float((_profile(typical, r) / _profile(middle, r)).max()) - 1.0, LEAST_GROWTH)


def _part(job: Job, frames: list[int]) -> Job:
    """Return a job of some frames of another, without weights."""
    table = job.table
    return replace(
        job,
        sources=[job.sources[k] for k in frames],
        table=replace(
            table,
            names=[table.names[k] for k in frames],
            transform=table.transform[frames],
            scale=table.scale[frames],
            offset=table.offset[frames],
            weight=table.weight[frames],
            distortion=[table.distortion[k] for k in frames] if table.distortion else [],
        ),
        spec=replace(job.spec, radial_weight=False, drizzle=0.0),  # interpolated: a drizzle has holes
        sample_weight=None,
        tolerance=None,
    )


def _differences(job: Job, groups: Groups, resources: Resources) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the medians of the sharpest and of the most blurred frames less that of the middle, and that.

    Of the job's shape, float32, ADU; NaN: a median is missing.
    """
    frames = sorted({*groups.sharp, *groups.blurred, *groups.middle})
    part, at = _part(job, frames), {k: i for i, k in enumerate(frames)}
    own = [np.array([at[k] for k in group]) for group in (groups.sharp, groups.blurred, groups.middle)]
    plan = slab_plan(part, resources)
    slab = slab_for(part, plan.rows_per_slab)
    made = np.empty(job.shape, np.float32), np.empty(job.shape, np.float32), np.empty(job.shape, np.float32)
    line = job.shape[1] * job.channels
    for rows in row_slabs(job.shape[0], plan.rows_per_slab):
        fill_slab(part, slab, rows, plan.workers)
        out = [difference.reshape(-1)[rows.start * line : rows.stop * line] for difference in made]
        _subtract_medians(slab, own, out, plan.workers)
    return made


def _subtract_medians(slab: Slab, groups: list[np.ndarray], out: list[np.ndarray], workers: int) -> None:
    from zemosaic_phase3.engine.median_difference import median_differences
    from zemosaic_phase3.runtime.jit import wait_for_compiler

    wait_for_compiler()
    sharp, blurred, middle = groups

    def subtract(share: range) -> None:
        for cube, start, stop, offset in slab.pieces(share.start, share.stop):
            median_differences(
                cube,
                start,
                stop,
                (sharp, blurred, middle),
                (EXTREMES, EXTREMES, MIDDLE),
                (out[0][offset:], out[1][offset:], out[2][offset:]),
            )

    parallel_map(subtract, shares(out[0].size, workers * SHARES_PER_WORKER), workers)


def _noise_of(values: np.ndarray) -> float:
    """Return the standard deviation of the noise of some differences.

    It is told by the smaller ones, which are no star's. Zeros do not count: of few frames two medians are often the
    same sample, which tells nothing.
    """
    sizes = np.abs(values[values != 0.0])
    return float(np.quantile(sizes, 0.25)) / QUARTILE if sizes.size else 0.0


def _box_mean(image: np.ndarray) -> np.ndarray:
    """Return the mean of 3x3 pixels, ``(H - 2, W - 2)``, added in one order wherever they are."""
    lines = (image[:-2] + image[1:-1]) + image[2:]
    return np.asarray(((lines[:, :-2] + lines[:, 1:-1]) + lines[:, 2:]) * np.float32(1.0 / 9.0))


def _box_max(image: np.ndarray) -> np.ndarray:
    """Return the largest of 3x3 pixels, ``(H, W)``; beyond the border there is 0."""
    padded = np.pad(image, 1)
    lines = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    return np.asarray(np.maximum(np.maximum(lines[:, :-2], lines[:, 1:-1]), lines[:, 2:]))


def _levels_and_noise(difference: np.ndarray) -> tuple[float, float, float]:
    """Return of one channel's differences ``(H, W)`` the level of most, their noise, and that of means of 3x3 pixels.

    Measured on bands of rows, evenly spaced, of about ``SAMPLED`` pixels in all.
    """
    height, width = difference.shape
    bands = max(1, min(SAMPLED // (BAND * width), height // BAND))
    starts = np.linspace(0, max(0, height - BAND), bands).astype(int)
    some = np.concatenate([difference[y : y + BAND].reshape(-1) for y in starts])
    some = some[np.isfinite(some)]
    if some.size == 0:
        return 0.0, 0.0, 0.0
    level = float(np.median(some))
    means = [_box_mean(np.nan_to_num(difference[y : y + BAND] - np.float32(level))).reshape(-1) for y in starts]
    return level, _noise_of(some - level), _noise_of(np.concatenate(means))


def skies_of(image: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Return of each channel of an image the sky on a mesh of cells of ``MESH_CELL`` pixels, and its noise, ADU."""
    frame = image.reshape(*image.shape[:2], -1)
    skies = []
    for level, noise in zip(*sky_of_planes(frame, planes_of(frame.shape), MESH_CELL), strict=True):
        known = np.isfinite(level)
        typical = float(np.median(level[known])) if known.any() else np.inf  # nothing is above that
        skies.append((np.where(known, level, typical), float(np.median(noise[known])) if known.any() else 0.0))
    return skies


def _above_sky(image: np.ndarray, first: int, sky: tuple[np.ndarray, float]) -> np.ndarray:
    """Return how far rows of a channel, from ``first`` on, are above the sky and its noise.

    ``(h, W) float32``, ADU, 0 where they are not. Of a pixel itself or of the mean of 3x3, whose noise is a third,
    and the largest of 3x3 such pixels: a star's profile is steep, and frames differ in where it is.
    """
    mesh, noise = sky
    (r, r1, fy), (c, c1, fx) = (
        between_cells(np.arange(start, start + size), MESH_CELL, cells)
        for start, size, cells in zip((first, 0), image.shape, mesh.shape, strict=True)
    )
    lines = mesh[r] + fy[:, None] * (mesh[r1] - mesh[r])
    level = (lines[:, c] + fx * (lines[:, c1] - lines[:, c])).astype(np.float32)
    light = np.nan_to_num(image - level, nan=0.0, posinf=0.0, neginf=0.0)
    of_mean = _box_mean(np.pad(light, 1, mode="edge")) - np.float32(DARK * noise / 3.0)
    return _box_max(np.maximum(np.maximum(light - np.float32(DARK * noise), of_mean), np.float32(0.0)))


def _spare_stars(
    differences: tuple[np.ndarray, np.ndarray],
    middle: np.ndarray,
    sky: tuple[np.ndarray, float],
    groups: Groups,
    tolerance: np.ndarray,
) -> None:
    """Fill one channel's tolerance ``(H, W)`` with what its differences, sharp and blurred ``(H, W)``, ask for.

    What most pixels of a channel differ by is not a star's, so that differences count from their level. Stars differ
    over some pixels together, noise does not: there is a tolerance only near pixels whose 3x3 differ significantly in
    their mean. Light that is more than the middling frames' does not count beyond what widths explain, and light that
    is less shows a star only where the other difference is not as far below. The tolerance is the largest of its
    neighbours and its own, because a profile may be steeper between two pixels.
    """
    measured = [_levels_and_noise(difference) for difference in differences]
    height = len(middle)
    for rows in row_slabs(height, BLOCK_ROWS):  # little memory beside the maps, the same for all tiles
        top, bottom = max(rows.start - HALO, 0), min(rows.stop + HALO, height)
        light = _above_sky(middle[top:bottom], top, sky)
        own = [
            np.minimum(np.nan_to_num(difference[top:bottom] - np.float32(level)), light * np.float32(most))
            for difference, (level, _, _), most in zip(differences, measured, groups.growth, strict=True)
        ]
        means = [_box_mean(np.pad(d, 1, mode="edge")) for d in own]
        for k, (_, noise, noise_of_means) in enumerate(measured):
            if noise == 0.0:
                continue
            limit = np.float32(SIGNIFICANT * noise_of_means)
            shown = (means[k] > limit) | ((means[k] < -limit) & (means[1 - k] > means[k] * np.float32(0.5)))
            if not shown.any():
                continue
            size = np.maximum(np.abs(own[k]) - np.float32(NOISE * noise), np.float32(0.0))
            size[~dilated(shown, REACH)] = 0.0
            wide = _box_max(size)[rows.start - top : rows.stop - top]
            np.maximum(tolerance[rows], wide * np.float32(FACTOR * groups.ratios[k]), out=tolerance[rows])
