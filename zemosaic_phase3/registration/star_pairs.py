"""Pairs of stars that a transform brings together, and how likely they are by chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.methods import TransformName
from zemosaic_phase3.registration.false_alarms import Evidence, Tried, log10_of_false_alarms
from zemosaic_phase3.registration.transform import FREE_PAIRS, grid_points, inside_frame, robust_fit, transform_points

if TYPE_CHECKING:
    from zemosaic_phase3.detection.star_finder import StarList


STATIONARY_RADIUS: Final = 0.5  # px, two detections closer than this did not move between the frames
MOVED: Final = 1.0  # px, a sky that moved by more than this cannot explain stationary detections
START_RADIUS: Final = 6.0  # px, search radius around the stars of a fresh hypothesis
MIN_RADIUS: Final = 0.6  # px, the search radius never shrinks below this
MAX_LOG10_CHANCE: Final = -6.0  # a match more likely than 1e-6 under chance is not a match


RING: Final = (12.0, 60.0)  # px, around a star, where others tell how dense its neighbourhood is


class StarGrid(NamedTuple):
    """Stars in cells, see :func:`registration.pair_kernels.star_grid`."""

    first: np.ndarray
    stars: np.ndarray
    cell: float
    columns: int


class Catalogue(NamedTuple):
    """Star positions (n, 2) px, errors (n,) px and fluxes (n,), brightest first."""

    xy: np.ndarray
    sigma: np.ndarray
    flux: np.ndarray


class Match(NamedTuple):
    """A refined hypothesis and its evidence; distances in pixels."""

    matrix: np.ndarray
    reference_index: np.ndarray
    frame_index: np.ndarray
    rms: float
    radius: float
    reference_visible: int  # reference stars inside the frame's field
    frame_visible: int  # frame stars inside the reference's field
    log10_chance: float
    corner_error: float  # predicted one-sigma error at the worst corner of the overlap

    @property
    def matched(self) -> int:
        """Number of pairs."""
        return len(self.reference_index)

    @property
    def fraction(self) -> float:
        """Pairs per star that both frames could show."""
        return self.matched / max(1, min(self.reference_visible, self.frame_visible))


class Pair:
    """Reference and frame catalogues that are compared, with the frame's stars sorted into cells."""

    def __init__(self, reference: Catalogue, frame: Catalogue, shape: tuple[int, int], kind: TransformName) -> None:
        from zemosaic_phase3.registration.pair_kernels import star_grid

        # Copies, so that all are of one type: kernels are compiled once.
        self.reference, self.frame = (
            Catalogue(*(np.array(c, np.float64, order="C") for c in s)) for s in (reference, frame)
        )
        self.shape, self.kind = shape, kind
        self.grid: StarGrid = StarGrid(*star_grid(self.frame.xy, *shape))

    @staticmethod
    def of(reference: StarList, frame: StarList, shape: tuple[int, ...], kind: TransformName = "similarity") -> Pair:
        """Compare two star lists."""
        return Pair(
            Catalogue(reference.xy, reference.sigma, reference.flux),
            Catalogue(frame.xy, frame.sigma, frame.flux),
            (int(shape[0]), int(shape[1])),
            kind,
        )

    def modelled(self, kind: TransformName) -> Pair:
        """Return the same stars for another model."""
        return Pair(self.reference, self.frame, self.shape, kind)

    def without(self, reference_index: np.ndarray, frame_index: np.ndarray) -> Pair:
        """Leave some stars out of both catalogues."""
        reference, frame = (
            Catalogue(np.delete(stars.xy, index, axis=0), np.delete(stars.sigma, index), np.delete(stars.flux, index))
            for stars, index in ((self.reference, reference_index), (self.frame, frame_index))
        )
        return Pair(reference, frame, self.shape, self.kind)


def mutual_neighbours(pair: Pair, matrix: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return reference index, frame index and distance (px) of mutually nearest stars within ``radius`` (<= 8 px)."""
    from zemosaic_phase3.registration.pair_kernels import mutual_pairs

    i, j, distance = mutual_pairs(plain(matrix), pair.reference.xy, pair.frame.xy, *pair.grid, radius)
    return i, j, distance


def plain(matrix: np.ndarray) -> np.ndarray:
    """Return a matrix as kernels take it."""
    return np.array(matrix, np.float64, order="C")


def shrink(pair: Pair, matrix: np.ndarray, kind: TransformName, radius: float) -> tuple[np.ndarray, float]:
    """Alternate matching and fitting while the search radius shrinks as far as true pairs allow.

    Pairs beyond what the star density gives by chance are counted at each radius; a smaller radius that loses more
    than a fifth of them cuts into the true residuals and is not taken.
    """
    from zemosaic_phase3.registration.pair_kernels import shrink_similarity

    if kind == "similarity":
        ours, theirs = pair.reference, pair.frame
        found_matrix, found_radius = shrink_similarity(
            plain(matrix), ours.xy, ours.sigma, theirs.xy, theirs.sigma, *pair.grid,
            float(pair.shape[0] * pair.shape[1]), radius, MIN_RADIUS,
        )  # fmt: skip
        return found_matrix, found_radius
    density = len(pair.frame.xy) / float(pair.shape[0] * pair.shape[1])
    true_pairs = 0.0
    while True:
        refitted, found, before = matrix, 0, None
        for _ in range(3):
            i, j, _ = mutual_neighbours(pair, refitted, radius)
            if before is not None and np.array_equal(i, before[0]) and np.array_equal(j, before[1]):
                break  # the same pairs give the same fit
            found, before = len(i), (i, j)
            fit = None
            if found > FREE_PAIRS[kind]:
                sigma = np.hypot(pair.reference.sigma[i], pair.frame.sigma[j])
                fit = robust_fit(kind, pair.reference.xy[i], pair.frame.xy[j], sigma, rounds=3)
            if fit is None:
                return matrix, radius if true_pairs == 0.0 else radius / 0.6
            refitted = fit[0]
        excess = found * (1.0 - min(1.0, len(pair.reference.xy) * density * math.pi * radius**2 / found))
        if true_pairs > 0.0 and excess < 0.8 * true_pairs:
            return matrix, radius / 0.6
        matrix, true_pairs = refitted, max(excess, 1e-9)
        if radius * 0.6 < MIN_RADIUS:
            return matrix, radius
        radius *= 0.6


def refine(pair: Pair, hypothesis: np.ndarray, tried: Tried) -> Match | None:
    """Refine one hypothesis on the full catalogues: similarity first, then the model asked for."""
    models: tuple[TransformName, ...] = ("similarity",) if pair.kind == "similarity" else ("similarity", pair.kind)
    matrix, radius = hypothesis, START_RADIUS
    for kind in models:
        matrix, radius = shrink(pair, matrix, kind, START_RADIUS)
    i, j, _ = mutual_neighbours(pair, matrix, radius)
    if len(i) <= FREE_PAIRS[pair.kind]:
        return None
    fit = _fitted(pair, i, j)
    if fit is None:
        return None
    matrix, keep = fit
    return evidence(pair, matrix, i[keep], j[keep], radius, tried, hypothesis)


def _fitted(pair: Pair, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Fit the pair's model to pairs of stars; return it and the mask of pairs kept."""
    from zemosaic_phase3.registration.pair_kernels import fit_similarity

    source, target = pair.reference.xy[i], pair.frame.xy[j]
    if pair.kind != "similarity":
        return robust_fit(pair.kind, source, target, np.hypot(pair.reference.sigma[i], pair.frame.sigma[j]))
    matrix, keep = np.eye(3), np.empty(len(i), np.bool_)
    variance = pair.reference.sigma[i] ** 2 + pair.frame.sigma[j] ** 2
    return (matrix, keep) if fit_similarity(source, target, variance, matrix, keep, 10) else None


def evidence(
    pair: Pair, matrix: np.ndarray, i: np.ndarray, j: np.ndarray, radius: float, tried: Tried, hypothesis: np.ndarray
) -> Match | None:
    """Measure how well a transform is supported by the pairs (i, j)."""
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return None
    mapped = transform_points(matrix, pair.reference.xy)
    visible = inside_frame(mapped, pair.shape)
    frame_visible = int(np.count_nonzero(inside_frame(transform_points(inverse, pair.frame.xy), pair.shape)))
    grid = grid_points(pair.shape, 17)
    overlap = grid[inside_frame(transform_points(matrix, grid), pair.shape)]
    free = FREE_PAIRS[pair.kind]
    if len(overlap) == 0 or len(i) <= free:
        return None
    source = pair.reference.xy[i]
    squared = np.sum((mapped[i] - pair.frame.xy[j]) ** 2, axis=1)
    rms = math.sqrt(float(np.mean(squared)))
    area = len(overlap) / len(grid) * pair.shape[0] * pair.shape[1]
    moved = np.sqrt(np.max(np.sum((transform_points(hypothesis, source) - mapped[i]) ** 2, axis=1)))
    found = Evidence(
        matched=len(i),
        candidates=max(int(np.count_nonzero(visible)), len(i)),
        free=free,
        density=_local_density(pair, mapped[visible], frame_visible / area),
        squares=float(squared.sum()),
        radius=radius,
        reach=max(START_RADIUS, float(moved)),
    )
    centre = source.mean(axis=0)
    spread = float(np.sum((source - centre) ** 2))
    lever = float(np.max(np.sum((overlap - centre) ** 2, axis=1)))
    # What few stars leave over is less than their errors: each fitted number takes some of it.
    error = rms * math.sqrt(len(i) / (len(i) - free))
    corner_error = error * math.sqrt(1.0 / len(i) + lever / spread) if spread > 0.0 else math.inf
    return Match(
        matrix, i, j, rms, radius, int(np.count_nonzero(visible)), frame_visible, log10_of_false_alarms(found, tried),
        corner_error,
    )  # fmt: skip


def _local_density(pair: Pair, xy: np.ndarray, density: float) -> float:
    """Return the density of frame stars, px^-2, that unrelated places (n, 2) px have to reckon with.

    That of the overlap, or the mean one in rings around the places where that is higher: in a cluster, neighbours are
    cheap.
    """
    from zemosaic_phase3.registration.pair_kernels import ring_counts

    inner, outer = RING
    around = ring_counts(np.array(xy, np.float64, order="C"), pair.frame.xy, *pair.grid, inner, outer)
    return max(density, float(np.mean(around)) / (math.pi * (outer**2 - inner**2))) if len(xy) else density


def without_defects(reference: StarList, frame: StarList, matrix: np.ndarray) -> tuple[StarList, StarList]:
    """Leave out detections that kept their pixel while the sky moved: displaced, they would no longer be known."""
    from zemosaic_phase3.registration.pair_kernels import nearest_stars, star_grid

    if not (len(reference) and len(frame)):
        return reference, frame
    moved = np.hypot(*(transform_points(matrix, reference.xy) - reference.xy).T) > MOVED
    theirs = frame.xy
    width, height = (int(v) for v in np.maximum(theirs.max(axis=0), 0.0) + 1.0)
    nearest = nearest_stars(reference.xy, theirs, *star_grid(theirs, height, width), STATIONARY_RADIUS)
    defect = (nearest >= 0) & moved
    stays = np.ones(len(frame), bool)
    stays[nearest[defect]] = False
    return reference.select(~defect), frame.select(stays)
