"""Tests of ``compat.align_arrays``."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.compat import align_arrays


def test_alignment_finds_shifts_and_fails_the_unrelated():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:160, :200]

    def field(dx, dy, seed):
        places = np.random.default_rng(seed)
        sky = 1000 + 10 * rng.standard_normal((160, 200))
        for cx, cy, f in zip(
            places.uniform(0, 200, 40), places.uniform(0, 160, 40), places.uniform(300, 5000, 40), strict=True
        ):
            sky += f * np.exp(-((x - cx - dx) ** 2 + (y - cy - dy) ** 2) / 3.2)
        return sky.astype(np.float32)

    reference = field(0, 0, 1)
    aligned, failed = align_arrays.align_images_in_group([reference, field(6.3, -4.6, 1), field(0, 0, 99), None])
    assert failed == [2, 3]
    assert aligned[0] is not reference
    inside = aligned[1][20:-20, 20:-20] - reference[20:-20, 20:-20]
    assert np.nanstd(inside) < 25  # two noises of 10, and the rest of the stars' slopes
    assert np.isnan(aligned[1]).any()
