"""Demosaicing and interpolation: exact where exactness is possible, flux, clamping, footprints, slabs."""

from __future__ import annotations

import os
import subprocess
import sys

EVERYTHING = """
import sys; sys.path[:0] = ["tests/support", "tests/resample"]
import numpy as np, resample_case as t
from test_demosaic import demosaic
from test_interpolation import NAMES
rng = np.random.default_rng(0)
for h, w in ((9, 8), (23, 31)):
    raw = rng.normal(1000.0, 300.0, (h, w)).astype(np.float32)
    for pattern in ("RGGB", "GRBG"):
        print(demosaic(raw, pattern).tobytes().hex())
    colour = demosaic(raw, "BGGR").copy()
    colour[4, 5] = np.nan
    for image in (raw, colour):
        for name in NAMES:
            for matrix in (t.similarity(11.0, 2.3, -1.7), np.array([[1, 0.01, 0.3], [0, 1, 0.2], [1e-3, 1e-3, 1.0]])):
                out, weights = t.warp(image, matrix, name, radial=(0.8, 2.0, 0.05))
                print(out.tobytes().hex(), weights.tobytes().hex())
    out, weights = t.warp(colour, t.similarity(2.0, 1.3, -0.7), field=t.some_field(h, w), radial=(0.8, 2.0, 0.05))
    print(out.tobytes().hex(), weights.tobytes().hex())
"""


def outputs(**environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVERYTHING], env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_compiled_kernels_equal_their_uncompiled_text_and_stay_within_bounds():
    compiled = outputs(NUMBA_DISABLE_JIT="0")
    assert compiled.count("\n") == 46
    assert outputs(NUMBA_DISABLE_JIT="1") == compiled
    assert outputs(NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=os.devnull) == compiled
