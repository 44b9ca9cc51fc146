"""Pairs of stars that a transform brings together, and how likely they are by chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_phase3.methods import TransformName
from zemosaic_phase3.registration.transform import FREE_PAIRS, grid_points, inside_frame, robust_fit, transform_points

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

    from zemosaic_phase3.detection.star_finder import StarList


STATIONARY_RADIUS: Final = 0.5  # px, two detections closer than this did not move between the frames
MOVED: Final = 1.0  # px, a sky that moved by more than this cannot explain stationary detections
START_RADIUS: Final = 6.0  # px, search radius around the stars of a fresh hypothesis
MIN_RADIUS: Final = 0.6  # px, the search radius never shrinks below this
MAX_LOG10_CHANCE: Final = -6.0  # a match more likely than 1e-6 under chance is not a match


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
    """Reference and frame catalogues that are compared, with the frame's search tree."""

    def __init__(self, reference: Catalogue, frame: Catalogue, shape: tuple[int, int], kind: TransformName) -> None:
        from scipy.spatial import cKDTree

        self.reference, self.frame, self.shape, self.kind = reference, frame, shape, kind
        self.tree: cKDTree = cKDTree(frame.xy)

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
    """Return reference index, frame index and distance (px) of mutually nearest stars within ``radius``."""
    distance, nearest = pair.tree.query(transform_points(matrix, pair.reference.xy), distance_upper_bound=radius)
    index = np.flatnonzero(np.isfinite(distance))
    order = index[np.lexsort((index, distance[index]))]
    _, first = np.unique(nearest[order], return_index=True)
    chosen = np.sort(order[first])
    return chosen, nearest[chosen], distance[chosen]


def shrink(pair: Pair, matrix: np.ndarray, kind: TransformName, radius: float) -> tuple[np.ndarray, float]:
    """Alternate matching and fitting while the search radius shrinks as far as true pairs allow.

    Pairs beyond what the star density gives by chance are counted at each radius; a smaller radius that loses more
    than a fifth of them cuts into the true residuals and is not taken.
    """
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


def refine(pair: Pair, matrix: np.ndarray, trials: int) -> Match | None:
    """Refine one hypothesis on the full catalogues: similarity first, then the model asked for."""
    models: tuple[TransformName, ...] = ("similarity",) if pair.kind == "similarity" else ("similarity", pair.kind)
    radius = START_RADIUS
    for kind in models:
        matrix, radius = shrink(pair, matrix, kind, START_RADIUS)
    i, j, _ = mutual_neighbours(pair, matrix, radius)
    if len(i) <= FREE_PAIRS[pair.kind]:
        return None
    sigma = np.hypot(pair.reference.sigma[i], pair.frame.sigma[j])
    fit = robust_fit(pair.kind, pair.reference.xy[i], pair.frame.xy[j], sigma)
    if fit is None:
        return None
    matrix, keep = fit
    return evidence(pair, matrix, i[keep], j[keep], radius, trials)


def evidence(pair: Pair, matrix: np.ndarray, i: np.ndarray, j: np.ndarray, radius: float, trials: int) -> Match | None:
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
    if len(overlap) == 0 or len(i) <= FREE_PAIRS[pair.kind]:
        return None
    source = pair.reference.xy[i]
    rms = math.sqrt(float(np.mean(np.sum((transform_points(matrix, source) - pair.frame.xy[j]) ** 2, axis=1))))
    area = len(overlap) / len(grid) * pair.shape[0] * pair.shape[1]
    probability = _chance_of_neighbour(pair, mapped[visible], radius, frame_visible / area)
    log10_chance = log10_of_chance(
        len(i) - FREE_PAIRS[pair.kind],
        int(np.count_nonzero(visible)) - FREE_PAIRS[pair.kind],
        probability,
        # Refining searched the cell of the start radius for the best place of the final one.
        trials * (START_RADIUS / radius) ** 2,
    )
    centre = source.mean(axis=0)
    spread = float(np.sum((source - centre) ** 2))
    reach = float(np.max(np.sum((overlap - centre) ** 2, axis=1)))
    corner_error = rms * math.sqrt(1.0 / len(i) + reach / spread) if spread > 0.0 else math.inf
    return Match(
        matrix, i, j, rms, radius, int(np.count_nonzero(visible)), frame_visible, log10_chance, corner_error
    )  # fmt: skip


def _chance_of_neighbour(pair: Pair, xy: np.ndarray, radius: float, density: float) -> float:
    """Probability that an unrelated position has a frame star within ``radius``, averaged over positions ``xy``.

    The density (stars per px^2) is that of the overlap, or the mean local one in rings of 2 to 10 radii around the
    positions where that is higher: in a cluster, neighbours are cheap.
    """
    if len(xy) == 0:
        return 1.0
    inner, outer = (pair.tree.query_ball_point(xy, factor * radius, return_length=True) for factor in (2.0, 10.0))
    local = (outer - inner) / (math.pi * (100.0 - 4.0) * radius**2)
    cell = math.pi * radius**2
    return max(1.0 - math.exp(-density * cell), float(np.mean(1.0 - np.exp(-local * cell))))


def log10_of_chance(confirmed: int, candidates: int, probability: float, trials: float) -> float:
    """Log10 of the expected number of matches as good as this among ``trials`` hypotheses of unrelated fields.

    Of ``candidates`` reference stars in the overlap each has a neighbour with ``probability``; ``confirmed`` have one,
    not counting the pairs that the transform can always satisfy. Binomial upper tail times the hypotheses tried.
    """
    from scipy.special import betainc

    if confirmed <= 0 or candidates < confirmed:
        return 0.0
    tail = float(betainc(confirmed, candidates - confirmed + 1.0, min(max(probability, 1e-300), 1.0)))
    return math.log10(max(tail, 1e-300)) + math.log10(max(trials, 1.0))


def without_defects(reference: StarList, frame: StarList, matrix: np.ndarray) -> tuple[StarList, StarList]:
    """Leave out detections that kept their pixel while the sky moved: displaced, they would no longer be known."""
    from scipy.spatial import cKDTree

    moved = np.hypot(*(transform_points(matrix, reference.xy) - reference.xy).T) > MOVED
    distance, nearest = cKDTree(frame.xy).query(reference.xy, distance_upper_bound=STATIONARY_RADIUS)
    defect = np.isfinite(distance) & moved
    theirs = np.ones(len(frame), bool)
    theirs[nearest[defect]] = False
    return reference.select(~defect), frame.select(theirs)
