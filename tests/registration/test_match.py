"""Stars, matching, verdict and WCS (``registration.match`` and its neighbours) on simulated fields of known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from register_case import SHAPE, SPEC, rms_error, similarity

from zemosaic_phase3.detection.star_finder import StarList
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points


def star_list(xy, brightness, shape=SHAPE, limit=400, rng=None, error=0.03):
    """List of the stars inside the frame, brightest first, with noisy positions."""
    if rng is not None:
        xy = xy + error * rng.standard_normal(xy.shape)
    inside = np.all((xy > 6) & (xy < [shape[1] - 7, shape[0] - 7]), axis=1)
    index = np.flatnonzero(inside)
    index = index[np.argsort(-brightness[index], kind="stable")][:limit]
    ones = np.ones(len(index))
    return StarList(xy[index, 0], xy[index, 1], brightness[index], 3 * ones, 0 * ones, error * ones)


def field_pair(matrix, n=500, seed=0, missing=0.0, hot=0, spurious=0, limit=400, shape=SHAPE, related=True):
    """Star lists of a sky with n stars per frame, seen through the identity and through ``matrix``."""
    rng = np.random.default_rng(seed)
    size = np.array([shape[1], shape[0]])
    sky = (rng.random((9 * n, 2)) * 3 - 1) * size
    brightness = rng.pareto(1.0, 9 * n) + 0.1
    other = sky if related else (rng.random((9 * n, 2)) * 3 - 1) * size
    seen = rng.random(9 * n) >= missing
    defects, defect_brightness = rng.random((hot, 2)) * size, rng.pareto(1.0, hot) + 0.1
    noise, noise_brightness = rng.random((spurious, 2)) * size, rng.pareto(1.0, spurious) + 0.1
    jitter = 1 + 0.05 * rng.standard_normal(9 * n)
    reference = star_list(np.vstack((sky, defects)), np.append(brightness, defect_brightness), shape, limit, rng)
    frame = star_list(
        np.vstack((transform_points(matrix, other)[seen], defects, noise)),
        np.concatenate(((brightness * jitter)[seen], defect_brightness, noise_brightness)),
        shape,
        limit,
        rng,
    )
    return reference, frame


GOOD = {
    "dither": (similarity(1.0, 0.3, (12.3, -7.1)), {}),
    "rotation 37": (similarity(1.0, 37, (5, 5)), {}),
    "rotation -101": (similarity(1.0, -101, (5, 5)), {}),
    "meridian flip": (similarity(1.0, 180, (8, 3)), {}),
    "half a frame sideways": (similarity(1.0, 1, (470, 10)), {}),
    "half a frame diagonally": (similarity(1.0, 1, (430, 240)), {}),
    "scale +2 %": (similarity(1.02, 10, (3, 4)), {}),
    "scale -2 %": (similarity(0.98, -10, (3, 4)), {}),
    "12 stars": (similarity(1.0, 1, (6, -9)), {"limit": 12, "n": 40}),
    "5,000 stars": (similarity(1.0, 20, (50, 10)), {"n": 5000, "limit": 5000}),
    "40 % missing": (similarity(1.0, 2, (30, 10)), {"missing": 0.4}),
    "shifted and 40 % missing": (similarity(1.0, 2, (400, 10)), {"missing": 0.4}),
    "trail pieces": (similarity(1.0, 2, (30, 10)), {"n": 100, "spurious": 100}),
    "hot pixels as many as stars": (similarity(1.0, 1, (14, 9)), {"n": 60, "hot": 60}),
    "hot pixels outnumber stars": (similarity(1.0, 1, (14, 9)), {"n": 30, "hot": 70}),
    "rotation about the centre, hot pixels": (similarity(1.0, 4), {"n": 60, "hot": 60}),
    "no motion": (np.eye(3), {}),
    "motion of 0.4 px": (similarity(1.0, 0, (0.4, 0.1)), {}),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("seed", [0, 1])
def test_good_fields_register(name, seed):
    truth, options = GOOD[name]
    reference, frame = field_pair(truth, seed=seed, **options)
    result = register_stars(reference, frame, SHAPE, SPEC)
    assert result.ok, result.reason
    assert result.method == "stars" and result.reason == ""
    # Four parameters from 12 pairs with 0.04 px of noise per axis leave 0.025 px on average.
    assert rms_error(result.transform, truth, reference) < (0.03 if len(reference) > 12 else 0.06)
    again = register_stars(reference, frame, SHAPE, SPEC)
    np.testing.assert_array_equal(again.transform, result.transform)


def test_unrelated_fields_never_register():
    accepted = []
    for seed in range(100):
        n, limit = ((200, 400), (40, 12), (60, 30), (40, 25))[seed % 4]
        reference, frame = field_pair(np.eye(3), n, seed, related=False, limit=limit, hot=(0, 20)[seed % 8 == 0])
        result = register_stars(reference, frame, SHAPE, SPEC, seed=np.eye(3) if seed % 3 == 0 else None)
        if result.ok:
            accepted.append((seed, result))
        assert result.ok or result.reason
    assert accepted == []


def test_mirror_images_do_not_match():
    mirror = np.array([[-1.0, 0, SHAPE[1] - 1], [0, 1, 0], [0, 0, 1]])
    for kind in ("similarity", "affine", "homography"):
        reference, frame = field_pair(mirror)
        assert not register_stars(reference, frame, SHAPE, replace(SPEC, transform=kind)).ok


def test_regular_patterns_do_not_match_a_star_field():
    rows, columns = np.meshgrid(np.arange(20, 520, 25.0), np.arange(20, 940, 25.0))
    lattice = np.column_stack((columns.ravel(), rows.ravel()))
    reference, _ = field_pair(np.eye(3))
    frame = star_list(lattice, np.random.default_rng(0).random(len(lattice)))
    assert not register_stars(reference, frame, SHAPE, SPEC).ok


def test_hot_pixels_alone_are_not_sky():
    """A frame of clouds: the reference's stars are gone, its hot pixels remain."""
    reference, _ = field_pair(np.eye(3), n=200, hot=60)
    defects = reference.select(np.random.default_rng(0).permutation(len(reference))[:50])
    result = register_stars(reference, defects, SHAPE, SPEC)
    assert not result.ok and "hot pixels" in result.reason


def test_failures_say_why():
    reference, frame = field_pair(similarity(1.1, 3, (5, 5)))
    result = register_stars(reference, frame, SHAPE, SPEC)
    assert not result.ok and "scale 1.1" in result.reason and result.matched > 50
    few = register_stars(reference, frame.select(np.arange(3)), SHAPE, SPEC)
    assert not few.ok and "3 stars in the frame, at least 4" in few.reason
    reference, frame = field_pair(similarity(1.0, 3, (5, 5)), limit=8, n=30)
    many = register_stars(reference, frame, SHAPE, replace(SPEC, min_matched=9, max_stars=20))
    assert not many.ok and "at least 9" in many.reason
    reference, frame = field_pair(similarity(1.0, 3, (5, 5)))
    tight = register_stars(reference, frame, SHAPE, replace(SPEC, max_rms_px=0.01))
    assert not tight.ok and "rms 0.0" in tight.reason and "0.01 px" in tight.reason


def test_a_clump_of_matches_cannot_carry_a_frame():
    rng = np.random.default_rng(4)
    clump = [40, 40] + 10 * rng.random((12, 2))
    reference = star_list(clump, rng.random(12), rng=rng, error=0.1)
    frame = star_list(clump + [20, 9], rng.random(12), rng=rng, error=0.1)
    result = register_stars(reference, frame, SHAPE, replace(SPEC, max_rms_px=0.5))
    assert not result.ok


@pytest.mark.parametrize("kind", ["affine", "homography"])
def test_models_beyond_similarity(kind):
    truth = similarity(1.0, 5, (20, 10))
    truth[:2, :2] = truth[:2, :2] @ [[1.004, 0.003], [-0.001, 0.998]]
    if kind == "homography":
        truth[2, :2] = [6e-6, -8e-6]
    reference, frame = field_pair(truth)
    result = register_stars(reference, frame, SHAPE, replace(SPEC, transform=kind))
    assert result.ok, result.reason
    assert rms_error(result.transform, truth, reference) < 0.02
    plain = register_stars(reference, frame, SHAPE, SPEC)
    assert rms_error(plain.transform, truth, reference) > 0.2


@pytest.mark.parametrize("kind", ["similarity", "affine", "homography"])
def test_all_models_survive_a_poor_field(kind):
    truth = similarity(1.0, 1, (6, -9))
    reference, frame = field_pair(truth, n=60, limit=25, spurious=5)
    result = register_stars(reference, frame, SHAPE, replace(SPEC, transform=kind))
    assert result.ok, result.reason
    assert rms_error(result.transform, truth, reference) < 0.15


def test_a_seed_need_only_be_near():
    truth = similarity(1.0, 90.0, (15, -11))
    reference, frame = field_pair(truth, missing=0.3)
    for error in (np.eye(3), similarity(1.0, 0.2, (45, -38))):
        result = register_stars(reference, frame, SHAPE, SPEC, seed=error @ truth)
        assert result.ok and rms_error(result.transform, truth, reference) < 0.03
    wrong = register_stars(reference, frame, SHAPE, SPEC, seed=np.eye(3))
    assert wrong.ok and rms_error(wrong.transform, truth, reference) < 0.03


def test_a_seed_registers_what_asterisms_cannot_place():
    """Seven stars and three times as many false detections: only a seed and the votes of all pairs remain cheap."""
    truth = similarity(1.0, 0.5, (8, -6))
    reference, frame = field_pair(truth, n=30, limit=400, spurious=60, seed=2)
    result = register_stars(reference, frame, SHAPE, SPEC, seed=similarity(1.0, 0.5, (20, 5)))
    assert result.ok, result.reason
    assert rms_error(result.transform, truth, reference) < 0.05


@pytest.mark.parametrize("kind", ["similarity", "affine", "homography"])
def test_auto_takes_the_simplest_model_that_fits(kind):
    truth = similarity(1.0, 5, (20, 10))
    if kind != "similarity":
        truth[:2, :2] = truth[:2, :2] @ [[1.002, 0.001], [-0.001, 0.999]]
    if kind == "homography":
        truth[2, :2] = [6e-6, -8e-6]
    reference, frame = field_pair(truth)
    result = register_stars(reference, frame, SHAPE, replace(SPEC, transform="auto"))
    assert result.ok, result.reason
    assert result.model == kind
    assert rms_error(result.transform, truth, reference) < 0.02


def test_auto_keeps_the_similarity_of_plain_fields():
    models = []
    for seed in range(30):
        reference, frame = field_pair(similarity(1.0, 2, (30, 10)), n=(500, 60)[seed % 2], seed=seed)
        models.append(register_stars(reference, frame, SHAPE, replace(SPEC, transform="auto")).model)
    assert models.count("similarity") >= 29


def test_auto_registers_what_no_similarity_does():
    truth = similarity(1.0, 3, (5, 5))
    truth[2, :2] = [4e-5, 4e-5]  # 30 px at the corners
    reference, frame = field_pair(truth)
    assert not register_stars(reference, frame, SHAPE, SPEC).ok
    result = register_stars(reference, frame, SHAPE, replace(SPEC, transform="auto", max_scale_error=0.2))
    assert result.ok and result.model == "homography", result.reason
    assert rms_error(result.transform, truth, reference) < 0.03


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_motionless_frame_of_clouds_is_sky(share):
    """The faint stars are gone and the others dimmed: what is left is the brighter part of the reference."""
    reference, frame = field_pair(np.eye(3), n=500, seed=3)
    clouded = frame.select(np.arange(round(share * len(frame))))
    clouded = replace(clouded, flux=0.4 * clouded.flux)
    result = register_stars(reference, clouded, SHAPE, SPEC)
    assert result.ok, result.reason
    assert rms_error(result.transform, np.eye(3), reference) < 0.05
