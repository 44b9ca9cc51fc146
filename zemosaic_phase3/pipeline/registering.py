"""How the frames of a group lie on their reference, and which frame that is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.pipeline.borrowing import borrow
from zemosaic_phase3.pipeline.group import Group, Kept, frame_fault
from zemosaic_phase3.pipeline.measuring import known_or_scanned
from zemosaic_phase3.pipeline.reference_choice import choose_by_gains, choose_by_stars
from zemosaic_phase3.pipeline.scan import Scan, scan_bytes
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.records import Registration
from zemosaic_phase3.registration.few_stars import FEW, check_by_stars, confirm_by_stars
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.solutions import solution_of
from zemosaic_phase3.registration.wcs import register_stars_seeded, register_wcs
from zemosaic_phase3.runtime.limits import available_memory
from zemosaic_phase3.runtime.threads import parallel_map
from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from astropy.wcs import WCS

logger = logging.getLogger("ZeMosaicWorker")

FEW_STARS: Final = 0.5  # of the stars that a typical frame shows; fewer are next to none
MOST_THREADS: Final = 4  # that register: on 16 cores more wait for the interpreter's lock, and take longer than one
MOST_REFERENCES: Final = 3  # frames tried as reference before the run settles for the best of them


class Tools(NamedTuple):
    """What a review of verdicts may do: measure a frame as the others were, and register one on the reference.

    ``workers``: threads; ``scanning``: of them, that may measure a frame at a time.
    """

    scan: Callable[[FrameSource], Scan]
    register: Callable[[int], Registration]
    workers: int
    scanning: int


Review = Callable[[Group, RegisterSpec, dict[int, Registration], Tools], None]
"""Looks at the verdicts on the frames of a group, and may change them."""
Chain = Callable[[Group, RegisterSpec, dict[int, Registration], int], None]
"""Registers through others what failed on the reference; the last argument is the number of threads."""


def drop_starless(group: Group, spec: RegisterSpec) -> None:
    """Leave out frames that show next to no stars where most of the others do: clouds, not a field without stars.

    Such a frame would be placed by its header's WCS alone, and stacked as if it showed the field. A field where nobody
    finds stars is registered by the WCS as before. The reference that was named stays.
    """
    if spec.mode != "auto":  # by stars alone it cannot be registered, by the WCS alone it is wanted
        return
    counts = {i: len(found) for i in group.usable if (found := group.scan(i).stars) is not None}
    if not counts:
        return
    typical = float(np.median(list(counts.values())))
    few = max(FEW, spec.min_matched)
    if typical < few:
        return
    for i, count in counts.items():
        if count < min(few, FEW_STARS * typical) and i != group.reference:
            reason = (
                f"{count} {'star' if count == 1 else 'stars'} in the frame, at least {few} are needed, "
                f"and the others show {typical:.0f}: clouds? Registration by the WCS would take it"
            )
            group.rows[i].registration = Registration(ok=False, method="stars", reason=reason)
            group.rows[i].drop(f"not registered: {reason}")


def register_group(
    group: Group,
    spec: RegisterSpec,
    *,
    workers: int = 1,
    progress: Callback | None = None,
    kept: Kept | None = None,
    review: Review | None = None,
    chain: Chain | None = None,
) -> None:
    """Register every frame on the reference, choosing one where none was named; fills the rows' registrations.

    The star lists and the WCS have served then and are given up. A reference that was chosen here must bring in most of
    the frames: if it does not (it shows another field, or is the one spoilt frame), others are tried, and the one with
    the most frames is kept. ``chain`` and ``review`` then see the verdicts and may change them; see
    ``pipeline.chaining`` and ``pipeline.failed_frames``.

    Raises
    ------
    NoFramesError
        The named reference could not be used, or registration by the WCS was asked for and the reference has none.
    """
    usable = group.usable
    if group.reference >= 0 and group.reference not in usable:
        row = group.rows[group.reference]
        raise NoFramesError(f"the reference {row.name} cannot be used: {row.reason}")
    if spec.mode == "wcs" and len(usable) > 1:  # a frame alone needs none
        _require_wcs(group)
    drop_starless(group, spec)
    if group.reference >= 0:
        verdicts = _register_on(group, group.reference, spec, workers, progress, kept)
    else:
        group.reference, verdicts = _best_reference(group, spec, workers, progress, kept)
        verdicts = _better_reference(group, spec, verdicts, workers, progress, kept)
    borrow(group, spec, verdicts, workers)
    if chain is not None:
        chain(group, spec, verdicts, workers)
    if review is not None:
        review(group, spec, verdicts, _tools(group, spec, workers, kept))
    _tell_distortion([verdict for verdict in verdicts.values() if verdict.ok])
    for i, verdict in verdicts.items():
        group.rows[i].registration = verdict
        group.rows[i].scan = replace(group.scan(i), stars=None, wcs=None)
        if not verdict.ok:
            group.rows[i].drop(f"not registered: {verdict.reason}")


def _tools(group: Group, spec: RegisterSpec, workers: int, kept: Kept | None) -> Tools:
    measure = group.scan(group.reference).stats is not None

    def register(i: int) -> Registration:
        return _known_or_registered(group, i, group.reference, group.wcs(group.reference), spec, kept)

    return Tools(
        lambda source: known_or_scanned(source, spec, kept, find_stars=True, measure=measure),
        register,
        workers,
        max(1, min(workers, available_memory() // 2 // scan_bytes(group.source(group.reference)))),
    )


def _tell_distortion(verdicts: Sequence[Registration]) -> None:
    """Log what the distortion of the headers adds to the transforms."""
    largest = [float(np.abs(v.distortion).max()) for v in verdicts if v.distortion is not None]
    if largest:
        logger.info(
            "distortion (SIP) of the headers used for %d of %d frames, up to %.2f px beside the transform",
            len(largest), len(verdicts), max(largest),
        )  # fmt: skip


def _require_wcs(group: Group) -> None:
    """Raise NoFramesError where the reference has no WCS, so that every other frame would fail."""
    if group.reference >= 0:
        if not group.scan(group.reference).has_wcs:
            name = group.rows[group.reference].name
            raise NoFramesError(
                f"the reference {name} has no celestial WCS, so nothing can be registered on it by the WCS; "
                "use --register stars, or name a reference that is plate-solved"
            )
    elif not any(group.scan(i).has_wcs for i in group.usable):
        raise NoFramesError(
            f"none of {len(group.usable)} frames has a celestial WCS; use --register stars, or plate-solve the frames"
        )


def _best_reference(
    group: Group, spec: RegisterSpec, workers: int, progress: Callback | None, kept: Kept | None
) -> tuple[int, dict[int, Registration]]:
    """Return the first of a few references that half of the frames register on, else the best of them."""
    candidates = group.usable
    best, best_verdicts, most = -1, {}, 0
    for _ in range(MOST_REFERENCES):
        reference = _choose(group, candidates, spec)
        verdicts = _register_on(group, reference, spec, workers, progress, kept)
        count = sum(verdict.ok for verdict in verdicts.values())
        if count > most:
            best, best_verdicts, most = reference, verdicts, count
        # What did register shows the same field, and would fare no better.
        candidates = [i for i in candidates if not verdicts[i].ok]
        if 2 * count >= len(verdicts) or not candidates:
            break
        logger.info("%d of %d frames register on %s", count, len(verdicts), group.rows[reference].name)
    return best, best_verdicts


def _choose(group: Group, candidates: list[int], spec: RegisterSpec) -> int:
    """Clear, sharp, central, and with a WCS where any frame has one: the tile gets the reference's."""
    if spec.mode in ("auto", "wcs"):
        candidates = [i for i in candidates if group.scan(i).has_wcs] or candidates
    return choose_by_stars(group, candidates)


def _better_reference(
    group: Group,
    spec: RegisterSpec,
    verdicts: dict[int, Registration],
    workers: int,
    progress: Callback | None,
    kept: Kept | None,
) -> dict[int, Registration]:
    """Register anew on the frame that the gains of all show to be the best, if as many frames register on it."""
    before = group.reference
    better = choose_by_gains(group, verdicts)
    if better == before:
        return verdicts
    again = _register_on(group, better, spec, workers, progress, kept)
    if sum(v.ok for v in again.values()) < sum(v.ok for v in verdicts.values()):
        return verdicts
    logger.info("reference %s is clearer, sharper or more central than %s", *_names(group, better, before))
    group.reference = better
    return again


def _names(group: Group, *frames: int) -> list[str]:
    return [group.rows[i].name for i in frames]


def _register_on(
    group: Group, reference: int, spec: RegisterSpec, workers: int, progress: Callback | None, kept: Kept | None
) -> dict[int, Registration]:
    """Verdict on every usable frame against one reference."""
    usable = group.usable
    wcs = group.wcs(reference)
    done = iter(range(1, len(usable) + 1))

    def register(i: int) -> Registration:
        if i == reference:
            verdict = with_solution(group, i, wcs, Registration(ok=True, method="reference", rms_px=0.0))
        elif spec.mode == "none":
            verdict = Registration(ok=True)
        else:
            try:
                verdict = _known_or_registered(group, i, reference, wcs, spec, kept)
            except Exception as exc:  # noqa: BLE001 - a wall: what goes wrong in one frame is that frame's reason
                verdict = Registration(ok=False, reason=frame_fault(exc, group.rows[i].name).reason)
        notify(progress, "register", next(done), len(usable))
        return verdict

    return dict(zip(usable, parallel_map(register, usable, min(workers, MOST_THREADS)), strict=True))


def _known_or_registered(
    group: Group, i: int, reference: int, wcs: WCS | None, spec: RegisterSpec, kept: Kept | None
) -> Registration:
    if kept is None:
        return with_solution(group, i, wcs, register_frame(group, i, reference, wcs, spec))
    pair = group.source(i), group.source(reference)
    verdict = kept.registered(*pair, spec)
    if verdict is None:
        verdict = with_solution(group, i, wcs, register_frame(group, i, reference, wcs, spec))
        kept.keep_registered(*pair, spec, verdict)
    return verdict


def register_frame(group: Group, i: int, reference: int, reference_wcs: WCS | None, spec: RegisterSpec) -> Registration:
    """Register by the stars, seeded by the WCS; by the WCS alone where asked for, or where few stars do not deny it."""
    shape = group.source(i).shape
    wcs, by_wcs = group.wcs(i), None
    if reference_wcs is not None and wcs is not None:
        by_wcs = register_wcs(reference_wcs, wcs, shape, spec)
    known, stars = group.scan(reference).stars, group.scan(i).stars
    if known is None or stars is None:
        who = "the reference" if reference_wcs is None else "the frame"
        reason = f"{who} has no celestial WCS; use --register stars"
        return by_wcs or Registration(ok=False, method="wcs", reason=reason)
    seed = by_wcs if by_wcs is not None and by_wcs.ok else None
    if seed is None:
        return register_stars(known, stars, shape, spec)
    if min(len(known), len(stars)) < max(FEW, spec.min_matched):
        return check_by_stars(known, stars, shape, spec, seed)
    by_stars = register_stars_seeded(known, stars, shape, spec, seed)
    return by_stars if by_stars.ok else confirm_by_stars(known, stars, shape, seed) or by_stars


def with_solution(group: Group, i: int, reference_wcs: WCS | None, verdict: Registration) -> Registration:
    """Add to a verdict by the stars what the frame's WCS says of the reference's image.

    The WCS of a frame that was placed by it says no more than the reference's.
    """
    if not verdict.ok or verdict.method not in ("stars", "reference") or reference_wcs is None:
        return verdict
    wcs = group.wcs(i)
    if wcs is None:
        return verdict
    return replace(verdict, solution=solution_of(wcs, reference_wcs, verdict, group.source(i).shape))
