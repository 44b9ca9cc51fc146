"""Maps from the pixels of one frame to those of another: similarity, affine, homography, and how they are fitted."""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np

from zemosaic_phase3.methods import TransformName

CLIP: Final = 3.5  # residual limit in a fit, units of the pair's own sigma (0.2 % of true pairs are beyond)
FREE_PAIRS: Final[dict[str, int]] = {"similarity": 2, "affine": 3, "homography": 4}  # pairs a model can always satisfy
PARAMETERS: Final[dict[str, int]] = {"similarity": 4, "affine": 6, "homography": 8}


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


def exact_median(values: np.ndarray) -> float:
    """Return the median of finite values (n,), n > 0; of so few numpy's own takes longest over its checks."""
    half = len(values) // 2
    ordered = np.partition(values, half)
    return float(ordered[half] if len(values) % 2 else 0.5 * (ordered[:half].max() + ordered[half]))


def robust_fit(
    kind: TransformName, source: np.ndarray, target: np.ndarray, sigma: np.ndarray, rounds: int = 10
) -> tuple[np.ndarray, np.ndarray] | None:
    """Fit with sigma clipping; returns the matrix and the mask of pairs kept.

    Pairs weigh ``1 / (sigma^2 + s^2)``, where s is what the residuals have beyond the centroid errors (distortion,
    seeing, blends): a bright star does not outvote the field where the model, not the centroid, is the limit.
    """
    keep = np.ones(len(source), dtype=bool)
    variance = sigma**2
    extra = exact_median(variance)
    matrix = None
    for _ in range(rounds):
        weight = 1.0 / (variance + extra)
        matrix = fit_transform(kind, source[keep], target[keep], weight[keep])
        if matrix is None:
            return None
        squared = np.sum((transform_points(matrix, source) - target) ** 2, axis=1)
        # Median of a squared Rayleigh variable: 2 ln 2 sigma^2.
        extra = max(0.0, exact_median(squared[keep]) / (2.0 * math.log(2.0)) - exact_median(variance[keep]))
        inliers = squared <= CLIP**2 * (variance + extra)
        if np.array_equal(inliers, keep):
            break
        keep = inliers
    return None if matrix is None else (matrix, keep)


def inside_frame(xy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mask of the points (n, 2) px that lie on a pixel of a frame of shape (H, W)."""
    height, width = shape
    return (xy[:, 0] >= -0.5) & (xy[:, 0] <= width - 0.5) & (xy[:, 1] >= -0.5) & (xy[:, 1] <= height - 0.5)


@cache
def grid_points(shape: tuple[int, int], n: int) -> np.ndarray:
    """Return n x n points (x, y) that span the pixel centres of a frame, (n * n, 2) px; not to be written to."""
    height, width = shape
    x, y = np.meshgrid(np.linspace(0.0, width - 1.0, n), np.linspace(0.0, height - 1.0, n))
    points = np.column_stack((x.ravel(), y.ravel()))
    points.flags.writeable = False
    return points


def similarity_matrix(slope: complex, shift: complex) -> np.ndarray:
    """Return the matrix of the map ``z -> slope z + shift`` of the complex plane, ``(3, 3) float64``."""
    return np.array([[slope.real, -slope.imag, shift.real], [slope.imag, slope.real, shift.imag], [0.0, 0.0, 1.0]])
