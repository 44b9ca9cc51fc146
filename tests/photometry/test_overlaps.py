"""Gains, offsets and skies of frames that share nothing with the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from zemosaic_phase3.photometry import mosaic_sky, overlaps
from zemosaic_phase3.photometry.normalize import photometric
from zemosaic_phase3.records import FrameStats, FrameTable
from zemosaic_phase3.registration.transform import transform_points

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


def with_sky(stats: list[FrameStats], transforms: list[np.ndarray], sky: Any) -> list[FrameStats]:
    """Return frames whose meshes show ``sky(frame, u, v, x, y)``: -1 to 1 on the frame, px of the field."""
    size = np.array([SIZE[1], SIZE[0]])
    y, x = np.mgrid[: SIZE[0] // CELL, : SIZE[1] // CELL] * float(CELL) + (CELL - 1) / 2
    half = (size - 1) / 2
    found = []
    for k, own in enumerate(stats):
        field = transform_points(np.linalg.inv(transforms[k]), np.stack([x, y], axis=-1))
        level = sky(k, (x - half[0]) / half[0], (y - half[1]) / half[1], field[..., 0], field[..., 1])
        found.append(replace(own, sky_mesh=level[..., None].astype(np.float32)))
    return found


def table_of(
    stats: list[FrameStats], transforms: list[np.ndarray], scale: np.ndarray, offset: np.ndarray
) -> FrameTable:
    names = [str(k) for k in range(len(stats))]
    return FrameTable(names, np.stack(transforms), scale, offset, np.ones_like(scale), normalize_method="photometric")


def test_skies_of_a_wandering_field_become_one(rng: np.random.Generator) -> None:
    stats, transforms, _ = frames(rng, 16, 64.0)
    turn = np.linspace(0.0, 2.0, 16)
    gain = rng.uniform(0.8, 1.2, 16)

    def sky(k: int, u: np.ndarray, v: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        own = 40.0 * (np.cos(turn[k]) * u + np.sin(turn[k]) * v) + 3.0 * k  # fixed to the camera, and turning
        real = 60.0 * np.exp(-((x - 600.0) ** 2 + (y - 120.0) ** 2) / 150.0**2)  # a nebula, fixed to the sky
        return (1000.0 + own + real + rng.normal(0.0, 0.3, u.shape)) * gain[k]

    stats = with_sky(stats, transforms, sky)
    scale = 1.0 / gain[:, None]
    links = [
        overlaps.Link(a, b, np.ones(1), np.ones(1), np.ones(1)) for a, b, _ in overlaps.pairs_of(stats, transforms, 0)
    ]
    table = table_of(stats, transforms, scale, overlaps.offsets_through(links, stats, transforms, scale, 0))
    terms = mosaic_sky.mosaic_surfaces(stats, table, 0, (SIZE[1], SIZE[0]))

    def spread(of: np.ndarray) -> tuple[float, float]:
        """Largest difference of frames at one place, and of the field from its nebula."""
        x, y = np.meshgrid(np.arange(160.0, 1120.0, 40.0), np.arange(40.0, 220.0, 40.0))
        places = np.stack([x, y], axis=-1).reshape(-1, 2)
        seen = np.full((16, len(places)), np.nan)
        for k in range(16):
            at = transform_points(transforms[k], places)
            inside = ((at > 20) & (at < (SIZE[1] - 20, SIZE[0] - 20))).all(axis=1)
            u, v = ((at[inside] - 159.5) / 159.5)[:, 0], ((at[inside] - 119.5) / 119.5)[:, 1]
            level = sky(k, u, v, *places[inside].T)
            added = mosaic_sky.surface_terms(at[inside], (SIZE[1], SIZE[0])) @ of[k, 0]
            seen[k, inside] = scale[k, 0] * (level + added) + table.offset[k, 0]
        places, seen = places[np.isfinite(seen).any(axis=0)], seen[:, np.isfinite(seen).any(axis=0)]
        nebula = 60.0 * np.exp(-((places[:, 0] - 600.0) ** 2 + (places[:, 1] - 120.0) ** 2) / 150.0**2)
        level = np.nanmean(seen, axis=0) - nebula
        return float(np.nanmax(np.nanmax(seen, axis=0) - np.nanmin(seen, axis=0))), float(np.ptp(level))

    (step_before, ramp_before), (step, ramp) = spread(np.zeros_like(terms)), spread(terms)
    assert step_before > 10.0 and step < 3.0
    assert ramp < 0.6 * ramp_before


def test_frames_that_share_no_sky_get_no_surface(rng: np.random.Generator) -> None:
    stats, transforms, _ = frames(rng, 3, 9e3)
    table = table_of(stats, transforms, np.ones((3, 1)), np.zeros((3, 1)))
    assert not mosaic_sky.mosaic_surfaces(stats, table, 0, (SIZE[1], SIZE[0])).any()
