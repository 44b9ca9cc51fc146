"""By how much the samples of a pixel may differ because seeing and focus change: a tolerance for rejection.

Rejection takes what lies far from the others for a fault. In the core of a bright star the sharpest frames of a night lie far
above the others and the most blurred ones below, by many times the noise, and they are right: without them a star loses
light, a bright one more than a faint one.

The tolerance is what the frames themselves show. Three medians are made at each pixel: of the three sharpest frames
that cover it, of the three most blurred, and of five whose stars are of middling width. Where the first or the second
differs from the third by more than noise, samples may differ by as much from the median of their pixel, and by half as
much again. A trail or a hit of a cosmic ray is in one frame of three and moves no median; where seeing is steady, and in
the sky between the stars, the medians are equal but for noise.

It is a map of the result, made on the processor from a few frames in an order of their own, so that it has the same
bits for any device, number of threads and slab height.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

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
MOST: Final = 8  # frames of a median, where the first ones do not cover the whole result
NODES: Final = 17  # of a grid on which is seen what a frame covers, in each direction
FACTOR: Final = 1.5  # tolerance over what the medians differ by: frames differ by more than their widths, and by noise
NOISE: Final = 3.0  # standard deviations of the difference of two medians that are taken for noise
QUARTILE: Final = 0.3186  # half of the values of a normal deviate of 1 lie nearer to 0 than 0.6745, a quarter than this
SAMPLED: Final = 200_000  # pixels whose differences tell the noise of a channel
BETA: Final = 4.0  # exponent of the Moffat profile by which stars of different widths are compared
LARGEST_RATIO: Final = 3.0  # of the outermost frame's difference to the median's of its group


class Groups(NamedTuple):
    """Frames of the three medians, in the order in which they are taken, and two ratios.

    ``sharp``, ``blurred``, ``middle``: positions in the job. A median of extremes is that of the first three that cover
    a pixel. ``ratios``: how much farther the sharpest frame, and the most blurred one, is from the middle than the
    median of its group is, by the widths of their stars.
    """

    sharp: list[int]
    blurred: list[int]
    middle: list[int]
    ratios: tuple[float, float]


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
    groups = choose_groups(widths / np.sqrt(area), coverage_nodes(job))
    if groups is None:
        return None
    differences = _differences(job, groups, resources)
    tolerance = differences[0]
    for difference, ratio in zip(differences, groups.ratios, strict=True):
        _excess(difference, ratio, job.channels)
    np.maximum(*differences, out=tolerance)
    if not tolerance.any():
        return None
    _widen(tolerance, differences[1])
    return differences[1]


def coverage_nodes(job: Job) -> np.ndarray:
    """Return what of a grid of points over the result lies in each frame, ``(N, NODES * NODES) bool``."""
    height, width = job.shape[:2]
    y, x = (a.reshape(-1) for a in np.meshgrid(np.linspace(0, height - 1, NODES), np.linspace(0, width - 1, NODES)))
    mapped = job.table.transform @ np.stack([x, y, np.ones(x.size)])
    size = np.array([[source.width, source.height] for source in job.sources])[:, :, None]
    ahead = mapped[:, 2] > 0
    place = mapped[:, :2] / np.where(ahead, mapped[:, 2], 1.0)[:, None]
    inside: np.ndarray = ((place >= 0) & (place <= size - 1)).all(axis=1) & ahead
    return inside


def choose_groups(widths: np.ndarray, inside: np.ndarray) -> Groups | None:
    """Choose the frames of the three medians.

    Parameters
    ----------
    widths : ndarray (N,) float64
        Of the stars, pixels of the result; NaN: not known.
    inside : ndarray (N, nodes) bool
        From :func:`coverage_nodes`.

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
    sharp, blurred = _covering(order, inside, EXTREMES), _covering(order[::-1], inside, EXTREMES)
    middle = float(np.median(widths[order]))
    ratios = tuple(
        _ratio(float(widths[outermost]), float(np.median(widths[group[:EXTREMES]])), middle)
        for outermost, group in ((order[0], sharp), (order[-1], blurred))
    )
    return Groups(sharp, blurred, _covering(from_middle, inside, min(MIDDLE, n)), (ratios[0], ratios[1]))


def _covering(order: np.ndarray, inside: np.ndarray, wanted: int) -> list[int]:
    """Return the first frames, and of the next ones those without which points would be covered by too few."""
    chosen = order[:wanted].tolist()
    covered = inside[chosen].sum(axis=0)
    for i in order[wanted:].tolist():
        if len(chosen) == MOST:
            break
        lacking = covered < EXTREMES
        if not lacking.any():
            break
        if (inside[i] & lacking).any():
            chosen.append(i)
            covered += inside[i]
    return chosen


def _ratio(outermost: float, typical: float, middle: float) -> float:
    """Return how much farther from the profile of a middling star the outermost one's is than the typical one's.

    The largest ratio, at the centre of the star and at up to 1.5 times its width, of those places where the typical
    profile differs by a fifth of its largest difference or more; 1 to ``LARGEST_RATIO``.
    """
    r = np.array([0.0, 0.5, 1.0, 1.5]) * middle

    def profile(fwhm: float) -> np.ndarray:
        u = (2.0 * r / fwhm) ** 2 * (2.0 ** (1.0 / BETA) - 1.0)
        return np.asarray((1.0 + u) ** -BETA / fwhm**2)

    near, far = np.abs(profile(typical) - profile(middle)), np.abs(profile(outermost) - profile(middle))
    tells = near > 0.2 * near.max()
    if not tells.any():
        return 1.0
    return float(np.clip((far[tells] / near[tells]).max(), 1.0, LARGEST_RATIO))


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
        spec=replace(job.spec, radial_weight=False),
        sample_weight=None,
        tolerance=None,
    )


def _differences(job: Job, groups: Groups, resources: Resources) -> tuple[np.ndarray, np.ndarray]:
    """Return the medians of the sharpest and of the most blurred frames less that of the middle; NaN: one is missing.

    Of the job's shape, float32, ADU.
    """
    frames = sorted({*groups.sharp, *groups.blurred, *groups.middle})
    part, at = _part(job, frames), {k: i for i, k in enumerate(frames)}
    own = [np.array([at[k] for k in group]) for group in (groups.sharp, groups.blurred, groups.middle)]
    plan = slab_plan(part, resources)
    slab = slab_for(part, plan.rows_per_slab)
    made = np.empty(job.shape, np.float32), np.empty(job.shape, np.float32)
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
            to = [difference[offset:] for difference in out]
            median_differences(cube, start, stop, sharp, blurred, middle, EXTREMES, np.empty(2 * MOST), *to)

    parallel_map(subtract, shares(out[0].size, workers * SHARES_PER_WORKER), workers)


def _excess(difference: np.ndarray, ratio: float, channels: int) -> None:
    """Turn differences into what of their size is more than noise, times the ratio; 0 where there is none.

    What most pixels of a channel differ by is not a star's, so that the differences count from their median. Their
    noise is told by the smaller ones, which stars do not reach; of few frames two medians are often the same sample,
    which tells nothing.
    """
    flat = difference.reshape(-1, channels)
    step = max(1, len(flat) // SAMPLED)
    for c in range(channels):
        some = flat[::step, c]
        some = some[np.isfinite(some) & (some != 0.0)]
        if some.size == 0:
            flat[:, c] = 0.0
            continue
        level = np.median(some)
        noise = np.float32(NOISE * np.quantile(np.abs(some - level), 0.25) / QUARTILE)
        for rows in row_slabs(len(difference), max(1, SAMPLED // difference.shape[1])):  # little memory beside the map
            own = difference[rows].reshape(-1, channels)[:, c]
            own -= level
            np.abs(own, out=own)
            own -= noise
            own *= np.float32(ratio)
            own[~(own > 0.0)] = 0.0


def _widen(tolerance: np.ndarray, out: np.ndarray) -> None:
    """Give every pixel the largest tolerance of its neighbours and its own, times ``FACTOR``.

    Between two pixels a profile may be steeper than it is at either.
    """
    from scipy.ndimage import maximum_filter

    size = (3, 3) if tolerance.ndim == 2 else (3, 3, 1)
    maximum_filter(tolerance, size, output=out, mode="nearest")
    out *= np.float32(FACTOR)
