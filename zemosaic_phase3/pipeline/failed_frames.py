"""Frames that did not register: those that are mirrored are turned and used, of the others is found out why.

A few are looked into, which takes a fraction of a second each; a run in which nothing fails does none of this.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.io.flipped_frame import flip
from zemosaic_phase3.records import Registration
from zemosaic_phase3.registration.diagnosis import (
    MOST_STILL,
    brightest,
    chained,
    is_mirrored,
    other_scale,
    overlap,
    still_detections,
)
from zemosaic_phase3.registration.few_stars import DENIED, FEW, WCS_ERROR
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.registration.wcs import register_wcs
from zemosaic_phase3.runtime.threads import parallel_map

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from zemosaic_phase3.detection.star_finder import StarList
    from zemosaic_phase3.io.frame import FrameSource
    from zemosaic_phase3.pipeline.group import Group
    from zemosaic_phase3.pipeline.registering import Tools
    from zemosaic_phase3.pipeline.scan import Scan
    from zemosaic_phase3.spec import RegisterSpec

logger = logging.getLogger("ZeMosaicWorker")

MOST_LOOKED_INTO: Final = 50  # failed frames of a run
SHARED_WCS: Final = 3  # frames with one and the same WCS: it was copied
SUMMED_UP: Final = 3  # frames with one kind of reason that get a line of their own in the report
OTHER_FIELDS: Final = 3  # that are told apart
CAMERA_CARDS: Final = ("INSTRUME", "FOCALLEN", "XPIXSZ", "XBINNING")

Verdicts = dict[int, Registration]


def review_failures(group: Group, spec: RegisterSpec, verdicts: Verdicts, tools: Tools) -> None:
    """Turn frames that are mirrored and use them, find out why the others failed, and judge the WCS.

    Parameters
    ----------
    group : Group
        Registered; the stars of its frames are known. Sources and scans of turned frames are replaced, and notes added.
    spec : RegisterSpec
    verdicts : dict of int to Registration
        By frame; changed.
    tools : Tools
    """
    if not all(verdict.ok for verdict in verdicts.values()):
        turn_mirrored(group, spec, verdicts, tools)
        explain_failures(group, spec, verdicts, tools.workers)
    review_wcs(group, spec, verdicts, tools)


def has_stars(group: Group, i: int, spec: RegisterSpec) -> bool:
    """Return whether a frame shows enough stars to be looked into."""
    stars = group.scan(i).stars
    return stars is not None and len(stars) >= spec.min_matched


def find_mirrored(group: Group, spec: RegisterSpec, verdicts: Verdicts, workers: int) -> list[int]:
    """Return the failed frames that register once their rows are read in the other order.

    Where none of the first ``MOST_LOOKED_INTO`` does, the rest is not asked.
    """
    reference = group.scan(group.reference).stars
    asked = [i for i, verdict in verdicts.items() if not verdict.ok and has_stars(group, i, spec)]
    if reference is None or len(reference) < spec.min_matched or spec.mode not in ("auto", "stars"):
        return []
    shape = group.source(group.reference).shape

    def ask(i: int) -> bool:
        stars = group.scan(i).stars
        return stars is not None and is_mirrored(reference, stars, shape, spec)

    first = _spread(asked, MOST_LOOKED_INTO)
    found = {i for i, yes in zip(first, parallel_map(ask, first, workers), strict=True) if yes}
    if found:
        rest = [i for i in asked if i not in set(first)]
        found |= {i for i, yes in zip(rest, parallel_map(ask, rest, workers), strict=True) if yes}
    return [i for i in asked if i in found]


def turn_mirrored(group: Group, spec: RegisterSpec, verdicts: Verdicts, tools: Tools) -> None:
    """Read mirrored frames in the other order, measure them anew, and register them; notes it in the group."""
    found = find_mirrored(group, spec, verdicts, tools.workers)

    def turn(i: int) -> tuple[FrameSource, Scan] | None:
        source = flip(group.source(i))
        try:
            return source, tools.scan(source)
        except Exception as error:  # noqa: BLE001 - a wall: what goes wrong in one frame is that frame's reason
            logger.debug("%s: not turned: %s", source.name, error)
            return None

    turned = []
    for i, result in zip(found, parallel_map(turn, found, tools.scanning), strict=True):
        if result is None:
            continue
        before = group.sources[i], group.rows[i].scan
        group.sources[i], group.rows[i].scan = result
        verdict = tools.register(i)
        if verdict.ok:
            verdicts[i] = verdict
            turned.append(i)
        else:
            group.sources[i], group.rows[i].scan = before
    if turned:
        said = Counter(group.source(i).row_order for i in turned).most_common(1)[0][0]
        says = f"though ROWORDER says {said} of all" if said else "though no header says so"
        group.notes.append(
            f"{len(turned)} of {len(verdicts)} frames, such as {_name(group, turned[0])}, are mirrored, {says}: "
            "their rows are read in the other order"
        )


def explain_failures(group: Group, spec: RegisterSpec, verdicts: Verdicts, workers: int) -> None:
    """Find out why frames failed, and give the verdicts that reason; sums up in the group's notes what many share."""
    failed = [i for i, verdict in verdicts.items() if not verdict.ok and has_stars(group, i, spec)]
    reference = group.scan(group.reference).stars
    if not failed or reference is None or spec.mode not in ("auto", "stars"):
        return
    shape = group.source(group.reference).shape
    chosen = _spread(failed, MOST_LOOKED_INTO)
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    places = _places(group, spec, verdicts, set(chosen))

    def ask(i: int) -> tuple[str, str]:
        return _reason(group, i, spec, verdicts[i], places.get(i), shape)

    answers = dict(zip(chosen, parallel_map(ask, chosen, workers), strict=True))
    _name_other_field(group, spec, answers, workers)
    for i, (kind, reason) in answers.items():
        verdicts[i] = replace(verdicts[i], reason=reason)
        kinds[kind].append(i)
    looked_into = set(chosen)
    for i in failed:
        if i not in looked_into:
            nearest = min(chosen, key=lambda k: abs(k - i))
            reason = f"{verdicts[i].reason}; perhaps as {_name(group, nearest)}: {verdicts[nearest].reason}"
            verdicts[i] = replace(verdicts[i], reason=reason)
    unseen = f"; {len(failed) - len(chosen)} more were not looked into" if len(failed) > len(chosen) else ""
    for kind, members in kinds.items():
        if kind and len(members) >= SUMMED_UP:
            group.notes.append(f"{len(members)} of {len(verdicts)} frames {kind}{unseen}")


def _reason(
    group: Group, i: int, spec: RegisterSpec, verdict: Registration, place: _Place | None, shape: tuple[int, ...]
) -> tuple[str, str]:
    """Return the kind of a failure, as a sentence about frames, and the reason of one; kind empty: not found."""
    ours, theirs = group.scan(group.reference).stars, group.scan(i).stars
    if ours is None or theirs is None:
        return "", verdict.reason
    if place is not None:
        return place
    still = still_detections(ours, theirs, shape)
    if still >= MOST_STILL * len(theirs):
        return (
            "show hot pixels rather than stars",
            f"{still} of its {len(theirs)} detections stand on the pixels where the reference has some: hot pixels, "
            f"and too few stars beside them ({verdict.reason})",
        )
    scale = other_scale(ours, theirs, shape, spec)
    if scale is not None:
        return (
            f"are of another scale than the reference (about {scale.scale:.3f}): stack them on their own",
            f"its scale is {scale.scale:.3f} of the reference's ({scale.matched} stars matched): another camera, focal "
            f"length or binning{_cameras(group, i)}; stack it on its own",
        )
    distance = _wcs_distance(group.wcs(group.reference), group.wcs(i), shape)
    if distance:
        return "show another field than the reference, as their WCS say", f"{distance} ({verdict.reason})"
    return "", f"{verdict.reason}; nor mirrored, nor at another scale, nor through the frames beside it: another field?"


def _name_other_field(group: Group, spec: RegisterSpec, answers: dict[int, _Place], workers: int) -> None:
    """Of the frames with no reason yet, tell those that register on one of them: they show another field together."""
    shape = group.source(group.reference).shape
    left = [i for i, (kind, _) in answers.items() if not kind]
    for _ in range(OTHER_FIELDS):
        if len(left) < SUMMED_UP:
            return
        first, others = left[0], left[1:]
        ours = group.scan(first).stars

        def registers(i: int, ours: StarList | None = ours) -> bool:
            theirs = group.scan(i).stars
            if ours is None or theirs is None:
                return False
            return register_stars(brightest(ours), brightest(theirs), shape, spec).ok

        joined = [i for i, yes in zip(others, parallel_map(registers, others, workers), strict=True) if yes]
        if len(joined) + 1 >= SUMMED_UP:
            name = _name(group, first)
            for i in (first, *joined):
                beside = name if i != first else _name(group, joined[0])
                answers[i] = (
                    f"show another field than the reference, and register on {name}: stack them on their own",
                    f"another field than the reference's: it goes with {beside}, as {len(joined)} do ({answers[i][1]})",
                )
        left = [i for i in others if i not in joined]


_Place = tuple[str, str]


def _places(group: Group, spec: RegisterSpec, verdicts: Verdicts, chosen: set[int]) -> dict[int, _Place]:
    """Find where failed frames lie through the frames beside them, one after the other; kinds and reasons by frame."""
    shape = group.source(group.reference).shape
    known = {i: (verdict, i) for i, verdict in verdicts.items() if verdict.ok}
    found: dict[int, _Place] = {}
    order = list(verdicts)
    for sequence in (order, order[::-1]):
        for before, i in zip(sequence[:-1], sequence[1:], strict=True):
            ours, theirs = group.scan(before).stars, group.scan(i).stars
            if i in known or i not in chosen or before not in known or ours is None or theirs is None:
                continue
            step = register_stars(brightest(ours), brightest(theirs), shape, spec)
            if step.ok:
                matrix = chained(known[before][0], step)
                known[i] = (Registration(True, matrix), before)
                found[i] = _apart(matrix, shape, _name(group, before), verdicts[i].reason)
    return found


def _apart(matrix: np.ndarray, shape: tuple[int, ...], beside: str, reason: str) -> _Place:
    """Say how far the field of a frame lies from the reference's."""
    part, away = overlap(matrix, shape)
    where = f"{math.hypot(*away):.0f} px away (x {away[0]:+.0f}, y {away[1]:+.0f})"
    if part == 0.0:
        return (
            "do not overlap with the reference: use --framing union, or stack them on their own",
            f"no overlap with the reference: its field is {where}, as {beside} beside it shows; stack it on its own",
        )
    return (
        "overlap with the reference too little to register on it",
        f"only {100.0 * part:.0f} % of the reference's field overlap: its own is {where}, as {beside} beside it shows "
        f"({reason})",
    )


def _wcs_distance(reference: WCS | None, frame: WCS | None, shape: tuple[int, ...]) -> str:
    """Say how far the WCS put a frame from the reference, where they put it outside; else empty."""
    if reference is None or frame is None:
        return ""
    height, width = shape[:2]
    middle = [[(width - 1) / 2.0, (height - 1) / 2.0]]
    try:
        ours, theirs = (np.deg2rad(wcs.celestial.all_pix2world(middle, 0)[0]) for wcs in (reference, frame))
        side = math.radians(math.sqrt(abs(np.linalg.det(reference.celestial.pixel_scale_matrix))))
    except Exception as error:  # noqa: BLE001 - wcslib fails in many ways, and then says nothing here
        logger.debug("no distance: %s", error)
        return ""
    cosine = math.sin(ours[1]) * math.sin(theirs[1])
    cosine += math.cos(ours[1]) * math.cos(theirs[1]) * math.cos(ours[0] - theirs[0])
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if not (math.isfinite(angle) and side > 0.0) or angle / side < min(height, width):
        return ""
    return (
        f"no overlap with the reference: its WCS puts it {math.degrees(angle):.2f} degrees away, "
        f"{angle / side / max(height, width):.1f} fields; stack it on its own"
    )


def _cameras(group: Group, i: int) -> str:
    """Return which cards of the camera differ from the reference's, in brackets."""
    try:
        theirs, ours = (group.source(k).card_values(*CAMERA_CARDS) for k in (i, group.reference))
    except Exception as error:  # noqa: BLE001 - no more than a hint
        logger.debug("no camera: %s", error)
        return ""
    differ = [f"{key} {a!r} beside {b!r}" for key, a, b in zip(CAMERA_CARDS, theirs, ours, strict=True) if a != b]
    return f" ({'; '.join(differ)})" if differ else ""


def review_wcs(group: Group, spec: RegisterSpec, verdicts: Verdicts, _tools: Tools) -> None:
    """Say how many frames were placed by their WCS alone, and place none by one that was copied and that stars deny."""
    least = max(FEW, spec.min_matched)
    few = [i for i, v in verdicts.items() if v.ok and v.method == "stars" and _leans_on_wcs(group, i, least)]
    if few:
        group.notes.append(
            f"{len(few)} of {len(verdicts)} frames, such as {_name(group, few[0])}, show fewer than {least} "
            f"stars and were registered by these, with no more than scale and rotation from their WCS"
        )
    denied = [i for i, v in verdicts.items() if v.reason.startswith(DENIED)]
    if len(denied) >= SUMMED_UP:
        group.notes.append(f"the stars of {len(denied)} of {len(verdicts)} frames deny their WCS: copied from another?")
    alone = [i for i, v in verdicts.items() if v.ok and v.method == "wcs" and v.matched == 0]
    if not alone:
        return
    copies: defaultdict[Any, list[int]] = defaultdict(list)
    for i in verdicts:
        copies[_fingerprint(group.wcs(i))].append(i)
    copied: set[int] = set()
    for mark, members in copies.items():
        if mark is not None and len(members) >= SHARED_WCS:
            copied.update(members)
            if spec.mode == "auto" and any(_is_denied(group, i, spec, verdicts[i]) for i in members):
                for i in {*alone} & {*members} - {group.reference}:
                    reason = (
                        f"{len(members)} frames carry one and the same WCS, which the stars of others among them deny, "
                        "and it shows too few stars to be registered by; solve the frames one by one"
                    )
                    verdicts[i] = Registration(ok=False, method="wcs", reason=reason)
    placed = [i for i in alone if verdicts[i].ok]
    if spec.mode == "auto" and placed:
        group.notes.append(
            f"{len(placed)} of {len(verdicts)} frames, such as {_name(group, placed[0])}, were placed by their WCS "
            f"alone: fewer than {least} stars there"
        )
    same = [i for i in placed if i in copied]
    if same:
        group.notes.append(
            f"{len(same)} of the frames placed by their WCS carry one and the same WCS: it was copied from one, "
            "or is the mount's, and if the sky moved meanwhile the stack is smeared"
        )


def _leans_on_wcs(group: Group, i: int, least: int) -> bool:
    """Return whether a frame, or the reference, shows so few stars that a WCS in both was compared with them."""
    if not (group.scan(i).has_wcs and group.scan(group.reference).has_wcs):
        return False
    return min(len(group.scan(k).stars or ()) for k in (i, group.reference)) < least


def _fingerprint(wcs: WCS | None) -> Any:
    """Return what tells a WCS from another, None without one; a distortion is left aside."""
    if wcs is None:
        return None
    numbers = (wcs.wcs.crval, wcs.wcs.crpix, wcs.celestial.pixel_scale_matrix)
    return tuple(np.concatenate([np.ravel(each) for each in numbers]).tolist())


def _is_denied(group: Group, i: int, spec: RegisterSpec, verdict: Registration) -> bool:
    """Return whether the stars of a frame put it elsewhere than its WCS does."""
    if verdict.reason.startswith(DENIED):
        return True
    ours, theirs = group.wcs(group.reference), group.wcs(i)
    if not (verdict.ok and verdict.method == "stars") or ours is None or theirs is None:
        return False
    shape = group.source(i).shape
    by_wcs = register_wcs(ours, theirs, shape, spec)
    middle = np.array([[(shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0]])
    apart = transform_points(by_wcs.transform, middle) - transform_points(verdict.transform, middle)
    return by_wcs.ok and float(np.hypot(*apart[0])) > WCS_ERROR


def _spread(items: Sequence[int], most: int) -> list[int]:
    """Return at most so many items, evenly out of all."""
    if len(items) <= most:
        return list(items)
    return [items[k * len(items) // most] for k in range(most)]


def _name(group: Group, i: int) -> str:
    return Path(group.rows[i].name).name
