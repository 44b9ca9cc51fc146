"""What several tests share: made for the tests of ``gpu_engine``."""

from __future__ import annotations

import numpy as np


def stack_of(seed=1, n=11, shape=(14, 17, 3), dtype=np.float32):
    rng = np.random.default_rng(seed)
    frames = rng.normal(1000.0, 30.0, (n, *shape)) * rng.uniform(0.95, 1.05, (n, *[1] * len(shape)))
    frames[rng.random(frames.shape) < 0.01] += 3000.0
    if np.dtype(dtype).kind == "f":
        frames[rng.random(frames.shape) < 0.03] = np.nan
        frames[:, 3, 4] = np.nan
        frames[:, 5, 2:6] = 7.0
    return list(frames.astype(dtype))


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""

    def __init__(self, status):
        super().__init__(f"CUDA status {status}")
        self.status = status
