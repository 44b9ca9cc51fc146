"""Gains and offsets of frames that share nothing with the reference."""

from __future__ import annotations

import numpy as np

from zemosaic_phase3.photometry import overlaps
from zemosaic_phase3.photometry.normalize import photometric
from zemosaic_phase3.records import FrameStats

SIZE = (240, 320)
CELL = 40


def frames(rng: np.random.Generator, n: int, step: float) -> tuple[list[FrameStats], list[np.ndarray], np.ndarray]:
    """Return frames that wander by ``step`` px each, their transforms, and their true gains and skies, (n, 2)."""
    stars, light = rng.uniform([0, 0], [SIZE[1] + n * step, SIZE[0]], (60 * n, 2)), rng.uniform(2e3, 5e4, 60 * n)
    stats, transforms, true = [], [], []
    for k in range(n):
        gain, sky = rng.uniform(0.7, 1.3), rng.uniform(800.0, 1200.0)
        transforms.append(np.array([[1.0, 0.0, -k * step], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        xy = stars - (k * step, 0.0)
        inside = ((xy > 4) & (xy < (SIZE[1] - 4, SIZE[0] - 4))).all(axis=1)
        error = 0.005 * light[inside]
        flux = gain * light[inside] + rng.normal(0.0, error)
        mesh = sky + rng.normal(0.0, 0.5, (SIZE[0] // CELL, SIZE[1] // CELL, 1))
        level = np.array([sky])
        stats.append(
            FrameStats(
                level, level * 0.03, level, level, level, sky, fwhm=3.0, n_stars=int(inside.sum()),
                star_xy=xy[inside].astype(np.float32), star_light=flux[:, None].astype(np.float32),
                star_light_error=error[:, None].astype(np.float32), sky_mesh=mesh.astype(np.float32), sky_cell=CELL,
            )
        )  # fmt: skip
        true.append((gain, sky))
    return stats, transforms, np.array(true)


def test_gains_and_offsets_go_through_the_frames_between(rng: np.random.Generator) -> None:
    stats, transforms, true = frames(rng, 16, 64.0)
    scale, offset, gains = photometric(stats, transforms, 0, through_others=True)
    wanted = true[0, 0] / true[:, 0]
    np.testing.assert_allclose(scale[:, 0], wanted, rtol=0.01)
    np.testing.assert_allclose(scale[:, 0] * true[:, 1] + offset[:, 0], true[0, 1], atol=3.0)
    assert all(gain.supported for gain in gains)
    assert (scale[0, 0], offset[0, 0]) == (1.0, 0.0)
    alone, _, direct = photometric(stats, transforms, 0)
    assert np.isnan(alone[-1]).all() and not direct[-1].supported  # none of its stars is the reference's


def test_frames_that_overlap_are_matched_to_the_reference_alone(rng: np.random.Generator) -> None:
    stats, transforms, _ = frames(rng, 8, 10.0)
    assert not overlaps.overlap_by_little(stats, transforms, 0)
    for a, b in zip(
        photometric(stats, transforms, 0), photometric(stats, transforms, 0, through_others=True), strict=True
    ):
        assert all(np.array_equal(x, y) if isinstance(x, np.ndarray) else True for x, y in zip(a, b, strict=True))


def test_a_frame_that_no_link_leads_to_has_no_gain(rng: np.random.Generator) -> None:
    stats, transforms, _ = frames(rng, 6, 64.0)
    transforms[5] = transforms[5] @ np.array([[1.0, 0.0, 9e3], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    gains = overlaps.gains_through(overlaps.links_of(stats, transforms, 0), 6, 1, 0)
    assert np.isnan(gains[5].factor).all() and np.isinf(gains[5].error).all()
    assert np.isfinite(gains[4].factor).all()
