"""What several tests share: made for the tests of ``weights``."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.records import FrameStats

STAR_WEIGHTS = ("noise_fwhm", "point_source", "snr", "stars")


def frames(n=4, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    base = 1000 + 30 * rng.standard_normal((n, 40, 50, channels))
    base[:, 5:9, 5:9] += 5000
    base = base * np.linspace(0.9, 1.1, n)[:, None, None, None] + np.linspace(-50, 80, n)[:, None, None, None]
    base[1, :3] = np.nan
    return base.astype(np.float32)


def stats_of(variance, median=100.0):
    one = np.array([float(variance)])
    return FrameStats(np.array([median]), np.sqrt(one), np.array([median]), np.array([median + 1]), one, median)
