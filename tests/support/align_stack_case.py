"""What several tests share: made for the tests of ``align_stack``."""

from __future__ import annotations

import numpy as np


def cube(n=7, height=24, width=31, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    frames = 1000 + 30 * rng.standard_normal((n, height, width, channels))
    frames[rng.random(frames.shape) < 0.02] += 3000
    frames[rng.random(frames.shape) < 0.02] = np.nan
    frames = frames.astype(np.float32)
    return frames if channels == 3 else frames[..., 0]
