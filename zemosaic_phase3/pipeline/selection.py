"""Which registered frames are good enough: limits that a user sets, and the worst of the rest by one figure.

The reference is never left out: the others lie on its grid and have its levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.photometry.star_gain import frame_gain
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.pipeline.scan import Scan
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.robust import MAD_TO_SIGMA
from zemosaic_phase3.spec import WIDE, SelectSpec

FEWEST_OF_SESSION: Final = 3  # frames that have a median worth comparing with
FEWEST_SHAPED: Final = 5  # stars of a frame that is left out for their width without having been asked
LEAST_SPREAD: Final = 0.01  # of the median, that a sigma of the session is at least


class _Limit(NamedTuple):
    """One figure of frames and what is asked of it."""

    limit: float | str
    option: str
    sign: float  # 1.0: the figure must not be more, -1.0: not less
    figure: Callable[[Scan], float]
    wording: str  # of the figure, to be formatted


def apply_limits(group: Group, spec: SelectSpec) -> None:
    """Leave out frames whose stars are too wide, too long or too few, or whose sky is too bright.

    Before they are registered; limits of the session are those of all frames that are usable now. A frame of which a
    figure is not known is left out where its limit was asked for, and stays where it is the default.

    Parameters
    ----------
    group : Group
        Measured, with stars.
    spec : SelectSpec
    """
    usable = group.usable
    for rule in _limits(spec):
        figures = {i: rule.figure(group.scan(i)) for i in usable}
        most = _number(rule, np.array(list(figures.values())))
        if most is None:
            continue
        found = 0
        for i, figure in figures.items():
            within = rule.sign * figure <= rule.sign * most
            tolerated = math.isnan(figure) and rule.limit == WIDE
            if i == group.reference or within or tolerated or not group.rows[i].used:
                continue
            found += 1
            said = rule.wording.format(figure) if math.isfinite(figure) else "no star whose shape can be measured"
            if rule.limit == WIDE:
                why = f"{said}, more than {rule.limit} the median of the frames: out of focus? --max-fwhm none keeps it"
            elif isinstance(rule.limit, str):
                why = f"{said}, the limit of the session is {most:.4g} ({rule.option} {rule.limit})"
            elif rule.option == "--min-stars":
                why = f"{said}, at least {rule.limit} are asked for (--min-stars)"
            else:
                why = f"{said}, limit {rule.limit:g}{' px' if rule.option == '--max-fwhm' else ''} ({rule.option})"
            group.rows[i].drop(why)
        if found and rule.limit == WIDE:
            what = "frame is" if found == 1 else "frames are"
            group.notes.append(
                f"{found} {what} left out: stars wider than {most:.1f} px, {WIDE[:-1]} times the median of the frames; "
                "--max-fwhm none keeps such frames"
            )


def _limits(spec: SelectSpec) -> Iterator[_Limit]:
    """Yield the limits that are asked for."""
    if spec.max_fwhm is not None:
        yield _Limit(
            spec.max_fwhm, "--max-fwhm", 1.0, _fwhm if spec.max_fwhm != WIDE else _known_fwhm, "FWHM {:.2f} px"
        )
    if spec.max_eccentricity is not None:
        yield _Limit(spec.max_eccentricity, "--max-eccentricity", 1.0, _eccentricity, "eccentricity {:.2f}")
    if spec.max_background is not None:
        yield _Limit(spec.max_background, "--max-background", 1.0, _background, "background {:.0f} ADU")
    if spec.min_stars is not None:
        yield _Limit(spec.min_stars, "--min-stars", -1.0, lambda scan: float(scan.n_stars), "{:.0f} stars")


def _fwhm(scan: Scan) -> float:
    return scan.fwhm


def _known_fwhm(scan: Scan) -> float:
    """Return the width where enough stars tell it that nobody needs to look at the frame: two may be anything."""
    return scan.fwhm if scan.n_stars >= FEWEST_SHAPED else math.nan


def _eccentricity(scan: Scan) -> float:
    return math.nan if scan.stats is None else scan.stats.eccentricity


def _background(scan: Scan) -> float:
    return math.nan if scan.stats is None else float(np.mean(scan.stats.median))


def _number(rule: _Limit, figures: np.ndarray) -> float | None:
    """Return the number that a limit means in this session; None: too few frames tell."""
    if not isinstance(rule.limit, str):
        return float(rule.limit)
    known = figures[np.isfinite(figures)]
    if known.size < FEWEST_OF_SESSION:
        return None
    middle, factor = float(np.median(known)), float(rule.limit[:-1])
    if rule.limit.endswith("x"):
        return factor * middle
    spread = max(MAD_TO_SIGMA * float(np.median(np.abs(known - middle))), LEAST_SPREAD * abs(middle))
    return middle + rule.sign * factor * spread


def rate_frames(group: Group) -> None:
    """Compare the stars of every registered frame with the reference's; fills the rows' transparencies.

    A transparency is 1 / gain of the frame (:func:`photometry.star_gain.frame_gain`) but for the area of its pixels,
    mean of the channels: 1 for the reference, less where clouds or haze dim the stars; NaN where too few stars tell.
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
            row.transparency = float(np.mean(gain.area / gain.factor)) if gain.supported else math.nan


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
