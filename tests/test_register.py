"""Stars, matching, verdict and WCS (``registration.match`` and its neighbours) on simulated fields of known truth."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from zemosaic_phase3.detection.star_finder import StarList, choose_reference, detect_stars
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.registration.distortion import displacement
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import similarity_parameters, transform_points
from zemosaic_phase3.registration.wcs import register_wcs, wcs_transform
from zemosaic_phase3.spec import RegisterSpec

SPEC = RegisterSpec()
SHAPE = (540, 960)
SIGMA_OF_FWHM = 1.0 / 2.3548


# --------------------------------------------------------------------------- simulated fields


def paint(shape, x, y, peak, fwhm=3.0, seed=0, sky=1000.0, noise=30.0):
    """Frame (H, W) float32 ADU with Gaussian stars."""
    image = np.random.default_rng(seed).normal(sky, noise, shape).astype(np.float32)
    radius = int(np.ceil(4 * fwhm))
    span = np.arange(-radius, radius + 1)
    padded = np.pad(image, radius)
    for a, b, height in zip(x, y, np.broadcast_to(peak, len(x)), strict=True):
        column, row = round(a), round(b)
        if 0 <= column < shape[1] and 0 <= row < shape[0]:
            profile_x = np.exp(-0.5 * ((span + column - a) / (fwhm * SIGMA_OF_FWHM)) ** 2)
            profile_y = np.exp(-0.5 * ((span + row - b) / (fwhm * SIGMA_OF_FWHM)) ** 2)
            window = np.s_[row : row + 2 * radius + 1, column : column + 2 * radius + 1]
            padded[window] += height * np.outer(profile_y, profile_x)
    return padded[radius:-radius, radius:-radius]


def similarity(scale=1.0, degrees=0.0, shift=(0.0, 0.0), shape=SHAPE):
    """Reference -> frame about the centre."""
    angle = np.radians(degrees)
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:2, 2] = centre + shift - matrix[:2, :2] @ centre
    return matrix


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


def rms_error(matrix, truth, reference, shape=SHAPE):
    target = transform_points(truth, reference.xy)
    seen = np.all((target > 0) & (target < [shape[1], shape[0]]), axis=1)
    return float(np.sqrt(np.mean(np.sum((transform_points(matrix, reference.xy) - target)[seen] ** 2, axis=1))))


def nearest(stars, x, y):
    """Distance to, and index of, the true star nearest to each detection."""
    distance = np.hypot(stars.x[:, None] - np.asarray(x), stars.y[:, None] - np.asarray(y))
    return distance.min(axis=1), distance.argmin(axis=1)


def grid_stars(n=60, shape=SHAPE, seed=3):
    """Isolated star positions with random sub-pixel phase."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(40, shape[1] - 40, 60), np.arange(40, shape[0] - 40, 60))
    pick = rng.permutation(columns.size)[:n]
    return columns.ravel()[pick] + rng.random(len(pick)), rows.ravel()[pick] + rng.random(len(pick))


# --------------------------------------------------------------------------- detection


@pytest.mark.parametrize("fwhm", [2.5, 3.0, 4.0])
def test_detection_measures_position_width_and_flux(fwhm):
    x, y = grid_stars()
    peak = np.geomspace(300, 50_000, len(x))
    stars = detect_stars(paint(SHAPE, x, y, peak, fwhm), SPEC)
    assert len(stars) == len(x)
    distance, index = nearest(stars, x, y)
    assert distance.max() < 0.25 and np.sqrt(np.mean(distance**2)) < 0.08
    assert abs(np.median(stars.fwhm) / fwhm - 1) < 0.02
    bright = peak[index] > 1000
    assert np.abs(stars.fwhm[bright] / fwhm - 1).max() < 0.1
    ratio = stars.flux[bright] / (2 * np.pi * (fwhm * SIGMA_OF_FWHM) ** 2 * peak[index][bright])
    assert np.abs(ratio / np.median(ratio) - 1).max() < 0.05
    assert 1.0 < np.median(ratio) < 1.14, "these stars are Gaussian, and the profile that is fitted has wings"
    assert np.all(np.diff(stars.flux) <= 0)
    assert np.median(stars.eccentricity[bright]) < 0.25
    # The stated errors are those seen (faint stars, where the floor does not rule).
    faint = peak[index] < 3000
    assert 0.5 < np.median(distance[faint] / stars.error[faint]) / 1.177 < 1.3


def test_moffat_stars_are_centred_without_bias():
    x, y = grid_stars(seed=8)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.random.default_rng(0).normal(1000, 30, SHAPE)
    alpha = 3.0 / (2 * np.sqrt(2 ** (1 / 3.0) - 1))
    for a, b in zip(x, y, strict=True):
        window = np.s_[int(b) - 30 : int(b) + 31, int(a) - 30 : int(a) + 31]
        squared = (columns[window] - a) ** 2 + (rows[window] - b) ** 2
        image[window] += 20_000 * (1 + squared / alpha**2) ** -3.0
    stars = detect_stars(image.astype(np.float32), SPEC)
    distance, _ = nearest(stars, x, y)
    assert len(stars) == len(x) and distance.max() < 0.02
    assert abs(np.median(stars.fwhm) / 3.0 - 1) < 0.15


def test_elongated_stars_are_measured_as_such():
    x, y = grid_stars(30)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.random.default_rng(0).normal(1000, 30, SHAPE)
    for a, b in zip(x, y, strict=True):
        image += 5000 * np.exp(-0.5 * (((columns - a) / 2.4) ** 2 + ((rows - b) / 1.2) ** 2))
    stars = detect_stars(image.astype(np.float32), SPEC)
    assert len(stars) == 30
    assert abs(np.median(stars.eccentricity) - np.sqrt(1 - 0.25)) < 0.03


def test_binned_coordinates_are_mapped_to_full_resolution():
    x, y = grid_stars(20)
    image = paint(SHAPE, x, y, 5000.0)
    binned, full = detect_stars(image, SPEC, scale=2.0, offset=0.5), detect_stars(image, SPEC)
    np.testing.assert_allclose(binned.xy, full.xy * 2 + 0.5)
    np.testing.assert_allclose(binned.fwhm, 2 * full.fwhm)
    np.testing.assert_allclose(binned.error, 2 * full.error)
    np.testing.assert_array_equal(binned.flux, full.flux)


def test_max_stars_keeps_the_brightest():
    x, y = grid_stars(80)
    peak = np.geomspace(500, 40_000, 80)
    stars = detect_stars(paint(SHAPE, x, y, peak), replace(SPEC, max_stars=30))
    _, index = nearest(stars, x, y)
    assert sorted(index) == list(range(50, 80))


def _correlated_noise():
    image = np.random.default_rng(2).normal(0, 30, SHAPE)
    for axis in (0, 1):
        image = image + 0.5 * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    return image + 1000


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(SHAPE),
        np.full(SHAPE, 1234.5),
        np.full(SHAPE, np.nan),
        np.random.default_rng(1).normal(1000, 30, SHAPE),
        np.random.default_rng(1).poisson(3.0, SHAPE),
        _correlated_noise(),
        np.add.outer(np.linspace(0, 5000, SHAPE[0]), np.linspace(0, 5000, SHAPE[1])),
        np.zeros((2, 2)),
        np.random.default_rng(1).normal(1000, 30, (9, 11)),
        np.zeros((1, 500)),
    ],
    ids=["zero", "constant", "nan", "noise", "counts", "correlated", "ramp", "2x2", "9x11", "row"],
)
def test_images_without_stars_give_an_empty_list(image):
    stars = detect_stars(image.astype(np.float32), SPEC)
    assert len(stars) == 0
    verdict = register_stars(stars, stars, image.shape, SPEC)
    assert not verdict.ok and "0 stars in the reference" in verdict.reason


def test_a_colour_image_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 5, 3\)"):
        detect_stars(np.zeros((4, 5, 3), np.float32), SPEC)


def test_invalid_pixels_make_no_stars_and_hide_none():
    x, y = grid_stars(60)
    image = paint(SHAPE, x, y, 5000.0)
    image[:, :200] = np.nan
    image[100, 300:320] = np.inf
    stars = detect_stars(image, SPEC)
    distance, index = nearest(stars, x, y)
    assert distance.max() < 0.2
    clear = np.flatnonzero((x > 210) & (np.hypot(y - 100, x - np.clip(x, 300, 319)) > 8))
    assert set(clear) <= set(index)
    assert np.all(stars.x > 200)


def test_hot_pixels_trails_and_edges_are_not_stars():
    x, y = grid_stars(60)
    image = paint(SHAPE, x, y, 5000.0)
    rng = np.random.default_rng(5)
    hot_y, hot_x = rng.integers(5, SHAPE[0] - 5, 300), rng.integers(5, SHAPE[1] - 5, 300)
    apart = np.min(np.hypot(hot_x[:, None] - x, hot_y[:, None] - y), axis=1) > 12
    image[hot_y[apart], hot_x[apart]] += rng.uniform(500, 50_000, np.count_nonzero(apart)).astype(np.float32)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image += (2000 * np.exp(-0.5 * ((rows - 0.4 * columns - 80.3) / 1.3) ** 2)).astype(np.float32)
    edge = paint(SHAPE, [1.0, 500.0, 958.6], [200.0, 538.5, 300.0], 20_000.0, noise=0.0, sky=0.0)
    stars = detect_stars(image + edge, SPEC)
    distance, index = nearest(stars, x, y)
    off_trail = np.abs(y - 0.4 * x - 80.3) > 15
    assert np.count_nonzero(distance > 1.0) <= 3
    assert len(set(np.flatnonzero(off_trail)) - set(index)) <= 1


def test_saturated_stars_stay_with_a_larger_error():
    x, y = grid_stars(40)
    peak = np.where(np.arange(40) < 8, 400_000.0, 5000.0)
    stars = detect_stars(np.minimum(paint(SHAPE, x, y, peak), 60_000), SPEC)
    distance, index = nearest(stars, x, y)
    saturated = index < 8
    assert np.count_nonzero(saturated) == 8 and np.all(stars.error[saturated] >= 0.15)
    assert distance[saturated].max() < 0.3
    assert np.all(stars.error[~saturated] < 0.1)


def test_a_crowded_field_does_not_raise_and_is_repeatable():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1919, 5000), rng.uniform(0, 1079, 5000)
    image = paint((1080, 1920), x, y, np.exp(rng.uniform(np.log(100), np.log(50_000), 5000)))
    untouched = image.copy()
    first = detect_stars(image, replace(SPEC, max_stars=5000))
    assert 3000 < len(first) <= 5000
    np.testing.assert_array_equal(image, untouched)
    with ThreadPoolExecutor(2) as pool:
        for again in pool.map(lambda _: detect_stars(image, replace(SPEC, max_stars=5000)), range(2)):
            np.testing.assert_array_equal(again.xy, first.xy)


# --------------------------------------------------------------------------- from image to transform


def test_painted_frames_register_to_a_fraction_of_a_pixel():
    """Noise, hot pixels that do not move and a trail across the frame, as in real subs."""
    rng = np.random.default_rng(11)
    sky = (rng.random((900, 2)) * 1.4 - 0.2) * [SHAPE[1], SHAPE[0]]
    peak = np.minimum(100 / (1 - rng.random(900)), 50_000)
    truth = similarity(1.0, 3.0, (22.4, -13.7))
    hot = rng.integers(3, SHAPE[0] - 3, 80), rng.integers(3, SHAPE[1] - 3, 80)
    lists = []
    for k, matrix in enumerate((np.eye(3), truth)):
        image = paint(SHAPE, *transform_points(matrix, sky).T, peak, seed=k)
        image[hot] += 8000
        rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
        image += k * (900 * np.exp(-0.5 * ((rows + 0.7 * columns - 600) / 1.5) ** 2)).astype(np.float32)
        lists.append(detect_stars(image, SPEC))
    result = register_stars(*lists, SHAPE, SPEC)
    assert result.ok, result.reason
    assert rms_error(result.transform, truth, lists[0]) < 0.02
    assert result.matched > 100 and result.rms_px < 0.3


# --------------------------------------------------------------------------- matching


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
    few = register_stars(reference, frame.select(np.arange(4)), SHAPE, SPEC)
    assert not few.ok and "4 stars in the frame, at least 6" in few.reason
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


def test_bright_stars_weigh_more():
    truth = similarity(1.0, 2, (10, 5))
    rng = np.random.default_rng(3)
    sky = rng.random((100, 2)) * [SHAPE[1], SHAPE[0]]
    error = np.where(np.arange(100) < 20, 0.01, 0.4)
    frame_xy = transform_points(truth, sky) + error[:, None] * rng.standard_normal((100, 2))
    ones = np.ones(100)
    reference = StarList(*sky.T, 100.0 - np.arange(100), ones, ones, 0.01 * ones)
    frame = StarList(*frame_xy.T, 100.0 - np.arange(100), ones, ones, error)
    blind = replace(frame, error=ones)
    weighted, equal = (register_stars(reference, each, SHAPE, SPEC) for each in (frame, blind))
    assert weighted.ok and equal.ok
    assert rms_error(weighted.transform, truth, reference) < 0.5 * rms_error(equal.transform, truth, reference)


# --------------------------------------------------------------------------- models


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


# --------------------------------------------------------------------------- clouds without dither


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_motionless_frame_of_clouds_is_sky(share):
    """The faint stars are gone and the others dimmed: what is left is the brighter part of the reference."""
    reference, frame = field_pair(np.eye(3), n=500, seed=3)
    clouded = frame.select(np.arange(round(share * len(frame))))
    clouded = replace(clouded, flux=0.4 * clouded.flux)
    result = register_stars(reference, clouded, SHAPE, SPEC)
    assert result.ok, result.reason
    assert rms_error(result.transform, np.eye(3), reference) < 0.05


# --------------------------------------------------------------------------- WCS


def make_wcs(ra=150.0, dec=30.0, degrees=0.0, sip=False, ctype="RA---TAN"):
    from astropy.wcs import WCS, Sip

    wcs = WCS(naxis=2)
    latitude = {"RA--": "DEC-", "GLON": "GLAT"}[ctype[:4]]
    wcs.wcs.ctype = [ctype, latitude + ctype[4:]]
    wcs.wcs.crval, wcs.wcs.crpix = [ra, dec], [SHAPE[1] / 2, SHAPE[0] / 2]
    angle = np.radians(degrees)
    wcs.wcs.cd = 2.4 / 3600 * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if sip:
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], b[0, 2], b[1, 1] = 6e-6, -5e-6, 3e-6
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


@pytest.mark.parametrize("sip", [False, True])
def test_wcs_gives_the_map_through_the_sky(sip):
    from astropy.wcs.utils import pixel_to_pixel

    ours, theirs = make_wcs(sip=sip), make_wcs(150.05, 30.03, 8.0, sip=sip)
    result = register_wcs(ours, theirs, SHAPE, replace(SPEC, transform="homography"))
    assert result.ok and result.method == "wcs" and result.reason == ""
    points = np.array([[200.0, 100], [480, 270], [700, 400]])
    expected = np.column_stack(pixel_to_pixel(ours, theirs, *points.T))
    mapped = transform_points(result.transform, points)
    assert (result.distortion is not None) == sip
    mapped = mapped + displacement(result.distortion, points) if sip else mapped
    np.testing.assert_allclose(mapped, expected, atol=5e-3 if sip else 1e-3)
    assert result.rms_px < (5e-3 if sip else 1e-3)
    seed = wcs_transform(ours, theirs, SHAPE)
    np.testing.assert_allclose(transform_points(seed, points), expected, atol=1.0)


def test_wcs_of_another_celestial_system():
    from astropy.coordinates import SkyCoord

    ours = make_wcs()
    centre = SkyCoord(150.0, 30.0, unit="deg").galactic
    result = register_wcs(ours, make_wcs(centre.l.deg, centre.b.deg, ctype="GLON-TAN"), SHAPE, SPEC)
    assert result.ok, result.reason
    middle = np.array([[SHAPE[1] / 2 - 1, SHAPE[0] / 2 - 1]])
    np.testing.assert_allclose(transform_points(result.transform, middle), middle, atol=0.01)


@pytest.mark.parametrize("dec", [32.0, -30.0, -89.0])
def test_wcs_of_another_field_fails(dec):
    result = register_wcs(make_wcs(), make_wcs(dec=dec), SHAPE, SPEC)
    assert not result.ok and "overlap" in result.reason
    with pytest.raises(FrameError, match="overlap"):
        wcs_transform(make_wcs(), make_wcs(dec=dec), SHAPE)


def test_wcs_with_a_worse_model_or_mirrored_fails():
    ours, flat = make_wcs(), make_wcs()
    sheared = make_wcs(degrees=5.0)
    sheared.wcs.cd = sheared.wcs.cd @ np.array([[1.0, 0.01], [0.0, 1.0]])
    sheared.wcs.set()
    result = register_wcs(ours, sheared, SHAPE, replace(SPEC, max_rms_px=0.05))
    assert not result.ok and "px rms" in result.reason
    assert register_wcs(ours, sheared, SHAPE, replace(SPEC, max_rms_px=0.05, transform="affine")).ok
    mirrored = make_wcs()
    mirrored.wcs.cd = mirrored.wcs.cd @ np.diag([-1.0, 1.0])
    mirrored.wcs.set()
    result = register_wcs(flat, mirrored, SHAPE, replace(SPEC, transform="affine"))
    assert not result.ok and "mirror" in result.reason


# --------------------------------------------------------------------------- small things


def flat_list(n, fwhm):
    ones = np.ones(n)
    return StarList(ones, ones, ones, fwhm * ones, ones)


def test_the_reference_is_sharp_populated_and_central():
    frames = [flat_list(100, 3.0), flat_list(90, 2.6), flat_list(20, 2.0), flat_list(0, 1.0), flat_list(95, 2.6)]
    assert choose_reference(frames, SHAPE) == 4
    assert choose_reference(frames[:4], SHAPE) == 1
    assert choose_reference([flat_list(50, 3.0), flat_list(50, 3.0)], SHAPE) == 0
    offsets = np.array([[0.0, 0], [5, 5], [0, 0], [0, 0], [900, 0]])
    assert choose_reference(frames, SHAPE, offsets) == 1
    offsets[1] = np.nan
    assert choose_reference(frames, SHAPE, offsets) == 0
    assert choose_reference([flat_list(0, 1.0)] * 3, SHAPE) == 0
    with pytest.raises(ValueError, match="no frames"):
        choose_reference([], SHAPE)


@pytest.mark.parametrize("degrees", [0.0, 33.0, -120.0])
def test_similarity_parameters_invert_the_construction(degrees):
    angle, scale = np.radians(degrees), 1.03
    matrix = np.array(
        [[scale * np.cos(angle), -scale * np.sin(angle), 7.0], [scale * np.sin(angle), scale * np.cos(angle), -4.0],
         [0, 0, 1]]
    )  # fmt: skip
    assert similarity_parameters(3.0 * matrix) == pytest.approx((scale, degrees, 7.0, -4.0))


def test_points_go_through_perspective():
    matrix = np.array([[1.0, 0, 3], [0, 2, 0], [0.001, 0, 1]])
    np.testing.assert_allclose(transform_points(matrix, [[0, 0], [1000, 7]]), [[3, 0], [1003 / 2, 7]])


def test_star_lists_have_equal_columns():
    with pytest.raises(ValueError, match="flux"):
        StarList(np.ones(3), np.ones(3), np.ones(2), np.ones(3), np.ones(3))
    stars = flat_list(3, 2.0)
    assert len(stars) == 3 and stars.xy.shape == (3, 2) and stars.sigma.shape == (3,)
