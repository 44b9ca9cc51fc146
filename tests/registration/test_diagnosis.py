"""Tests of ``registration.diagnosis``: what a frame that does not register is."""

from __future__ import annotations

import numpy as np
import pytest
from register_case import SHAPE, SPEC, similarity

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.registration.diagnosis import (
    brightest,
    is_mirrored,
    mirrored,
    other_scale,
    overlap,
    still_detections,
)
from zemosaic_phase3.registration.transform import transform_points


def sky(seed: int, n: int = 900) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.random((n, 2)) * 3.0 - 1.0) * [SHAPE[1], SHAPE[0]], 10 ** rng.uniform(3.0, 5.5, n)


def seen(xy: np.ndarray, flux: np.ndarray, matrix: np.ndarray, seed: int = 0) -> StarList:
    rng = np.random.default_rng(seed)
    at = transform_points(matrix, xy) + rng.normal(0, 0.05, xy.shape)
    inside = np.flatnonzero(np.all((at > 5) & (at < np.array(SHAPE[::-1]) - 6), axis=1))
    order = inside[np.argsort(-flux[inside])]
    n = len(order)
    return StarList(at[order, 0], at[order, 1], flux[order], np.full(n, 3.0), np.full(n, 0.1), np.full(n, 0.05))


@pytest.mark.parametrize("scale", [0.5, 0.625, 0.8, 1.25, 1.6, 2.0])
def test_another_scale_is_named(scale: float) -> None:
    for seed in range(3):
        xy, flux = sky(seed)
        ours, theirs = seen(xy, flux, np.eye(3)), seen(xy, flux, similarity(scale, 15.0, (20.0, -9.0)), 1)
        found = other_scale(ours, theirs, SHAPE, SPEC)
        assert found is not None
        assert found.scale == pytest.approx(scale, rel=0.005)
        assert found.matched >= SPEC.min_matched


def test_no_scale_is_found_for_another_field_or_an_allowed_one() -> None:
    for seed in range(12):
        xy, flux = sky(seed)
        other, theirs = sky(seed + 100)
        assert other_scale(seen(xy, flux, np.eye(3)), seen(other, theirs, np.eye(3)), SHAPE, SPEC) is None
    assert other_scale(seen(xy, flux, np.eye(3)), seen(xy, flux, similarity(1.01), 1), SHAPE, SPEC) is None
    few = brightest(seen(xy, flux, np.eye(3)), 4)
    assert other_scale(few, few, SHAPE, SPEC) is None


@pytest.mark.parametrize("degrees", [0.0, 12.0, 180.0])
def test_mirrored_frames_are_known(degrees: float) -> None:
    xy, flux = sky(1)
    ours, theirs = seen(xy, flux, np.eye(3)), seen(xy, flux, similarity(1.0, degrees, (9.0, 4.0)), 1)
    turned = mirrored(theirs, SHAPE[0])
    assert turned.y[0] == SHAPE[0] - 1 - theirs.y[0]
    assert is_mirrored(ours, turned, SHAPE, SPEC)
    assert not is_mirrored(ours, theirs, SHAPE, SPEC)


def test_other_fields_are_not_mirrored() -> None:
    for seed in range(12):
        (xy, flux), (other, theirs) = sky(seed), sky(seed + 100)
        assert not is_mirrored(seen(xy, flux, np.eye(3)), seen(other, theirs, np.eye(3)), SHAPE, SPEC)


def test_detections_that_stand_still_are_counted() -> None:
    xy, flux = sky(1)
    ours = seen(xy, flux, np.eye(3))
    assert still_detections(ours, seen(xy, flux, np.eye(3), 1), SHAPE) == len(ours)
    assert still_detections(ours, seen(xy, flux, similarity(1.0, 0.0, (30.0, 0.0)), 1), SHAPE) < 0.1 * len(ours)


def test_overlap_and_distance() -> None:
    part, away = overlap(similarity(1.0, 0.0, (-240.0, 0.0)), SHAPE)
    assert part == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(away, [240.0, 0.0])
    assert overlap(similarity(1.0, 0.0, (0.0, 600.0)), SHAPE)[0] == 0.0
