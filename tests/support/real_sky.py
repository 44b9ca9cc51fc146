"""Subs with known transforms, cut from one real frame: dithered, rotated, with fresh noise. Imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SPLINE_ORDER = 5
SPLINE_REACH_PX = 4


@dataclass(frozen=True)
class Subs:
    """Frames of one sky and what is known of them.

    ``noisy (N, S, S) float32``, what a camera would give, ADU; ``clean (N, S, S) float64``, the same without the noise
    that was added; ``to_sky (N, 3, 3)``, maps a pixel (x, y, 1) of each sub to one of the frame they were cut from;
    ``sigma``, ADU, the noise that was added to each.
    """

    noisy: np.ndarray
    clean: np.ndarray
    to_sky: np.ndarray
    sigma: float

    def transform(self, reference: int, frame: int) -> np.ndarray:
        """True map (3, 3) from pixels of one sub to those of another."""
        return np.linalg.inv(self.to_sky[frame]) @ self.to_sky[reference]

    def rms_error(self, matrix: np.ndarray, reference: int, frame: int) -> float:
        """Rms distance over the field of a measured transform from the true one, pixels."""
        axis = np.linspace(0, self.noisy.shape[1] - 1, 9)
        grid = np.array([(x, y, 1.0) for x in axis for y in axis])
        ends = [(mapped := grid @ m.T)[:, :2] / mapped[:, 2:] for m in (matrix, self.transform(reference, frame))]
        return float(np.sqrt(((ends[0] - ends[1]) ** 2).sum(axis=1).mean()))

    def noise_ratios(
        self, stack: np.ndarray, coverage: np.ndarray, reference: int, block: int = 8
    ) -> tuple[float, float]:
        """Noise of a stack over the ideal ``sigma / sqrt(N)``: of single pixels, and of the means of blocks.

        Interpolation averages neighbours, which lowers the noise of single pixels and correlates it; in the means of
        blocks much larger than the kernel that gain is gone. Both from 1.4826 MAD of stack minus truth where nearly
        all frames contribute; of the blocks, differences of neighbours, which forgive a smooth difference in level.
        """
        count = len(self.noisy)
        error = np.where(coverage >= count - 1, stack - self.clean[reference], np.nan)
        side = error.shape[0] // block
        blocks = error[: side * block, : side * block].reshape(side, block, side, block).mean(axis=(1, 3))
        ideal = self.sigma / np.sqrt(count)
        return _sigma(error) / ideal, _sigma(np.diff(blocks, axis=1)) / np.sqrt(2.0) * block / ideal


def _sigma(values: np.ndarray) -> float:
    return float(1.4826 * np.nanmedian(np.abs(values - np.nanmedian(values))))


def cut_subs(
    sky: np.ndarray,
    rng: np.random.Generator,
    *,
    count: int,
    size: int,
    sigma: float,
    dither_px: float,
    angle_deg: float,
) -> Subs:
    """Cut square subs from a frame by a spline of order 5 and add white noise of ``sigma`` ADU.

    ``size`` pixels a side; shifts within +- ``dither_px`` on both axes, angles within +- ``angle_deg``.
    """
    coefficients = ndimage.spline_filter(np.asarray(sky, np.float64), order=SPLINE_ORDER)
    middle = (np.array(sky.shape[::-1]) - 1) / 2
    y, x = np.mgrid[:size, :size]
    noisy, clean, to_sky = [], [], []
    for _ in range(count):
        angle = np.radians(rng.uniform(-angle_deg, angle_deg))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.eye(3)
        matrix[:2, :2] = turn
        matrix[:2, 2] = middle + rng.uniform(-dither_px, dither_px, 2) - turn @ np.full(2, (size - 1) / 2)
        at = [matrix[row, 0] * x + matrix[row, 1] * y + matrix[row, 2] for row in (1, 0)]
        for axis, length in zip(at, sky.shape, strict=True):
            assert axis.min() >= SPLINE_REACH_PX, "a sub reaches beyond the frame; choose a smaller size"
            assert axis.max() <= length - 1 - SPLINE_REACH_PX, "a sub reaches beyond the frame; choose a smaller size"
        clean.append(ndimage.map_coordinates(coefficients, at, order=SPLINE_ORDER, prefilter=False))
        noisy.append((clean[-1] + rng.normal(0.0, sigma, clean[-1].shape)).astype(np.float32))
        to_sky.append(matrix)
    return Subs(np.stack(noisy), np.stack(clean), np.stack(to_sky), sigma)
