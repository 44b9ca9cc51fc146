"""Registration by stars: the transform that brings a frame onto the reference, and a verdict on it.

Stages, in order: :func:`detect_stars` once per frame and :func:`choose_reference` (both of ``zemosaic_stars``), then
:func:`register_stars` per frame, optionally seeded by :func:`zemosaic_register_wcs.wcs_transform`; or
:func:`zemosaic_register_wcs.register_wcs` alone.

A transform is a (3, 3) float64 matrix in homogeneous coordinates that maps a REFERENCE pixel ``(x, y, 1)`` to a
FRAME pixel, which is the direction resampling needs. Pixel coordinates are 0-based, centres at integers.

A fit is a verdict, never a guess: a frame fails, with its numbers, unless its match is far beyond what the density
of its stars would give by chance (see :func:`_log10_chance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zemosaic_spec import RegisterSpec, Registration, TransformName
from zemosaic_stars import StarList, choose_reference, detect_stars

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = [
    "StarList",
    "choose_reference",
    "detect_stars",
    "register_stars",
    "similarity_parameters",
    "transform_points",
]

STATIONARY_RADIUS: Final = 0.5  # px, two detections closer than this did not move between the frames
MOVED: Final = 1.0  # px, a sky that moved by more than this cannot explain stationary detections
START_RADIUS: Final = 6.0  # px, search radius around the stars of a fresh hypothesis
MIN_RADIUS: Final = 0.6  # px, the search radius never shrinks below this
MAX_LOG10_CHANCE: Final = -6.0  # a match more likely than 1e-6 under chance is not a match
MIN_FRACTION: Final = 0.2  # of the stars visible in both, that must have matched
MIN_FRACTION_STILL: Final = 0.5  # of the reference's stars, that must have matched if nothing moved
CLIP: Final = 3.5  # residual limit in a fit, units of the pair's own sigma (0.2 % of true pairs are beyond)
FREE_PAIRS: Final[dict[str, int]] = {"similarity": 2, "affine": 3, "homography": 4}  # pairs a model can always satisfy
PARAMETERS: Final[dict[str, int]] = {"similarity": 4, "affine": 6, "homography": 8}
PAIRS_PER_PARAMETER: Final = 3  # matched stars that a model richer than a similarity needs
BIC_MARGIN: Final = 10.0  # by which a richer model must beat a simpler one
FAINT_MARGIN: Final = 1.3  # factor above a frame's faintest stars at which it is taken to be complete


# --------------------------------------------------------------------------- transforms


def transform_points(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map points through a homogeneous transform.

    Parameters
    ----------
    matrix : ndarray (3, 3) float64
        Homogeneous transform.
    xy : ndarray (..., 2) float64
        Points (x, y), pixels.

    Returns
    -------
    ndarray (..., 2) float64
        Mapped points, pixels.
    """
    xy = np.asarray(xy, dtype=np.float64)
    mapped = xy @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2, 0] == 0.0 and matrix[2, 1] == 0.0 and matrix[2, 2] == 1.0:
        return mapped
    return mapped / (xy @ matrix[2, :2] + matrix[2, 2])[..., None]


def similarity_parameters(matrix: np.ndarray) -> tuple[float, float, float, float]:
    """Return scale, rotation (degrees, from +x to +y), dx and dy (pixels) of the similarity nearest to a transform.

    dx, dy is where the reference pixel (0, 0) lands.
    """
    matrix = np.asarray(matrix, dtype=np.float64) / matrix[2, 2]
    cosine, sine = 0.5 * (matrix[0, 0] + matrix[1, 1]), 0.5 * (matrix[1, 0] - matrix[0, 1])
    rotation = math.degrees(math.atan2(sine, cosine))
    return math.hypot(cosine, sine), rotation, float(matrix[0, 2]), float(matrix[1, 2])


def fit_transform(kind: TransformName, source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Weighted least-squares transform source -> target ((n, 2) px); None when the points do not determine it."""
    if len(source) < FREE_PAIRS[kind]:
        return None
    share = weight / weight.sum()
    centre, target_centre = share @ source, share @ target
    size = math.sqrt(float(share @ np.sum((source - centre) ** 2, axis=1)))
    if not size > 0.0:
        return None
    u, v = (source - centre) / size, (target - target_centre) / size
    core = _CORE_FITS[kind](u, v, share)
    if core is None:
        return None
    into = np.array([[1 / size, 0, -centre[0] / size], [0, 1 / size, -centre[1] / size], [0, 0, 1]])
    back = np.array([[size, 0, target_centre[0]], [0, size, target_centre[1]], [0, 0, 1]])
    matrix = back @ core @ into
    return matrix / matrix[2, 2]


def _similarity_core(u: np.ndarray, v: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Solve in closed form for centred points: with z = x + iy, v = alpha u."""
    norm = share @ np.sum(u * u, axis=1)
    real = share @ (u[:, 0] * v[:, 0] + u[:, 1] * v[:, 1]) / norm
    imaginary = share @ (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / norm
    return np.array([[real, -imaginary, 0.0], [imaginary, real, 0.0], [0.0, 0.0, 1.0]])


def _affine_core(u: np.ndarray, v: np.ndarray, share: np.ndarray) -> np.ndarray | None:
    normal = (u * share[:, None]).T @ u
    if np.linalg.cond(normal) > 1e8:  # collinear points
        return None
    core = np.eye(3)
    core[:2, :2] = np.linalg.solve(normal, (u * share[:, None]).T @ v).T
    return core


def _homography_core(u: np.ndarray, v: np.ndarray, share: np.ndarray) -> np.ndarray | None:
    """Solve for eight unknowns, h33 = 1; rows divided by the last denominator, so that errors are of positions."""
    n, root = len(u), np.sqrt(share)
    core = np.eye(3)
    for _ in range(4):
        scale = root / (u @ core[2, :2] + 1.0)
        rows = np.zeros((2 * n, 8))
        for axis, start in ((0, 0), (1, 3)):
            block = rows[axis * n : (axis + 1) * n]
            block[:, start : start + 2] = u
            block[:, start + 2] = 1.0
            block[:, 6:8] = -u * v[:, axis, None]
            block *= scale[:, None]
        right = np.concatenate((v[:, 0] * scale, v[:, 1] * scale))
        solution, _, rank, _ = np.linalg.lstsq(rows, right, rcond=1e-9)
        if rank < 8:
            return None
        core = np.append(solution, 1.0).reshape(3, 3)
        if np.any(u @ core[2, :2] + 1.0 <= 0.1):  # the horizon crosses the field
            return None
    return core


_CORE_FITS: Final = {"similarity": _similarity_core, "affine": _affine_core, "homography": _homography_core}


def _median(values: np.ndarray) -> float:
    """Return the median of finite values (n,), n > 0; of so few numpy's own takes longest over its checks."""
    half = len(values) // 2
    ordered = np.partition(values, half)
    return float(ordered[half] if len(values) % 2 else 0.5 * (ordered[:half].max() + ordered[half]))


def _robust_fit(
    kind: TransformName, source: np.ndarray, target: np.ndarray, sigma: np.ndarray, rounds: int = 10
) -> tuple[np.ndarray, np.ndarray] | None:
    """Fit with sigma clipping; returns the matrix and the mask of pairs kept.

    Pairs weigh ``1 / (sigma^2 + s^2)``, where s is what the residuals have beyond the centroid errors (distortion,
    seeing, blends): a bright star does not outvote the field where the model, not the centroid, is the limit.
    """
    keep = np.ones(len(source), dtype=bool)
    variance = sigma**2
    extra = _median(variance)
    matrix = None
    for _ in range(rounds):
        weight = 1.0 / (variance + extra)
        matrix = fit_transform(kind, source[keep], target[keep], weight[keep])
        if matrix is None:
            return None
        squared = np.sum((transform_points(matrix, source) - target) ** 2, axis=1)
        # Median of a squared Rayleigh variable: 2 ln 2 sigma^2.
        extra = max(0.0, _median(squared[keep]) / (2.0 * math.log(2.0)) - _median(variance[keep]))
        inliers = squared <= CLIP**2 * (variance + extra)
        if np.array_equal(inliers, keep):
            break
        keep = inliers
    return None if matrix is None else (matrix, keep)


# --------------------------------------------------------------------------- matching


class _Catalogue(NamedTuple):
    """Star positions (n, 2) px, errors (n,) px and fluxes (n,), brightest first."""

    xy: np.ndarray
    sigma: np.ndarray
    flux: np.ndarray


class _Match(NamedTuple):
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
        return len(self.reference_index)

    @property
    def fraction(self) -> float:
        return self.matched / max(1, min(self.reference_visible, self.frame_visible))


class _Pair:
    """Reference and frame catalogues that are compared, with the frame's search tree."""

    def __init__(self, reference: _Catalogue, frame: _Catalogue, shape: tuple[int, int], kind: TransformName) -> None:
        from scipy.spatial import cKDTree

        self.reference, self.frame, self.shape, self.kind = reference, frame, shape, kind
        self.tree: cKDTree = cKDTree(frame.xy)

    def modelled(self, kind: TransformName) -> _Pair:
        """Return the same stars for another model."""
        return _Pair(self.reference, self.frame, self.shape, kind)

    def without(self, reference_index: np.ndarray, frame_index: np.ndarray) -> _Pair:
        """Leave some stars out of both catalogues."""
        reference, frame = (
            _Catalogue(np.delete(stars.xy, index, axis=0), np.delete(stars.sigma, index), np.delete(stars.flux, index))
            for stars, index in ((self.reference, reference_index), (self.frame, frame_index))
        )
        return _Pair(reference, frame, self.shape, self.kind)


def _mutual_neighbours(pair: _Pair, matrix: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return reference index, frame index and distance (px) of mutually nearest stars within ``radius``."""
    distance, nearest = pair.tree.query(transform_points(matrix, pair.reference.xy), distance_upper_bound=radius)
    index = np.flatnonzero(np.isfinite(distance))
    order = index[np.lexsort((index, distance[index]))]
    _, first = np.unique(nearest[order], return_index=True)
    chosen = np.sort(order[first])
    return chosen, nearest[chosen], distance[chosen]


def inside_frame(xy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mask of the points (n, 2) px that lie on a pixel of a frame of shape (H, W)."""
    height, width = shape
    return (xy[:, 0] >= -0.5) & (xy[:, 0] <= width - 0.5) & (xy[:, 1] >= -0.5) & (xy[:, 1] <= height - 0.5)


def grid_points(shape: tuple[int, int], n: int) -> np.ndarray:
    """Return n x n points (x, y) that span the pixel centres of a frame, (n * n, 2) px."""
    height, width = shape
    x, y = np.meshgrid(np.linspace(0.0, width - 1.0, n), np.linspace(0.0, height - 1.0, n))
    return np.column_stack((x.ravel(), y.ravel()))


def _shrink(pair: _Pair, matrix: np.ndarray, kind: TransformName, radius: float) -> tuple[np.ndarray, float]:
    """Alternate matching and fitting while the search radius shrinks as far as true pairs allow.

    Pairs beyond what the star density gives by chance are counted at each radius; a smaller radius that loses more
    than a fifth of them cuts into the true residuals and is not taken.
    """
    density = len(pair.frame.xy) / float(pair.shape[0] * pair.shape[1])
    true_pairs = 0.0
    while True:
        refitted, found, before = matrix, 0, None
        for _ in range(3):
            i, j, _ = _mutual_neighbours(pair, refitted, radius)
            if before is not None and np.array_equal(i, before[0]) and np.array_equal(j, before[1]):
                break  # the same pairs give the same fit
            found, before = len(i), (i, j)
            fit = None
            if found > FREE_PAIRS[kind]:
                sigma = np.hypot(pair.reference.sigma[i], pair.frame.sigma[j])
                fit = _robust_fit(kind, pair.reference.xy[i], pair.frame.xy[j], sigma, rounds=3)
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


def _refine(pair: _Pair, matrix: np.ndarray, trials: int) -> _Match | None:
    """Refine one hypothesis on the full catalogues: similarity first, then the model asked for."""
    models: tuple[TransformName, ...] = ("similarity",) if pair.kind == "similarity" else ("similarity", pair.kind)
    radius = START_RADIUS
    for kind in models:
        matrix, radius = _shrink(pair, matrix, kind, START_RADIUS)
    i, j, _ = _mutual_neighbours(pair, matrix, radius)
    if len(i) <= FREE_PAIRS[pair.kind]:
        return None
    sigma = np.hypot(pair.reference.sigma[i], pair.frame.sigma[j])
    fit = _robust_fit(pair.kind, pair.reference.xy[i], pair.frame.xy[j], sigma)
    if fit is None:
        return None
    matrix, keep = fit
    return _evidence(pair, matrix, i[keep], j[keep], radius, trials)


def _evidence(
    pair: _Pair, matrix: np.ndarray, i: np.ndarray, j: np.ndarray, radius: float, trials: int
) -> _Match | None:
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
    log10_chance = _log10_chance(
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
    return _Match(
        matrix, i, j, rms, radius, int(np.count_nonzero(visible)), frame_visible, log10_chance, corner_error
    )  # fmt: skip


def _chance_of_neighbour(pair: _Pair, xy: np.ndarray, radius: float, density: float) -> float:
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


def _log10_chance(confirmed: int, candidates: int, probability: float, trials: float) -> float:
    """Log10 of the expected number of matches as good as this among ``trials`` hypotheses of unrelated fields.

    Of ``candidates`` reference stars in the overlap each has a neighbour with ``probability``; ``confirmed`` have one,
    not counting the pairs that the transform can always satisfy. Binomial upper tail times the hypotheses tried.
    """
    from scipy.special import betainc

    if confirmed <= 0 or candidates < confirmed:
        return 0.0
    tail = float(betainc(confirmed, candidates - confirmed + 1.0, min(max(probability, 1e-300), 1.0)))
    return math.log10(max(tail, 1e-300)) + math.log10(max(trials, 1.0))


# --------------------------------------------------------------------------- hypotheses


def _spread_selection(xy: np.ndarray, shape: tuple[int, int], n: int) -> np.ndarray:
    """Index of the n brightest stars, at most twice its fair share from any cell of a 3 x 3 grid.

    So a cluster cannot take all, and where the field is even the choice is by brightness alone: two frames that
    overlap by half still choose the same stars.
    """
    height, width = shape
    column = np.clip((3.0 * xy[:, 0] / width).astype(int), 0, 2)
    row = np.clip((3.0 * xy[:, 1] / height).astype(int), 0, 2)
    cell = 3 * row + column
    rank = np.zeros(len(xy), dtype=int)
    for number in range(9):
        members = np.flatnonzero(cell == number)
        rank[members] = np.arange(len(members))
    share = math.ceil(2 * n / 9)
    return np.lexsort((np.arange(len(xy)), rank // share))[:n]


class _Triangles(NamedTuple):
    """Asterisms: vertices (t, 3) complex px, opposite the longest, middle, shortest side; features (t, 4)."""

    vertices: np.ndarray
    features: np.ndarray


SHAPE_TOLERANCE: Final = 0.012  # of the two side ratios
SIZE_TOLERANCE: Final = 0.25  # of the logarithm of the size; far beyond any plausible scale, which the verdict judges


def _triangles(xy: np.ndarray, n_neighbours: int) -> _Triangles:
    """Triangles of each star with pairs of its nearest neighbours, described by similarity invariants.

    Features: the ratios of the middle and the shortest to the longest side, the logarithm of the longest side
    (scaled to the tolerance), and the sense of rotation, which keeps mirror images apart.
    """
    from scipy.spatial import cKDTree

    k = min(n_neighbours, len(xy) - 1)
    _, near = cKDTree(xy).query(xy, k=k + 1)
    pairs = np.array(list(combinations(range(1, k + 1), 2)))
    index = np.empty((len(xy), len(pairs), 3), dtype=np.intp)
    index[:, :, 0], index[:, :, 1], index[:, :, 2] = near[:, :1], near[:, pairs[:, 0]], near[:, pairs[:, 1]]
    index = np.unique(np.sort(index.reshape(-1, 3), axis=1), axis=0)
    z = (xy[:, 0] + 1j * xy[:, 1])[index]
    opposite = np.abs(z[:, [1, 2, 0]] - z[:, [2, 0, 1]])
    order = np.argsort(-opposite, axis=1, kind="stable")
    z, side = np.take_along_axis(z, order, axis=1), np.take_along_axis(opposite, order, axis=1)
    cross = ((z[:, 1] - z[:, 0]) * np.conj(z[:, 2] - z[:, 0])).imag
    # A sliver's or a tiny triangle's shape says little: its errors are those of centroids.
    good = (side[:, 2] > 6.0) & (np.abs(cross) > 0.04 * side[:, 0] ** 2)
    z, side, cross = z[good], side[good], cross[good]
    features = np.column_stack(
        (
            side[:, 1] / side[:, 0],
            side[:, 2] / side[:, 0],
            np.log(side[:, 0]) * (SHAPE_TOLERANCE / SIZE_TOLERANCE),
            np.sign(cross),
        )
    )
    return _Triangles(z, features)


def _asterism_hypotheses(pair: _Pair, n_stars: int, n_neighbours: int, n_best: int) -> tuple[list[np.ndarray], int]:
    """Similarities proposed by equal triangles, best first, and how many were weighed.

    Every pair of equal triangles proposes one; proposals that agree at the field's centre and its rim vote for each
    other; the ones with most votes are ordered by how many selected stars they bring onto frame stars.
    """
    from scipy.spatial import cKDTree

    reference = pair.reference.xy[_spread_selection(pair.reference.xy, pair.shape, n_stars)]
    frame = pair.frame.xy[_spread_selection(pair.frame.xy, pair.shape, n_stars)]
    ours, theirs = _triangles(reference, n_neighbours), _triangles(frame, n_neighbours)
    if len(ours.vertices) == 0 or len(theirs.vertices) == 0:
        return [], 0
    found = cKDTree(theirs.features).query_ball_point(ours.features, SHAPE_TOLERANCE, p=np.inf, return_sorted=True)
    count = np.array([len(each) for each in found])
    if count.sum() == 0:
        return [], 0
    a = ours.vertices[np.repeat(np.arange(len(found)), count)]
    b = theirs.vertices[np.concatenate([each for each in found if each]).astype(np.intp)]
    a_centre, b_centre = a.mean(axis=1), b.mean(axis=1)
    a, b = a - a_centre[:, None], b - b_centre[:, None]
    slope = np.sum(np.conj(a) * b, axis=1) / np.sum(np.abs(a) ** 2, axis=1)
    middle = 0.5 * complex(pair.shape[1] - 1, pair.shape[0] - 1)
    at_middle = b_centre + slope * (middle - a_centre)
    reach = 0.5 * math.hypot(*pair.shape)
    place = np.column_stack((at_middle.real, at_middle.imag, reach * slope.real, reach * slope.imag))
    votes = cKDTree(place).query_ball_point(place, max(6.0, 0.01 * reach), return_length=True)
    best = _distinct(place, np.argsort(-votes, kind="stable"), max(4.0, 0.005 * reach), 8 * n_best)
    shift = at_middle - slope * middle
    matrices = [_similarity_matrix(slope[k], shift[k]) for k in best]
    points = np.stack([transform_points(matrix, reference) for matrix in matrices])
    hits = np.count_nonzero(np.isfinite(pair.tree.query(points, distance_upper_bound=START_RADIUS)[0]), axis=1)
    return [matrices[k] for k in np.argsort(-hits, kind="stable")[:n_best]], len(place)


def _distinct(place: np.ndarray, order: np.ndarray, distance: float, n: int) -> list[int]:
    """First n of ``order`` whose places are farther than ``distance`` from all chosen before."""
    chosen: list[int] = []
    for candidate in order[: 20 * n]:
        if not chosen or np.min(np.sum((place[chosen] - place[candidate]) ** 2, axis=1)) > distance**2:
            chosen.append(int(candidate))
            if len(chosen) == n:
                break
    return chosen


def _similarity_matrix(slope: complex, shift: complex) -> np.ndarray:
    return np.array([[slope.real, -slope.imag, shift.real], [slope.imag, slope.real, shift.imag], [0.0, 0.0, 1.0]])


SEED_REACH: Final = 80.0  # px, error of a seed's translation that is absorbed
SEED_BIN: Final = 5.0  # px of the offset histogram


def _seeded_hypotheses(pair: _Pair, seed: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Corrections of a seed by the translations that most star pairs agree on, and how many were weighed."""
    mapped = transform_points(seed, pair.reference.xy[:200])
    frame = pair.frame.xy[:300]
    dx, dy = (frame[:, axis] - mapped[:, axis, None] for axis in (0, 1))
    near = (np.abs(dx) < SEED_REACH) & (np.abs(dy) < SEED_REACH)
    offset = np.column_stack((dx[near], dy[near]))
    n_bins = round(2 * SEED_REACH / SEED_BIN)
    edges = np.linspace(-SEED_REACH, SEED_REACH, n_bins + 1)
    column, row = np.minimum(((offset + SEED_REACH) / SEED_BIN).astype(np.intp), n_bins - 1).T
    histogram = np.bincount(column * n_bins + row, minlength=n_bins**2).reshape(n_bins, n_bins)
    padded = np.pad(histogram, 1)
    votes = sum(padded[i : i + n_bins, j : j + n_bins] for i in range(3) for j in range(3)) + 1e-3 * histogram
    centres = 0.5 * (edges[1:] + edges[:-1])
    grid = np.column_stack([axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij")])
    hypotheses = []
    for k in _distinct(grid, np.argsort(-votes, axis=None, kind="stable"), 3.0 * SEED_BIN, 3):
        agreeing = offset[np.all(np.abs(offset - grid[k]) < 1.5 * SEED_BIN, axis=1)]
        if len(agreeing):
            shift = np.eye(3)
            shift[:2, 2] = np.median(agreeing, axis=0)
            hypotheses.append(shift @ seed)
    return hypotheses, n_bins**2


def _hypotheses(pair: _Pair, seed: np.ndarray | None) -> Iterator[tuple[list[np.ndarray], int]]:
    """Yield batches of hypotheses with the number weighed, cheapest first."""
    if seed is not None:
        yield _seeded_hypotheses(pair, seed)
    # Few stars: all triangles. Many: first the bright ones, then deeper for shifts, clouds and frames of other depth.
    for n_stars, n_neighbours, n_best in ((16, 15, 6), (60, 7, 6), (160, 10, 10)):
        yield _asterism_hypotheses(pair, n_stars, n_neighbours, n_best)


# --------------------------------------------------------------------------- verdict


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
    pair = _Pair(
        _Catalogue(reference.xy, reference.sigma, reference.flux),
        _Catalogue(frame.xy, frame.sigma, frame.flux),
        (int(shape[0]), int(shape[1])),
        "similarity" if spec.transform == "auto" else spec.transform,
    )
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


def _match_sky(pair: _Pair, spec: RegisterSpec, seed: np.ndarray | None) -> tuple[_Pair, _Match | None]:
    """Search without the detections that did not move; use them only if the sky did not move either.

    Returns the catalogues the match refers to, and the match.
    """
    i, j, _ = _mutual_neighbours(pair, np.eye(3), STATIONARY_RADIUS)
    moving = pair.without(i, j)
    if len(i) < 3 or min(len(moving.reference.xy), len(moving.frame.xy)) < spec.min_matched:
        return pair, _search(pair, spec, seed)
    match = _search(moving, spec, seed)
    if match is None or _objection(moving, match, spec):
        return pair, _search(pair, spec, seed)
    still = pair.reference.xy[i]
    defect = np.hypot(*(transform_points(match.matrix, still) - still).T) > MOVED
    sky = pair.without(i[defect], j[defect])
    full = _refine(sky, match.matrix, 1)
    return (moving, match) if full is None or _objection(sky, full, spec) else (sky, full)


def _simplest_model(
    pair: _Pair, match: _Match | None, spec: RegisterSpec, seed: np.ndarray | None
) -> tuple[_Pair, _Match | None]:
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
            found = _refine(richer, match.matrix, 1)
            better = (
                found is not None
                and found.matched >= PAIRS_PER_PARAMETER * PARAMETERS[kind]
                and not _objection(richer, found, spec)
                and _criterion(richer, found, kind) < _criterion(richer, found, pair.kind) - BIC_MARGIN
            )
        if better:
            pair, match = richer, found
    return pair, match


def _criterion(pair: _Pair, match: _Match, kind: TransformName) -> float:
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


def _search(pair: _Pair, spec: RegisterSpec, seed: np.ndarray | None) -> _Match | None:
    """First hypothesis that stands, else the least improbable one."""
    best: _Match | None = None
    for hypotheses, trials in _hypotheses(pair, seed):
        for matrix in hypotheses:
            match = _refine(pair, matrix, trials)
            if match is None:
                continue
            if not _objection(pair, match, spec):
                return match
            if best is None or match.log10_chance < best.log10_chance:
                best = match
    return best


def _objection(pair: _Pair, match: _Match, spec: RegisterSpec) -> str:
    """Why a match is not believed, with its numbers; empty if it is."""
    counts = f"{match.reference_visible} (reference) and {match.frame_visible} (frame)"
    visible = f"{match.matched} stars matched of {counts}"
    if match.log10_chance > MAX_LOG10_CHANCE:
        return (
            f"{visible} within {match.radius:.2f} px: explained by chance "
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
        expected = _expected_stars(pair, match)
        if match.matched < MIN_FRACTION_STILL * expected:
            return (
                f"{match.matched} detections did not move while {expected} stars of the reference should "
                f"be visible: hot pixels, not sky (limit {100 * MIN_FRACTION_STILL:.0f} %)"
            )
    return ""


def _expected_stars(pair: _Pair, match: _Match) -> int:
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
    points = np.vstack((grid_points(shape, 2), grid_points(shape, 3)[4:5]))
    depth = points @ matrix[2, :2] + matrix[2, 2]
    if np.any(depth <= 0.0):
        return "the perspective folds the field"
    mapped = transform_points(matrix, points)
    jacobian = (matrix[None, :2, :2] - mapped[:, :, None] * matrix[None, None, 2, :2]) / depth[:, None, None]
    determinant = np.linalg.det(jacobian)
    if np.any(determinant <= 0.0):
        return "the transform mirrors the field"
    scale = np.sqrt(determinant)
    worst = float(scale[np.argmax(np.abs(scale - 1.0))])
    if abs(worst - 1.0) > spec.max_scale_error:
        return f"scale {worst:.4f}, limit 1 +- {spec.max_scale_error:g}"
    singular = np.linalg.svd(jacobian, compute_uv=False)
    shear = float(np.max(singular[:, 0] / singular[:, 1]))
    if shear > 1.0 + 2.0 * spec.max_scale_error:
        return f"axis ratio {shear:.4f}, limit {1.0 + 2.0 * spec.max_scale_error:g}"
    return ""
