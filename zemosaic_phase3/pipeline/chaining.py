"""Frames that do not overlap with the reference, registered through others: a field that wanders becomes one image."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.pipeline.registering import register_frame
from zemosaic_phase3.records import Registration
from zemosaic_phase3.registration.diagnosis import chained, overlap
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.network import Adjusted, Sight, adjust, turned_camera
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.runtime.threads import parallel_map

if TYPE_CHECKING:
    from zemosaic_phase3.pipeline.group import Group
    from zemosaic_phase3.spec import RegisterSpec

logger = logging.getLogger("ZeMosaicWorker")

BESIDE: Final = 3  # frames before or after a frame in the list, that it is first tried on
SPREAD: Final = 12  # frames all over the field that are known, which a frame is tried on when those beside it fail
AS_GOOD: Final = 0.98  # stars matched, and rms, of an adjustment beside another one, to be as good
LITTLE_OVERLAP: Final = 0.6  # of the reference's field; with less, a frame's own registration is a lever

Verdicts = dict[int, Registration]


def chain_frames(group: Group, spec: RegisterSpec, verdicts: Verdicts, workers: int) -> None:
    """Register frames that failed on the reference through others, then adjust all transforms together.

    Parameters
    ----------
    group : Group
        The stars of its frames are known. A note is added.
    spec : RegisterSpec
    verdicts : dict of int to Registration
        By frame; changed. Those registered through others have the method "chain".
    workers : int
    """
    if spec.mode not in ("auto", "stars") or not _has_stars(group, group.reference, spec):
        return
    order = [i for i, v in verdicts.items() if v.ok and v.method in ("stars", "reference") and v.distortion is None]
    order.sort(key=lambda i: i != group.reference)
    failed = [i for i, v in verdicts.items() if not v.ok and _has_stars(group, i, spec)]
    through = _grow(group, spec, verdicts, [i for i in verdicts if i in {*order, *failed}], workers)
    shape = group.source(group.reference).shape
    parts = [overlap(verdicts[i].transform, shape)[0] for i in (*order, *through)]
    if not through and min(parts, default=1.0) >= LITTLE_OVERLAP:
        return
    order += through
    adjusted = _best_adjustment(group, spec, verdicts, order)
    for k, i in enumerate(order):
        if i != group.reference and np.isfinite(adjusted.rms[k]):
            verdicts[i] = replace(
                verdicts[i], transform=adjusted.transforms[k], matched=int(adjusted.matched[k]),
                rms_px=float(adjusted.rms[k]),
            )  # fmt: skip
    how = f"rms of their stars {adjusted.overall:.3f} px"
    group.notes.append(
        f"{len(through)} of {len(verdicts)} frames share too little with the reference and were registered through "
        f"others; all {len(order)} were adjusted together, {how}"
        if through
        else f"frames overlap by little: all {len(order)} were adjusted together, {how}"
    )


def _has_stars(group: Group, i: int, spec: RegisterSpec) -> bool:
    stars = group.scan(i).stars
    return stars is not None and len(stars) >= spec.min_matched


def _grow(group: Group, spec: RegisterSpec, verdicts: Verdicts, sequence: Sequence[int], workers: int) -> list[int]:
    """Register one frame after the other on those that are known; returns the new ones in the order in which they were.

    Frames beside each other in the list overlap most likely; where that fails, frames all over the known field are
    tried.
    """
    new: list[int] = []
    left = [i for i in sequence if not verdicts[i].ok]
    asked: set[tuple[int, int]] = set()

    def place(i: int, on: Sequence[int]) -> Registration | None:
        for k in on:
            if (i, k) in asked:
                continue
            asked.add((i, k))
            found = _register_through(group, spec, k, verdicts[k], i)
            if found is not None:
                return found
        return None

    while left:
        before = len(left)
        for run in (sequence, sequence[::-1]):
            beside: list[int] = []
            for i in run:
                if not verdicts[i].ok:
                    found = place(i, beside[::-1])
                    if found is None:
                        continue
                    verdicts[i] = found
                    new.append(i)
                beside = [*beside, i][-BESIDE:]
        left = [i for i in left if not verdicts[i].ok]
        known = _spread_over(group, verdicts, [i for i in sequence if verdicts[i].ok])
        for i, found in zip(left, parallel_map(partial(place, on=known), left, workers), strict=True):
            if found is not None:
                verdicts[i] = found
                new.append(i)
        left = [i for i in left if not verdicts[i].ok]
        if len(left) == before:
            break
    return new


def _register_through(
    group: Group, spec: RegisterSpec, through: int, known: Registration, i: int
) -> Registration | None:
    """Register a frame on another one whose place is known; None where that fails."""
    ours, theirs = group.scan(through).stars, group.scan(i).stars
    if ours is None or theirs is None:
        return None
    step = register_frame(group, i, through, group.wcs(through), spec)
    if step.distortion is not None:  # is between these two, and cannot be chained
        step = register_stars(ours, theirs, group.source(i).shape, spec)
    if not step.ok or step.method != "stars":
        return None
    return replace(step, transform=chained(known, step), method="chain", solution=None)  # that is of the other frame


def _spread_over(group: Group, verdicts: Verdicts, known: Sequence[int]) -> list[int]:
    """Return a few frames whose middles are as far from each other as may be: each time the one furthest from all."""
    shape = group.source(group.reference).shape
    middle = np.array([(shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0])
    places = np.stack([transform_points(np.linalg.inv(verdicts[i].transform), middle) for i in known])
    away = np.full(len(known), np.inf)
    chosen: list[int] = []
    k = int(np.argmax(np.hypot(*(places - places.mean(axis=0)).T)))
    for _ in range(min(SPREAD, len(known))):
        chosen.append(k)
        away = np.minimum(away, np.hypot(*(places - places[k]).T))
        k = int(np.argmax(away))
        if away[k] <= 0.0:
            break
    return [known[k] for k in chosen]


def _best_adjustment(group: Group, spec: RegisterSpec, verdicts: Verdicts, order: Sequence[int]) -> Adjusted:
    """Adjust transforms as they are and, where the focal length is known, as those of one camera that was turned."""
    shape = group.source(group.reference).shape
    flat = adjust([_sight(group, i, verdicts[i].transform) for i in order], order.index(group.reference), shape)
    focal = _focal_px(group)
    if not math.isfinite(focal) or spec.transform not in ("similarity", "auto"):
        return flat
    turned = [
        np.eye(3) if i == group.reference else turned_camera(flat.transforms[k], shape, focal)
        for k, i in enumerate(order)
    ]
    round_ = adjust(
        [_sight(group, i, t) for i, t in zip(order, turned, strict=True)], order.index(group.reference), shape, focal
    )
    logger.info("adjustment: rms %.4f px in one plane, %.4f px on the sphere", flat.overall, round_.overall)
    # The sky is a sphere: only a focal length that is wrong could make it worse.
    is_sound = round_.matched.sum() >= AS_GOOD * flat.matched.sum() and round_.overall <= flat.overall / AS_GOOD
    return round_ if is_sound else flat


def _sight(group: Group, i: int, transform: np.ndarray) -> Sight:
    stars = group.scan(i).stars
    if stars is None:
        return Sight(np.empty((0, 2)), np.empty(0), transform)
    return Sight(stars.xy, np.asarray(stars.sigma, np.float64), transform)


def _focal_px(group: Group) -> float:
    """Return the focal length in pixels, from the reference's WCS or its camera's cards; nan: not known."""
    wcs = group.wcs(group.reference)
    try:
        if wcs is not None:
            return 1.0 / math.radians(math.sqrt(abs(float(np.linalg.det(wcs.celestial.pixel_scale_matrix)))))
        focal, pixel, binning = group.source(group.reference).card_values("FOCALLEN", "XPIXSZ", "XBINNING")
        found = 1000.0 * float(focal) / (float(pixel) * float(binning or 1))
    except Exception as error:  # noqa: BLE001 - headers may say anything, and without it the plane is left
        logger.debug("no focal length: %s", error)
        return math.nan
    return found if found > 0.0 else math.nan
