"""Which registered frames are good enough: limits that a user sets, and the worst of the rest by one figure.

The reference is never left out: the others lie on its grid and have its levels.
"""

from __future__ import annotations

import math

import numpy as np

from zemosaic_phase3.photometry.star_gain import frame_gain
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.spec import SelectSpec


def apply_limits(group: Group, spec: SelectSpec) -> None:
    """Leave out frames whose stars are too wide or too few; before they are registered.

    Parameters
    ----------
    group : Group
        Measured, with stars.
    spec : SelectSpec
        ``max_fwhm`` and ``min_stars``.
    """
    for i in group.usable:
        scan = group.scan(i)
        if i == group.reference:
            continue
        if spec.max_fwhm is not None and not scan.fwhm <= spec.max_fwhm:
            width = f"FWHM {scan.fwhm:.2f} px" if math.isfinite(scan.fwhm) else "no star whose FWHM can be measured"
            group.rows[i].drop(f"{width}, limit {spec.max_fwhm:g} px (--max-fwhm)")
        elif spec.min_stars is not None and scan.n_stars < spec.min_stars:
            group.rows[i].drop(f"{scan.n_stars} stars, at least {spec.min_stars} are asked for (--min-stars)")


def rate_frames(group: Group) -> None:
    """Compare the stars of every registered frame with the reference's; fills the rows' transparencies.

    A transparency is 1 / gain of the frame (:func:`photometry.star_gain.frame_gain`), mean of the channels: 1 for the
    reference, less where clouds or haze dim the stars; NaN where too few stars tell.
    """
    reference = group.scan(group.reference).stats
    for i in group.usable:
        row, stats = group.rows[i], group.scan(i).stats
        if reference is None or stats is None:  # nothing asked for measured frames
            continue
        if i == group.reference:
            row.transparency = 1.0 if len(reference.star_xy) else math.nan
        elif row.registration is not None:
            gain = frame_gain(stats, reference, row.registration.transform, row.registration.distortion)
            row.transparency = float(np.mean(1.0 / gain.factor)) if gain.supported else math.nan


def point_source_noise(stats: FrameStats | None, transparency: float) -> float:
    """Noise of a faint star's flux under a matched filter, in units of the flux, up to a factor common to all frames.

    ``sigma FWHM / transparency``, sigma the geometric mean of the channels' sky noise; infinite where the frame has no
    stars, as if it had none to show, or was not measured.
    """
    if stats is None or not (math.isfinite(stats.fwhm) and np.all(stats.variance > 0.0)):
        return math.inf
    noise = math.exp(0.5 * float(np.mean(np.log(stats.variance))))
    return noise * stats.fwhm / (transparency if transparency > 0.0 else 1.0)


def drop_worst(group: Group, spec: SelectSpec) -> list[int]:
    """Leave out the given percentage of the registered frames, those in which a faint star is noisiest.

    Parameters
    ----------
    group : Group
        Registered and rated.
    spec : SelectSpec
        ``drop_worst``, percent; rounded down to whole frames.

    Returns
    -------
    list of int
        Positions of those left out.
    """
    usable = group.usable
    count = int(spec.drop_worst / 100.0 * len(usable))
    figure = {i: point_source_noise(group.scan(i).stats, group.rows[i].transparency) for i in usable}
    best = min(figure.values())
    order = sorted((i for i in usable if i != group.reference), key=lambda i: (-figure[i], -i))
    for i in order[:count]:
        scan = group.scan(i)
        ratio = figure[i] / best if math.isfinite(best) else math.nan
        group.rows[i].drop(
            f"among the worst {spec.drop_worst:g} % (--drop-worst): faint stars are {ratio:.2f} times as noisy "
            f"as in the best frame (FWHM {scan.fwhm:.2f} px, transparency {group.rows[i].transparency:.2f})"
        )
    return order[:count]
