"""What weights of frames make of a faint star: its noise in the mean, and its width, in sessions of changing sharpness.

Frames are stars of Gaussian profile and noise of equal size; the star is measured on the weighted mean with the profile
that the mean has (a matched filter). "best" is the first eigenvector of the profiles' overlaps, which no weights can
beat. Run ``python benchmarks/bench_weights.py``; nothing here depends on the machine. The figures are in
``benchmarks/results/weights.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.photometry.weights import noise_fwhm_weights, noise_variance_weights, point_source_weights

SESSIONS = {
    "steady, 2.9 to 3.1 px, 24 frames": np.linspace(2.9, 3.1, 24),
    "ordinary, 2.6 to 3.6 px, 24 frames": np.linspace(2.6, 3.6, 24),
    "seeing, 2.2 to 5.5 px, 40 frames": np.linspace(2.2, 5.5, 40),
    "focus drift, 2.8 to 8.7 px, 20 frames": 2.8 * (1.0 + 2.1 * np.linspace(0.0, 1.0, 20) ** 2),
    "half of 3, half of 6 px, 20 frames": np.repeat([3.0, 6.0], 10),
}
RADII = np.linspace(0.0, 20.0, 4001)


def noise(weight: np.ndarray, width: np.ndarray) -> float:
    """Noise over signal of a faint star in the weighted mean, under a filter of the mean's own profile."""
    overlap = 2.0 / (width[:, None] ** 2 + width**2)
    return float(np.sqrt(weight @ weight / (weight @ overlap @ weight)))


def fwhm(weight: np.ndarray, width: np.ndarray) -> float:
    """Full width at half maximum of the mean's profile, px."""
    square = width[:, None] ** 2
    profile = np.sum(weight[:, None] / square * np.exp(-4.0 * np.log(2.0) * RADII**2 / square), axis=0)
    return float(2.0 * np.interp(0.5, profile[::-1] / profile[0], RADII[::-1]))


def main() -> None:
    """Print the table."""
    print("| session | weights | noise of a faint star / least | FWHM, px |\n|---|---|---|---|")
    for name, width in SESSIONS.items():
        variance = np.ones((len(width), 1))
        best = np.abs(np.linalg.eigh(2.0 / (width[:, None] ** 2 + width**2))[1][:, -1])
        for label, weight in (
            ("noise_variance", noise_variance_weights(variance)[:, 0]),
            ("noise_fwhm", noise_fwhm_weights(variance, width)[:, 0]),
            ("point_source", point_source_weights(variance, width)[:, 0]),
            ("best", best),
        ):
            print(f"| {name} | {label} | {noise(weight, width) / noise(best, width):.3f} | {fwhm(weight, width):.2f} |")


if __name__ == "__main__":
    main()
