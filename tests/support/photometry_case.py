"""What several tests share: made for the tests of ``photometry``."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.records import FrameStats

CELL = 64
SHAPE = (6, 8)  # of the sky mesh


def stats(gain=(1.0, 1.0, 1.0), sky=(900.0, 1200.0, 800.0), *, n=120, error=0.01, seed=0, nebula=0.0, shift=(0.0, 0.0)):
    """What is measured of a frame: n stars of one sky and a nebula in its left third, through air and sky light."""
    gain, channels = np.asarray(gain), len(gain)
    field = np.random.default_rng(77)
    xy = field.uniform(10, [SHAPE[1] * CELL - 10, SHAPE[0] * CELL - 10], (n, 2)) + shift
    flux = (field.pareto(1.2, n)[:, None] + 0.3) * 1e4 * field.uniform(0.7, 1.3, (n, channels))
    light = flux * gain * (1.0 + error * np.random.default_rng(seed).standard_normal((n, channels)))
    x = (np.arange(SHAPE[1]) + 0.5) * CELL - shift[0]
    mesh = np.asarray(sky) + gain * (nebula * (x < SHAPE[1] * CELL / 3))[None, :, None] * np.ones((SHAPE[0], 1, 1))
    one = np.ones(channels)
    return FrameStats(
        median=np.asarray(sky, float), mad_sigma=30 * one, p25=one, p90=one, variance=900 * one, luminance_p25=1.0,
        fwhm=3.0, n_stars=n, star_xy=xy.astype(np.float32), star_light=light.astype(np.float32),
        star_light_error=(error * flux * gain).astype(np.float32), sky_mesh=mesh.astype(np.float32), sky_cell=CELL,
    )  # fmt: skip


def shifted(dx, dy):
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy], [0.0, 0.0, 1.0]])
