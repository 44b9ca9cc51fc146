"""What frames of a session borrow from each other: a first guess from those before and after, and stars.

A frame that fails alone is tried again. Where it lies is guessed from its neighbours in time, and its stars are
compared with a list to which all registered frames added theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.records import Registration
from zemosaic_phase3.registration.grown_list import grown_list
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.runtime.threads import parallel_map

if TYPE_CHECKING:
    from zemosaic_phase3.detection.star_finder import StarList
    from zemosaic_phase3.spec import RegisterSpec

LEAST_LENDERS: Final = 3  # registered frames, beside the reference, that make a list
MOST_LENDERS: Final = 200  # frames that lend their stars, spread over the session


def borrow(group: Group, spec: RegisterSpec, verdicts: dict[int, Registration], workers: int) -> None:
    """Try failed frames again; changes the verdicts of those that register then, and notes how many do.

    Parameters
    ----------
    group : Group
        Registered; the stars of its frames are known.
    spec : RegisterSpec
    verdicts : dict of int to Registration
        By frame; changed.
    workers : int
        Threads.

    Notes
    -----
    What a frame borrows depends on all others, so it is never kept for a next run. Frames with distortion lend nothing.
    """
    reference = group.scan(group.reference).stars
    if spec.mode not in ("auto", "stars") or reference is None:
        return
    by_stars = {i: v for i, v in verdicts.items() if v.ok and v.method == "stars" and _stars(group, i)}
    lenders = {i: v.transform for i, v in by_stars.items() if v.distortion is None}
    failed = [i for i, v in verdicts.items() if not v.ok and len(_stars(group, i) or ()) >= spec.min_matched]
    if len(lenders) < LEAST_LENDERS or not failed:
        return
    shape = group.source(group.reference).shape
    size = (int(shape[0]), int(shape[1]))
    chosen = list(lenders)
    if len(chosen) > MOST_LENDERS:
        chosen = [chosen[k * len(chosen) // MOST_LENDERS] for k in range(MOST_LENDERS)]
    lent = [(stars, lenders[i]) for i in chosen if (stars := _stars(group, i)) is not None]
    known = grown_list(reference, lent, size)
    order = _in_time(group, list(verdicts))
    placed = {k: verdicts[i].transform for k, i in enumerate(order) if verdicts[i].ok}

    def again(i: int) -> Registration:
        stars, guess = _stars(group, i), _guess(placed, order.index(i), size)
        return verdicts[i] if stars is None else register_stars(known, stars, size, spec, guess)

    won = 0
    for i, found in zip(failed, parallel_map(again, failed, workers), strict=True):
        if found.ok:
            verdicts[i] = found
            won += 1
    if won:
        n = len(known) - len(reference)
        added = f", and with {n} stars that the reference does not show" if n else ""
        group.notes.append(
            f"{won} of {len(verdicts)} frames registered only with the help of those before and after them{added}"
        )


def _stars(group: Group, i: int) -> StarList | None:
    return group.scan(i).stars


def _normalised(matrix: np.ndarray) -> np.ndarray:
    return matrix / matrix[2, 2]


def _in_time(group: Group, frames: Sequence[int]) -> list[int]:
    """Return frames in the order of their exposures; in that of their files where one has no time."""
    starts = {i: group.scan(i).exposure.start for i in frames}
    if any(start is None for start in starts.values()):
        return list(frames)
    return sorted(frames, key=lambda i: (str(starts[i]), i))


def _guess(placed: dict[int, np.ndarray], k: int, size: tuple[int, int]) -> np.ndarray | None:
    """Return where the k-th frame should lie: between the one placed before it and the one after it."""
    before, after = max((p for p in placed if p < k), default=None), min((p for p in placed if p > k), default=None)
    if before is None or after is None:
        one = after if before is None else before
        return None if one is None else placed[one]
    first, second = _normalised(placed[before]), _normalised(placed[after])
    if abs(np.linalg.det(first[:2, :2] + second[:2, :2])) < 2.0:  # the mount was turned over between them
        return first if k - before <= after - k else second
    part = (k - before) / (after - before)
    middle = np.array([(size[1] - 1) / 2.0, (size[0] - 1) / 2.0, 1.0])
    blend = (1.0 - part) * first + part * second
    scale = np.sqrt(abs(np.linalg.det(blend[:2, :2])))
    wanted = (1.0 - part) * np.sqrt(abs(np.linalg.det(first[:2, :2]))) + part * np.sqrt(
        abs(np.linalg.det(second[:2, :2]))
    )
    at = blend @ middle
    blend[:2, :2] *= wanted / scale
    blend[:2, 2] += at[:2] - (blend @ middle)[:2]
    return blend
