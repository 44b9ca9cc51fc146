"""A reference list that grows: stars that registered frames see at one place are added, and all places are averaged.

The list of one short exposure lacks stars that most other exposures show, because noise, a trail or a cloud hid them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.registration.transform import inside_frame, transform_points

SAME_PLACE: Final = 1.5  # px, that detections of one star may be apart
LEAST_SEEN: Final = 3  # frames that must show a star for it to be added
LEAST_SHARE: Final = 0.25  # of the frames whose fields hold its place
FINEST: Final = 0.005  # px, error of an averaged place


def grown_list(
    reference: StarList,
    frames: Sequence[tuple[StarList, np.ndarray]],
    shape: tuple[int, int],
) -> StarList:
    """Return the reference's stars with those added that other frames see, in the reference's pixels.

    Parameters
    ----------
    reference : StarList
        Of the reference.
    frames : sequence of (StarList, ndarray (3, 3) float64)
        Stars of registered frames, and the transforms from reference pixels to theirs.
    shape : tuple of int
        (H, W) of all, pixels.

    Returns
    -------
    StarList
        Brightest first; places are means with weights 1/error^2, errors those of the means, fluxes on the scale of the
        reference. A star of the reference stays whether others see it or not; another is added where at least three
        frames and a quarter of those that could show it do.
    """
    from zemosaic_phase3.registration.pair_kernels import mutual_pairs, star_grid

    place = reference.xy
    weight = reference.sigma**-2.0
    total = place * weight[:, None]
    flux, seen = reference.flux.copy(), np.ones(len(reference), np.int64)
    own = len(reference)
    for stars, matrix in frames:
        back = transform_points(np.linalg.inv(matrix), stars.xy)
        i, j, _ = mutual_pairs(np.eye(3), place, back, *star_grid(back, *shape), SAME_PLACE)
        dimming = float(np.median(stars.flux[j] / flux[i])) if len(i) else 1.0
        share = stars.sigma**-2.0
        total[i] += back[j] * share[j, None]
        weight[i] += share[j]
        flux[i] += (stars.flux[j] / dimming - flux[i]) / (seen[i] + 1)
        seen[i] += 1
        new = np.ones(len(stars), bool)
        new[j] = False
        total = np.vstack((total, back[new] * share[new, None]))
        weight, flux = np.append(weight, share[new]), np.append(flux, stars.flux[new] / dimming)
        seen = np.append(seen, np.ones(int(new.sum()), np.int64))
        place = total / weight[:, None]
    could = np.ones(len(place), np.int64)
    for _, matrix in frames:
        could += inside_frame(transform_points(matrix, place), shape)
    chosen = (seen >= np.maximum(LEAST_SEEN, LEAST_SHARE * could)) & inside_frame(place, shape)
    chosen[:own] = True
    order = np.flatnonzero(chosen)[np.argsort(-flux[chosen], kind="stable")]
    width = float(np.median(reference.fwhm)) if own else math.nan
    return StarList(
        place[order, 0], place[order, 1], flux[order], np.full(len(order), width), np.zeros(len(order)),
        np.hypot(weight[order] ** -0.5, FINEST),
    )  # fmt: skip
