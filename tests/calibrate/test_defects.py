"""Defects learned from lights: all of them, and never a star, however sharp it is and however well it is tracked."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_case import some_stars, star_image

from zemosaic_phase3.calibrate.cosmetic import CosmeticSource
from zemosaic_phase3.calibrate.defects import chosen_frames, learn_defects, outlying_photosites
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.open_frame import open_source

SHAPE = (200, 240)
NOISE = 8.0


def session(
    n=15, fwhm=3.0, drift=0.0, bayer="none", added=None, stars=None, colours=(0.7, 1.0, 0.9), seed=0, dtype=np.uint16
) -> list[FrameSource]:
    """Frames of one field; ``added``: what the sensor adds, ADU."""
    stars = some_stars(SHAPE, 60, 7) if stars is None else stars
    frames = []
    for i in range(n):
        rng = np.random.default_rng(100 * seed + i)
        image = star_image(SHAPE, stars, fwhm, drift * i, 0.4 * drift * i)
        if bayer != "none":
            for k, letter in enumerate(bayer):
                image[k // 2 :: 2, k % 2 :: 2] *= colours["RGB".index(letter)]
        image = rng.poisson(image) + rng.normal(0.0, NOISE, SHAPE) + (0.0 if added is None else added)
        pixels = np.clip(np.round(image), 0, 65535).astype(dtype)
        frames.append(open_source({"data": pixels, "name": f"{i:02d}"}, bayer=bayer))
    return frames


def hot_sensor(n=120, low=300.0, high=6000.0, seed=5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    added = np.zeros(SHAPE)
    added.reshape(-1)[rng.choice(added.size, n, replace=False)] = rng.uniform(low, high, n)
    return added


def found_in(defects) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    if defects is not None:
        mask.reshape(-1)[defects.places] = True
    return mask


@pytest.mark.parametrize("bayer", ["none", "GRBG"])
@pytest.mark.parametrize("drift", [0.0, 0.35, 4.0])
def test_hot_photosites_are_found_and_nothing_else(bayer, drift) -> None:
    added = hot_sensor()
    defects = learn_defects(session(drift=drift, bayer=bayer, added=added), workers=2)
    mask = found_in(defects)
    assert np.count_nonzero(mask & (added > 0)) >= 0.97 * np.count_nonzero(added)
    assert not np.any(mask & (added == 0))
    assert defects.describe().startswith(f"{len(defects)} defects (0.2")


@pytest.mark.parametrize("bayer", ["none", "RGGB"])
def test_dead_photosites_are_found(bayer) -> None:
    added = np.zeros(SHAPE)
    added[10::37, 12::41] = -700.0
    mask = found_in(learn_defects(session(bayer=bayer, drift=0.3, added=added)))
    assert np.count_nonzero(mask & (added < 0)) >= 0.9 * np.count_nonzero(added)
    assert not np.any(mask & (added == 0))


@pytest.mark.parametrize("fwhm", [1.3, 1.6, 2.5, 4.0])
@pytest.mark.parametrize("bayer", ["none", "GRBG"])
def test_stars_that_stand_still_lose_nothing(fwhm, bayer) -> None:
    """A perfectly tracked session without dither: 400 stars, from invisible to saturated, stay as they are."""
    for seed in (1, 2):
        stars = some_stars(SHAPE, 400, seed, faintest=100.0, brightest=1e6)
        assert learn_defects(session(n=12, fwhm=fwhm, bayer=bayer, stars=stars, seed=seed)) is None


def test_red_stars_in_a_mosaic_lose_nothing() -> None:
    stars = some_stars(SHAPE, 200, 4, faintest=500.0, brightest=1e5)
    frames = session(n=12, fwhm=2.0, bayer="RGGB", stars=stars, colours=(1.0, 0.3, 0.1))
    assert learn_defects(frames) is None


def test_a_pair_of_hot_photosites_and_one_in_the_wing_of_a_star() -> None:
    added = np.zeros(SHAPE)
    added[50, 60] = added[50, 61] = 2000.0
    added[120, 100] = 3000.0
    stars = np.array([[103.0, 120.0, 8000.0], [30.0, 30.0, 2e4]])
    for bayer in ("none", "GRBG"):
        mask = found_in(learn_defects(session(bayer=bayer, added=added, stars=stars)))
        np.testing.assert_array_equal(mask, added > 0)


@pytest.mark.parametrize("bayer", ["none", "RGGB"])
def test_columns_and_rows(bayer) -> None:
    added = np.zeros(SHAPE)
    added[:, 77] += 30.0
    added[131, :] -= 40.0
    defects = learn_defects(session(bayer=bayer, drift=0.2, added=added))
    assert (defects.columns, defects.rows) == (1, 1)
    assert defects.describe() == "0 defects (0 %), 1 column, 1 row"
    np.testing.assert_array_equal(found_in(defects), added != 0)


def test_steps_of_a_border_are_no_columns() -> None:
    """Optical black, filler, and an edge of a wide band are as wide as they are, and no defects."""
    added = np.zeros(SHAPE)
    added[:, :8] -= 400.0
    added[:5] -= 500.0
    added[:, 100:140] += 25.0
    assert learn_defects(session(added=added)) is None


def test_sky_cut_off_at_zero_has_no_bad_columns() -> None:
    """Dark-subtracted and stored without sign: half of all samples are 0, and medians are 0 or not by chance."""
    for seed in range(4):
        frames = []
        for frame in session(n=10, fwhm=3.0, drift=2.0, seed=seed):
            pixels = frame.read_rows(0, SHAPE[0])
            frames.append(open_source(np.maximum(pixels, 1000) - np.uint16(1000)))
        assert learn_defects(frames) is None


def test_an_undeclared_mosaic_has_no_defects() -> None:
    frames = session(bayer="RGGB", n=8, colours=(0.3, 1.0, 0.5))
    grey = [open_source(frame.read_rows(0, SHAPE[0]), bayer="none") for frame in frames]
    defects = learn_defects(grey)
    assert defects is None or len(defects) < 1e-4 * SHAPE[0] * SHAPE[1]


def test_too_few_frames_teach_nothing_and_invalid_samples_do_no_harm() -> None:
    added = hot_sensor()
    assert learn_defects(session(n=4, added=added)) is None
    frames = session(n=9, added=added, drift=0.3)
    holes = []
    for frame in frames:
        pixels = frame.read_rows(0, SHAPE[0]).astype(np.float32)
        pixels[:, :20] = np.nan
        pixels[60:64, 50:90] = np.nan
        holes.append(open_source(pixels))
    mask = found_in(learn_defects(holes))
    seen = np.isfinite(pixels)
    assert np.count_nonzero(mask & (added > 0)) >= 0.9 * np.count_nonzero((added > 0) & seen)
    assert not np.any(mask & (added == 0))


def test_one_moving_satellite_or_a_bad_frame_is_no_defect() -> None:
    frames = session(n=9)
    for k, frame in enumerate(frames):
        pixels = frame.read_rows(0, SHAPE[0])
        pixels[20 + 15 * k, 10:200:4] = 9000
        frames[k] = open_source(pixels)
    frames[3] = open_source(np.full(SHAPE, 7, np.uint16))
    assert learn_defects(frames) is None


def test_frames_are_chosen_all_over_the_session() -> None:
    assert chosen_frames(5) == [0, 1, 2, 3, 4]
    chosen = chosen_frames(10_000)
    assert len(chosen) == 25
    assert chosen[0] == 0
    assert chosen[-1] == 8191
    assert chosen_frames(8192) == chosen_frames(16_383) == chosen  # a further night changes nothing
    assert chosen_frames(60)[-1] == 59


def test_flux_of_stars_and_sky_after_the_correction() -> None:
    """Beside the truth: with the map the defects are gone, and stars that stand beside none of them are the same."""
    added, stars = hot_sensor(), some_stars(SHAPE, 60, 7)
    frames = session(fwhm=1.5, added=added, stars=stars)
    clean = session(fwhm=1.5, stars=stars)
    defects = learn_defects(frames)
    mended = np.mean([CosmeticSource(f, defects).read_rows(0, SHAPE[0]) for f in frames], axis=0)
    truth = np.mean([f.read_rows(0, SHAPE[0]) for f in clean], axis=0)
    other = added == 0
    np.testing.assert_array_equal(mended[other], truth[other])
    sky = np.abs(star_image(SHAPE, stars, 1.5) - 1000.0) < 1.0
    left = (mended - truth)[sky & ~other]
    assert np.abs(left).max() < 6.0 * np.hypot(NOISE, 1000.0**0.5) * (1.3 / len(frames)) ** 0.5


def test_outlying_photosites_of_a_master_dark() -> None:
    rng = np.random.default_rng(0)
    dark = rng.normal(500.0, 2.0, SHAPE).astype(np.float32)
    dark[::2, ::2] += 40.0  # one colour has another level
    dark[50, 50], dark[51, 80], dark[7, 9] = 900.0, 600.0, 0.0
    found = outlying_photosites(dark, 2)
    assert sorted(map(tuple, np.argwhere(found))) == [(7, 9), (50, 50), (51, 80)]
