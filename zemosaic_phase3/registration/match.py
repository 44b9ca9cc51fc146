"""Registration by stars: the transform that brings a frame onto the reference, and a verdict on it.

Stages, in order: :func:`detect_stars` once per frame, the choice of a reference (``pipeline.reference_choice``), then
:func:`register_stars` per frame, optionally seeded by :func:`registration.wcs.wcs_transform`; or
:func:`registration.wcs.register_wcs` alone.

A transform is a (3, 3) float64 matrix in homogeneous coordinates that maps a REFERENCE pixel ``(x, y, 1)`` to a
FRAME pixel, which is the direction resampling needs. Pixel coordinates are 0-based, centres at integers.

A fit is a verdict, never a guess: a frame fails, with its numbers, unless its match is far beyond what the density
of its stars would give by chance (see :func:`registration.false_alarms`).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.methods import TransformName
from zemosaic_phase3.records import Registration
from zemosaic_phase3.registration.asterisms import transform_hypotheses
from zemosaic_phase3.registration.false_alarms import Tried
from zemosaic_phase3.registration.star_pairs import (
    MAX_LOG10_CHANCE,
    MOVED,
    STATIONARY_RADIUS,
    Match,
    Pair,
    mutual_neighbours,
    refine,
)
from zemosaic_phase3.registration.transform import (
    FREE_PAIRS,
    PARAMETERS,
    fit_transform,
    grid_points,
    inside_frame,
    transform_points,
)
from zemosaic_phase3.spec import RegisterSpec

AGAIN: Final = Tried(1.0, 1.0)  # what is believed already, and refined once more
LEAST_STILL: Final = 6  # detections that did not move, to be taken for stars
MIN_FRACTION: Final = 0.2  # of the stars visible in both, that must have matched
MIN_FRACTION_STILL: Final = 0.7  # of the reference's stars, that must have matched if nothing moved
PAIRS_PER_PARAMETER: Final = 3  # matched stars that a model richer than a similarity needs
BIC_MARGIN: Final = 10.0  # by which a richer model must beat a simpler one
FAINT_MARGIN: Final = 1.3  # factor above a frame's faintest stars at which it is taken to be complete


def register_stars(
    reference: StarList,
    frame: StarList,
    shape: tuple[int, ...],
    spec: RegisterSpec,
    seed: np.ndarray | None = None,
) -> Registration:
    """Find the transform from reference pixels to frame pixels from two star lists, or say why there is none.

    Hypotheses come from the seed (its translation corrected by a vote of star offsets) and from triangles of bright
    stars; each is refined on all stars and judged. Detections that kept their pixel between the frames are first left
    out: if the rest of the sky moved, they were defects of the sensor.

    Parameters
    ----------
    reference, frame : StarList
        Stars of the reference and of the frame, brightest first.
    shape : tuple of int
        (H, W) of both frames, pixels.
    spec : RegisterSpec
        Model and limits.
    seed : ndarray (3, 3) float64, optional
        Approximate transform (from the WCS): good to 80 px in translation and some tenths of a degree.

    Returns
    -------
    Registration
        ``method`` "stars"; when ``ok`` is False, ``reason`` holds the numbers.

    Notes
    -----
    Triangles by side ratios: Groth 1986, AJ 91, 1244; nearest neighbours as in astroalign (Beroiz et al. 2020, A&C
    32, 100384). Ours differs in using orientation and size, votes, an overlap-aware test against chance, and no RNG.
    """
    need = max(spec.min_matched, FREE_PAIRS.get(spec.transform, FREE_PAIRS["similarity"]) + 1)
    for who, stars in (("reference", reference), ("frame", frame)):
        if len(stars) < need:
            return failed(f"{len(stars)} stars in the {who}, at least {need} are needed")
    pair = Pair.of(reference, frame, shape, "similarity" if spec.transform == "auto" else spec.transform)
    pair, match = _match_sky(pair, spec, seed)
    if spec.transform == "auto":
        pair, match = _simplest_model(pair, match, spec, seed)
    if match is None:
        return failed(f"no transform brings {len(frame)} stars onto {len(reference)} of the reference")
    reason = _objection(pair, match, spec)
    if reason:
        return failed(reason, match.matched, match.rms)
    return Registration(True, match.matrix, "stars", match.matched, match.rms, model=pair.kind)


def failed(reason: str, matched: int = 0, rms: float = math.nan, method: str = "stars") -> Registration:
    """Verdict on a frame that could not be registered, with what is known of the attempt."""
    return Registration(False, np.eye(3), method, matched, rms, reason)


def _match_sky(pair: Pair, spec: RegisterSpec, seed: np.ndarray | None) -> tuple[Pair, Match | None]:
    """Search without the detections that did not move; use them only if the sky did not move either.

    Returns the catalogues the match refers to, and the match.
    """
    i, j, _ = mutual_neighbours(pair, np.eye(3), STATIONARY_RADIUS)
    moving = pair.without(i, j)
    if len(i) < 3 or min(len(moving.reference.xy), len(moving.frame.xy)) < spec.min_matched:
        return pair, _search(pair, spec, seed)
    match = _search(moving, spec, seed)
    if match is None or _objection(moving, match, spec):
        return pair, _search(pair, spec, seed)
    still = pair.reference.xy[i]
    defect = np.hypot(*(transform_points(match.matrix, still) - still).T) > MOVED
    sky = pair.without(i[defect], j[defect])
    full = refine(sky, match.matrix, AGAIN)
    return (moving, match) if full is None or _objection(sky, full, spec) else (sky, full)


def _simplest_model(
    pair: Pair, match: Match | None, spec: RegisterSpec, seed: np.ndarray | None
) -> tuple[Pair, Match | None]:
    """Keep the similarity unless a richer model is far more probable on the same stars (or alone is believed at all).

    Compared by the Bayesian information criterion (Schwarz 1978, Ann. Stat. 6, 461) with the scatter unknown; a
    richer model must win by ``BIC_MARGIN``, "very strong" evidence in the scale of Kass & Raftery 1995.
    """
    for kind in ("affine", "homography"):
        richer = pair.modelled(kind)
        if match is None or _objection(pair, match, spec):
            richer, found = _match_sky(richer, spec, seed)
            better = found is not None and not _objection(richer, found, spec)
        else:
            found = refine(richer, match.matrix, AGAIN)
            better = (
                found is not None
                and found.matched >= PAIRS_PER_PARAMETER * PARAMETERS[kind]
                and not _objection(richer, found, spec)
                and _criterion(richer, found, kind) < _criterion(richer, found, pair.kind) - BIC_MARGIN
            )
        if better:
            pair, match = richer, found
    return pair, match


def _criterion(pair: Pair, match: Match, kind: TransformName) -> float:
    """Bayesian information criterion of a model refitted to the pairs of a match."""
    i, j = match.reference_index, match.frame_index
    sigma = np.hypot(pair.reference.sigma[i], pair.frame.sigma[j])
    source, target = pair.reference.xy[i], pair.frame.xy[j]
    matrix = fit_transform(kind, source, target, sigma**-2.0)
    if matrix is None:
        return math.inf
    squared = np.sum(((transform_points(matrix, source) - target) / sigma[:, None]) ** 2)
    n = 2 * len(i)
    return n * math.log(max(float(squared), 1e-12) / n) + PARAMETERS[kind] * math.log(n)


def _search(pair: Pair, spec: RegisterSpec, seed: np.ndarray | None) -> Match | None:
    """First hypothesis that stands, else the least improbable one."""
    best: Match | None = None
    for batch in transform_hypotheses(pair, seed, spec.max_scale_error):
        for matrix in batch.matrices:
            match = refine(pair, matrix, batch.tried)
            if match is None:
                continue
            if not _objection(pair, match, spec):
                return match
            if best is None or match.log10_chance < best.log10_chance:
                best = match
    return best


def _objection(pair: Pair, match: Match, spec: RegisterSpec) -> str:
    """Why a match is not believed, with its numbers; empty if it is."""
    counts = f"{match.reference_visible} (reference) and {match.frame_visible} (frame)"
    visible = f"{match.matched} stars matched of {counts}"
    if match.log10_chance > MAX_LOG10_CHANCE:
        return (
            f"{visible}, rms {match.rms:.2f} px: explained by chance "
            f"(p = 1e{match.log10_chance:+.1f}, limit 1e{MAX_LOG10_CHANCE:+.0f})"
        )
    if match.matched < spec.min_matched:
        return f"{visible}, at least {spec.min_matched} are needed"
    if match.fraction < MIN_FRACTION:
        return f"{visible}: {100 * match.fraction:.0f} % of those visible in both, limit {100 * MIN_FRACTION:.0f} %"
    if match.rms > spec.max_rms_px:
        return f"rms {match.rms:.2f} px of {match.matched} stars, limit {spec.max_rms_px:g} px"
    if match.corner_error > spec.max_rms_px:
        return (
            f"{visible} leave {match.corner_error:.2f} px of uncertainty at the corner of the overlap, "
            f"limit {spec.max_rms_px:g} px"
        )
    implausible = implausible_shape(match.matrix, pair.shape, spec)
    if implausible:
        return f"{implausible} ({visible})"
    source = pair.reference.xy[match.reference_index]
    shift = np.hypot(*(transform_points(match.matrix, source) - source).T)
    if np.max(shift) < STATIONARY_RADIUS:
        if match.matched < LEAST_STILL:
            return f"{visible} and did not move, at least {LEAST_STILL} are needed: hot pixels do not move either"
        expected = _expected_stars(pair, match)
        if match.matched < MIN_FRACTION_STILL * expected:
            return (
                f"{match.matched} detections did not move while {expected} stars of the reference should "
                f"be visible: hot pixels, not sky (limit {100 * MIN_FRACTION_STILL:.0f} %)"
            )
    return ""


def _expected_stars(pair: Pair, match: Match) -> int:
    """Stars of the reference that a frame must show, if its faintest star and the dimming of those matched are right.

    Clouds take the faint stars and dim the others: what is left is the brighter part of the reference's list. Hot
    pixels are dimmed by nothing, and any number of brighter stars is missing.
    """
    dimming = float(np.median(pair.frame.flux[match.frame_index] / pair.reference.flux[match.reference_index]))
    visible = inside_frame(transform_points(match.matrix, pair.reference.xy), pair.shape)
    limit = FAINT_MARGIN * float(np.quantile(pair.frame.flux, 0.05))
    return int(np.count_nonzero(visible & (pair.reference.flux * dimming > limit)))


def implausible_shape(matrix: np.ndarray, shape: tuple[int, int], spec: RegisterSpec) -> str:
    """Judge scale, shear and orientation at the centre and the corners of the reference; empty if plausible."""
    if matrix[2, 0] == 0.0 and matrix[2, 1] == 0.0 and matrix[2, 2] == 1.0:
        return _implausible_jacobian(matrix[None, :2, :2], spec)
    points = np.vstack((grid_points(shape, 2), grid_points(shape, 3)[4:5]))
    depth = points @ matrix[2, :2] + matrix[2, 2]
    if np.any(depth <= 0.0):
        return "the perspective folds the field"
    mapped = transform_points(matrix, points)
    jacobian = (matrix[None, :2, :2] - mapped[:, :, None] * matrix[None, None, 2, :2]) / depth[:, None, None]
    return _implausible_jacobian(jacobian, spec)


def _implausible_jacobian(jacobian: np.ndarray, spec: RegisterSpec) -> str:
    """Judge the derivatives (n, 2, 2) of a transform at some places."""
    a, b, c, d = jacobian[:, 0, 0], jacobian[:, 0, 1], jacobian[:, 1, 0], jacobian[:, 1, 1]
    determinant = a * d - b * c
    if np.any(determinant <= 0.0):
        return "the transform mirrors the field"
    scale = np.sqrt(determinant)
    worst = float(scale[np.argmax(np.abs(scale - 1.0))])
    if abs(worst - 1.0) > spec.max_scale_error:
        return f"scale {worst:.4f}, limit 1 +- {spec.max_scale_error:g}"
    # Singular values of a 2 x 2 matrix: half of the sum and of the difference of these two lengths.
    turned, mirrored = np.hypot(a + d, c - b), np.hypot(a - d, b + c)
    shear = float(np.max((turned + mirrored) / (turned - mirrored)))
    if shear > 1.0 + 2.0 * spec.max_scale_error:
        return f"axis ratio {shear:.4f}, limit {1.0 + 2.0 * spec.max_scale_error:g}"
    return ""
