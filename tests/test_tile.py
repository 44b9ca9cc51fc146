"""After the stack: equalisation, crop, alt-az cleanup, alpha, gate, noise (recorded numbers are in ``test_golden``)."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.compat import finish
from zemosaic_phase3.compat.finish import _evaluate_quality_gate_metrics
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.finish import alpha as alpha_module
from zemosaic_phase3.finish import crop as crop_file
from zemosaic_phase3.finish import equalize
from zemosaic_phase3.finish import noise as noise_module
from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics
from zemosaic_phase3.spec import CropSpec

ROOT = Path(__file__).parents[1]
NOISE = 10.0
SHAPE = (240, 320)
WHOLE = (0, 0, *SHAPE)


def sky(seed: int = 0, *, shape=SHAPE, stars=60, fwhm=3.0, trail=0.0, angle=0.5, gradient=100.0, noise=NOISE):
    """RGB tile (H, W, 3) float32, ADU: tilted sky of 1000, Gaussian stars, each drawn out over ``trail`` px."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    image = 1000.0 + gradient * (x / width + 0.5 * y / height)
    sigma, steps = fwhm / 2.3548, max(1, int(2 * trail))
    reach = int(trail / 2 + 5 * fwhm)
    for _ in range(stars):
        cx, cy, flux = rng.uniform(0, width), rng.uniform(0, height), 10 ** rng.uniform(3.3, 5)
        window = np.s_[max(0, int(cy) - reach) : int(cy) + reach, max(0, int(cx) - reach) : int(cx) + reach]
        for t in (np.arange(steps) + 0.5) / steps - 0.5:
            dx, dy = x[window] - cx - t * trail * math.cos(angle), y[window] - cy - t * trail * math.sin(angle)
            r2 = dx * dx + dy * dy
            image[window] += flux / steps / (2 * math.pi * sigma**2) * np.exp(-0.5 * r2 / sigma**2)
    return (image[..., None] * [1.0, 1.1, 0.9] + rng.normal(0, noise, (*shape, 3))).astype(np.float32)


def ragged_coverage(shape=SHAPE, frames=30, degrees=6.0, seed=3):
    """Number of frames, dithered by 8 px and rotated by up to ``degrees``, that cover each pixel."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    coverage = np.zeros(shape, np.int32)
    for _ in range(frames):
        a = math.radians(rng.uniform(-degrees, degrees))
        dy, dx = y - height / 2 - rng.normal(0, 8), x - width / 2 - rng.normal(0, 8)
        u, v = dx * math.cos(a) + dy * math.sin(a), dy * math.cos(a) - dx * math.sin(a)
        coverage += (abs(u) < width / 2) & (abs(v) < height / 2)
    return coverage


def crop(image, **kwargs):
    return crop_file.detect_autocrop_rgb(image.mean(axis=-1), *np.moveaxis(image, -1, 0), **kwargs)


def inside(array, box):
    return array[box[0] : box[2], box[1] : box[3]]


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


# --------------------------------------------------------------------------- RGB equalisation


def test_channels_get_one_median_and_nan_stays():
    image = sky()
    image[5:9, 5:9, 1] = np.nan
    before = image.copy()
    *gains, target = equalize.equalize_rgb_medians_inplace(image)
    np.testing.assert_allclose(np.nanmedian(image, axis=(0, 1)), target, rtol=1e-6)
    np.testing.assert_allclose(image, before * np.array(gains, np.float32), rtol=1e-6)
    assert target == np.median(np.nanmedian(before, axis=(0, 1)))


def test_channel_without_a_usable_median_is_left_alone():
    image = sky()
    image[..., 0] -= 5000
    red = image[..., 0].copy()
    gain_r, gain_g, gain_b, target = equalize.equalize_rgb_medians_inplace(image)
    np.testing.assert_array_equal(image[..., 0], red)
    assert gain_r == 1.0
    assert gain_g < 1.0 < gain_b
    np.testing.assert_allclose(np.median(image[..., 1:], axis=(0, 1)), target, rtol=1e-6)


@pytest.mark.parametrize("image", [np.ones((4, 5), np.float32), np.full((4, 5, 3), np.nan), np.zeros((4, 5, 3))])
def test_equalisation_that_is_impossible_changes_nothing(image):
    before = image.copy()
    *gains, target = equalize.equalize_rgb_medians_inplace(image)
    assert gains == [1.0, 1.0, 1.0]
    assert math.isnan(target)
    np.testing.assert_array_equal(image, before)


def test_integer_image_cannot_be_equalised_in_place():
    with pytest.raises(TypeError, match="uint16"):
        equalize.equalize_rgb_medians_inplace(np.ones((4, 5, 3), np.uint16))


@pytest.mark.parametrize(
    ("switch", "applied"), [(None, True), ("YES", True), ("off", False), (False, False), ("0", False)]
)
def test_inherited_switch_and_metadata(switch, applied):
    image, metadata = sky(), {"kept": 1}
    before = image.copy()
    info = finish._poststack_rgb_equalization(image, SimpleNamespace(poststack_equalize_rgb=switch), metadata)
    assert metadata == {"kept": 1, "rgb_equalization": info}
    assert info["enabled"] is info["applied"] is applied
    assert np.array_equal(image, before) is not applied


def test_fault_equalisation_switched_off_loses_every_tile():
    """A gain that is NaN cannot become a header card: gains are always numbers, whatever was done."""
    for image, enabled in ((sky(), False), (np.full((8, 8, 3), np.nan, np.float32), True)):
        info = finish.equalization_info(equalize.equalize_if(enabled, image))
        assert [info[key] for key in ("gain_r", "gain_g", "gain_b")] == [1.0, 1.0, 1.0]
        assert info["enabled"] is enabled
        assert info["applied"] is False
        assert math.isnan(info["target_median"])


# --------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("stars", "gradient", "noise"), [(0, 0.0, 10.0), (60, 100.0, 10.0), (300, 2000.0, 1.0)])
def test_noise_is_that_of_the_sky_in_spite_of_stars_and_gradient(stars, gradient, noise):
    measured = noise_module.measure_noise(sky(stars=stars, gradient=gradient, noise=noise))
    np.testing.assert_allclose(measured, noise, rtol=0.03)  # 1 % statistical, rest: wings of stars


def test_noise_of_a_large_image_is_measured_on_bands_of_it():
    image = sky(shape=(1400, 1000), stars=300, noise=10.0)
    rows = noise_module.noise_rows(1400, 1000)
    assert len(rows) % 2 == 1 and sum(r.stop - r.start for r in rows) * 1000 >= noise_module.NOISE_PIXELS
    assert rows[0].start > 0 and rows[-1].stop < 1400
    assert all(a.stop < b.start for a, b in itertools.pairwise(rows))
    measured = noise_module.measure_noise(image)
    np.testing.assert_allclose(measured, 10.0, rtol=0.02)
    assert measured == noise_module.typical_noise(image[r] for r in rows)
    image[rows[0]] = np.nan  # not covered there
    image[rows[1]] *= 5.0  # something bright and uneven
    np.testing.assert_allclose(noise_module.measure_noise(image), 10.0, rtol=0.02)


def test_a_small_image_is_measured_whole():
    assert noise_module.noise_rows(300, 400) == [slice(0, 300)]
    assert noise_module.noise_rows(3, 100_000) == [slice(0, 3)]


@given(st.integers(0, 9), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
def test_dilation_reaches_as_far_as_said(reach, height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) > 0.95
    grown = noise_module._dilated(mask, reach)
    set_y, set_x = np.nonzero(mask)
    for y, x in np.ndindex(mask.shape):
        assert grown[y, x] == bool(((abs(set_y - y) <= reach) & (abs(set_x - x) <= reach)).any())


def test_noise_is_not_flattered_by_interpolation(rng):
    """Averaging neighbours lowers sigma by 2 exactly; differences of neighbours would say more than that."""
    white = rng.normal(0, NOISE, (400, 400))
    smooth = 0.25 * (white + np.roll(white, 1, 0) + np.roll(white, 1, 1) + np.roll(white, (1, 1), (0, 1)))
    np.testing.assert_allclose(noise_module.measure_noise(smooth), [NOISE / 2], rtol=0.02)


def test_noise_without_evidence_is_nan_and_of_a_constant_zero():
    assert all(map(math.isnan, noise_module.measure_noise(np.full((40, 40, 3), np.nan, np.float32))))
    assert math.isnan(noise_module.measure_noise(np.ones((3, 40), np.float32))[0])
    assert noise_module.measure_noise(np.full((40, 40), 7, np.float32)) == [0.0]


def test_noise_of_valid_pixels_only():
    image = sky()
    image[:, :100] = np.nan
    np.testing.assert_allclose(noise_module.measure_noise(image), NOISE, rtol=0.03)


# --------------------------------------------------------------------------- quality crop


@pytest.mark.parametrize("seed", range(6))
def test_fault_clean_tile_cropped_to_a_16_px_strip(seed):
    image = sky(seed, stars=60 + 40 * seed, gradient=100.0 * seed, noise=2.0 + 3 * seed)
    assert crop(image) == WHOLE
    assert crop(image, coverage=np.full(SHAPE, 12)) == WHOLE


@pytest.mark.parametrize("band_px", [1, 16, 32, 64])
def test_any_kept_box_is_a_good_part_of_the_tile(band_px):
    image = sky()
    image[60:] -= 500  # three quarters of the tile are "dark": which part is the sky?
    assert area(crop(image, band_px=band_px)) >= 0.25 * area(WHOLE)
    coverage = np.zeros(SHAPE, int)
    coverage[:, 100:116] = 9
    assert crop(image, coverage=coverage) == WHOLE


def test_rotated_border_is_cropped_to_the_well_covered_rectangle():
    coverage = ragged_coverage()
    box = crop(sky(), coverage=coverage, margin_px=0)
    kept = inside(coverage, box)
    assert kept.min() >= 0.4 * coverage.max()  # jags of a few pixels are forgiven
    assert (kept >= 0.5 * coverage.max()).mean() > 0.999
    assert 0.7 * area(WHOLE) < area(box) < 0.97 * area(WHOLE)
    with_margin = crop(sky(), coverage=coverage, margin_px=8)
    cut = [(b != whole) for b, whole in zip(box, WHOLE, strict=True)]
    assert with_margin == tuple(b + 8 * c * s for b, c, s in zip(box, cut, (1, 1, -1, -1), strict=True))


def test_hole_or_bad_column_inside_does_not_split_the_tile():
    coverage = ragged_coverage()
    box = crop(sky(), coverage=coverage)
    coverage[100:120, 150:170] = 0
    coverage[:, 200] = 0
    assert crop(sky(), coverage=coverage) == box


@pytest.mark.parametrize("fill", [np.nan, 0.0])
def test_border_is_found_in_the_pixels_when_there_is_no_coverage(fill):
    image = sky()
    image[:21] = fill
    image[:, -30:] = fill
    y0, x0, y1, x1 = crop(image)
    assert (x0, y1) == (0, SHAPE[0])
    assert 21 <= y0 <= 32
    assert SHAPE[1] - 44 <= x1 <= SHAPE[1] - 30


@pytest.mark.parametrize("defect", ["dark", "noisy", "coloured"])
def test_poor_band_is_cut(defect, rng):
    image = sky()
    if defect == "dark":
        image[:, :40] -= 60
    elif defect == "noisy":
        image[:, :40] += rng.normal(0, 40, image[:, :40].shape).astype(np.float32)
    else:
        image[:, :40] += np.array([-60, 0, 50], np.float32)
    y0, x0, y1, x1 = crop(image)
    assert (y0, y1, x1) == (0, *SHAPE)
    assert 40 <= x0 <= 56


@pytest.mark.parametrize(("amplitude", "size"), [(100.0, 30.0), (300.0, 40.0), (1000.0, 15.0)])
@pytest.mark.parametrize("centre", [(0, 120), (310, 20), (150, 110)])
def test_nebula_is_no_border_defect(amplitude, size, centre):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    nebula = amplitude * np.exp(-0.5 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / size**2)
    assert crop((sky() + nebula[..., None] * [1.0, 0.3, 0.2]).astype(np.float32)) == WHOLE


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 30), st.floats(0.3, 0.99))
def test_largest_rectangle_against_all_rectangles(seed, height, width, density):
    good = np.random.default_rng(seed).random((height, width)) < density
    total = np.pad(good.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best = 0
    for y0 in range(height):
        for y1 in range(y0 + 1, height + 1):
            count = total[y1] - total[y0]
            for x0 in range(width):
                x1 = np.arange(x0 + 1, width + 1)
                sizes = (y1 - y0) * (x1 - x0)
                best = max(best, int(sizes[count[x0 + 1 :] - count[x0] == sizes].max(initial=0)))
    box = crop_file._largest_rectangle(good)
    assert area(box) == best
    assert inside(good, box).all()


def test_largest_rectangle_of_a_large_mask_is_exact_to_the_pixel():
    good = np.zeros((1001, 1533), bool)
    good[37:911, 103:1402] = True
    assert crop_file._largest_rectangle(good) == (37, 103, 911, 1402)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="B has shape"):
        crop_file.detect_autocrop_rgb(*[np.zeros((9, 9))] * 3, np.zeros((9, 8)))


@pytest.mark.parametrize(("rim", "is_kept"), [(1, True), (2, True), (3, False)])
def test_rim_that_registration_leaves_is_not_cropped(rim: int, is_kept: bool) -> None:
    coverage = np.ones((96, 128))
    coverage[rim:-rim, rim:-rim] = 4
    box = crop_file.detect_autocrop_rgb(*[np.full((96, 128), 5.0)] * 4, coverage=coverage)
    assert box == ((0, 0, 96, 128) if is_kept else (11, 11, 85, 117))
    with pytest.raises(ValueError, match="coverage has shape"):
        crop(sky(), coverage=np.zeros((9, 9)))


def test_wcs_follows_the_crop_with_its_distortion():
    from astropy.wcs import WCS, Sip

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [83.6, 22.0], [161.0, 121.0], [-6e-4, 6e-4]
    a = np.zeros((3, 3))
    a[2, 0], a[0, 2] = 2e-5, -1e-5
    wcs.sip = Sip(a, a.T, None, None, wcs.wcs.crpix)
    wcs.pixel_shape = (320, 240)
    x, y = np.array([30.0, 200.0, 310.0]), np.array([25.0, 100.0, 230.0])
    before = wcs.all_pix2world(x, y, 0)

    moved = crop_file.shift_wcs(wcs, 20, 30, (200, 280, 3))
    np.testing.assert_allclose(moved.all_pix2world(x - 30, y - 20, 0), before, rtol=0, atol=1e-11)
    assert moved.pixel_shape == (280, 200)
    np.testing.assert_array_equal(wcs.wcs.crpix, [161.0, 121.0])
    np.testing.assert_array_equal(wcs.all_pix2world(x, y, 0), before)
    assert crop_file.shift_wcs(None, 1, 1, (5, 5)) is None


# --------------------------------------------------------------------------- alt-az cleanup, alpha


def test_coverage_decides_what_is_faded():
    coverage = np.full(SHAPE, 20)
    coverage[:, :10] = 2
    coverage[:, :3] = 0
    image, alpha = alpha_module.altaz_alpha(
        sky(gradient=400.0), margin_percent=5.0, decay=0.15, nanize=True, coverage=coverage
    )
    band = 12  # 5 % of 240
    expected = np.clip((np.arange(SHAPE[1]) - 9) / band, 0, 1).astype(np.float32)
    np.testing.assert_allclose(alpha, np.broadcast_to(expected, SHAPE), atol=1e-6)
    assert alpha.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(image[..., 1]), alpha == 0)
    assert (
        alpha_module.altaz_alpha(image, decay=0.05, coverage=coverage)[1][0, 3] > 0
    )  # 10 % of the frames are enough now


def test_uncovered_border_is_faded_whatever_the_decay():
    coverage = np.full(SHAPE, 20)
    coverage[:6] = 0
    assert (alpha_module.altaz_alpha(sky(), decay=0.0, coverage=coverage)[1][:6] == 0).all()


def test_fully_covered_tile_is_not_faded_although_one_side_is_darker():
    image = sky(gradient=400.0)
    cleaned, alpha = alpha_module.altaz_alpha(image, coverage=np.full((*SHAPE, 3), 20))
    assert alpha is None
    assert cleaned is image


@pytest.mark.parametrize("nanize", [True, False])
def test_removed_pixels_are_nan_or_zero(nanize):
    image = sky(stars=0)
    image[:, :8] -= 500
    cleaned, alpha = alpha_module.altaz_alpha(image, nanize=nanize)
    gone = alpha <= 1e-3
    assert gone[1:-1, :7].all()  # an opening rounds the corners
    assert (np.isnan(cleaned[gone]) if nanize else cleaned[gone] == 0).all()
    np.testing.assert_array_equal(cleaned[~gone], image[~gone])


def test_nothing_but_nan_becomes_an_empty_mask():
    blank = np.full((40, 50, 3), np.nan, np.float32)
    for coverage in (None, np.zeros((40, 50))):
        assert (alpha_module.altaz_alpha(blank, coverage=coverage)[1] == 0).all()


@pytest.mark.parametrize("bad", [{"margin_percent": 60.0}, {"decay": 1.5}, {"decay": math.nan}])
def test_settings_out_of_range_are_named(bad):
    with pytest.raises(SpecError, match=str(next(iter(bad.values())))):
        alpha_module.altaz_alpha(sky(), **bad)


def test_fault_registration_borders_counted_as_data():
    """Alpha knows from the coverage; the gate knows a dead-flat border even where nobody kept a coverage."""
    coverage = np.ones((*SHAPE, 3), np.int32)
    coverage[:30] = 0
    coverage[30:40, :, 1:] = 0  # one channel is enough
    alpha = alpha_module.alpha_from_coverage(coverage)
    assert alpha.dtype == np.uint8
    assert (alpha[:30] == 0).all()
    assert (alpha[30:] == 255).all()
    image = sky()
    image[:30] = 0.0
    assert evaluate_quality_gate_metrics(image)["EMPTY"] == pytest.approx(30 / 240, abs=1e-3)


def test_negative_and_zero_sky_is_data():
    image = sky() - 1100.0
    assert evaluate_quality_gate_metrics(image)["EMPTY"] == 0.0
    assert crop(image) == WHOLE


def test_alpha_is_the_mask_at_one_half_where_there_is_coverage():
    mask = np.array([[0.0, 0.49, 0.5, 1.0, 1.0]], np.float32)
    coverage = np.array([[5.0, 5.0, 5.0, 0.0, np.nan]])
    assert alpha_module.alpha_from_coverage(coverage, mask).tolist() == [[0, 0, 255, 0, 0]]
    with pytest.raises(ValueError, match="the mask has shape"):
        alpha_module.alpha_from_coverage(coverage, mask.T)


# --------------------------------------------------------------------------- both, as configured


def test_fault_crop_and_altaz_need_tkinter():
    """With tkinter, the display and the other heavy packages forbidden, everything here runs."""
    code = (
        "import sys\n"
        "for name in ('tkinter', '_tkinter', 'matplotlib', 'cv2', 'cupy', 'numba'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from zemosaic_phase3.compat import finish\n"
        "from zemosaic_phase3.finish import crop as tile\n"
        "image = np.random.default_rng(0).normal(1000, 10, (200, 260, 3)).astype('f4'); image[:20] = np.nan\n"
        "cfg = {'quality_crop_enabled': True, 'altaz_cleanup_enabled': True}\n"
        "print(tile.apply_crop_pipeline(image, finish.crop_spec_from_config(cfg), np.isfinite(image))[2])\n"
        "print(finish._apply_lecropper_pipeline(image, cfg)[1].shape)"
    )
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True, env={})
    assert out.split() == ["(28,", "0,", "200,", "260)", "(200,", "260)"]


def test_pipeline_crops_image_mask_and_coverage_alike():
    coverage = ragged_coverage()
    image = np.where(coverage[..., None] > 0, sky(), np.nan).astype(np.float32)
    spec = CropSpec(quality_crop=True, altaz_cleanup=True, altaz_decay=0.9)
    out, mask, box = crop_file.apply_crop_pipeline(image, spec, coverage)
    assert out.shape == (*inside(coverage, box).shape, 3)
    assert mask.shape == out.shape[:2]
    kept = mask > 1e-3
    np.testing.assert_array_equal(out[kept], inside(image, box)[kept])
    assert (inside(coverage, box)[~kept] < 0.9 * coverage.max()).all()
    assert not np.shares_memory(out, image)


def test_pipeline_that_is_switched_off_returns_the_tile_itself():
    image = sky()
    for cfg in (None, {}, CropSpec(), {"quality_crop_enabled": "off", "altaz_cleanup_enabled": None}):
        spec = cfg if isinstance(cfg, CropSpec) else finish.crop_spec_from_config(cfg)
        out, mask, box = crop_file.apply_crop_pipeline(image, spec)
        assert out is image
        assert mask is box is None
    assert finish._apply_lecropper_pipeline(image, None)[0] is image


def test_configuration_keys_are_read():
    assert finish.crop_spec_from_config({}) == CropSpec()
    cfg = {
        "quality_crop_enabled": "yes", "quality_crop_band_px": "24", "quality_crop_k_sigma": 3,
        "quality_crop_margin_px": 4, "quality_crop_min_run": None, "altaz_cleanup_enabled": 1,
        "altaz_margin_percent": 7, "altaz_decay": 0.3, "altaz_nanize": "no", "something_else": object(),
    }  # fmt: skip
    assert finish.crop_spec_from_config(cfg) == CropSpec(True, 24, 3.0, 4, 2, True, 7.0, 0.3, False)


def test_mono_tile_goes_the_same_way():
    mono = sky()[..., 1].copy()
    mono[:, :30] = np.nan
    out, mask, box = crop_file.apply_crop_pipeline(mono, CropSpec(quality_crop=True, altaz_cleanup=True))
    assert box == (0, 38, *SHAPE)
    assert out.shape == mask.shape == inside(mono, box).shape
    assert evaluate_quality_gate_metrics(mono)["EMPTY"] == pytest.approx(30 / 320)


def test_fault_inputs_modified():
    image, coverage = sky(), ragged_coverage()
    image[:12] = np.nan
    before, covered = image.copy(), coverage.copy()
    image.flags.writeable = coverage.flags.writeable = False
    cfg = {"quality_crop_enabled": True, "altaz_cleanup_enabled": True}
    for given_coverage in (None, coverage):
        crop_file.apply_crop_pipeline(image, finish.crop_spec_from_config(cfg), given_coverage)
    finish._apply_lecropper_pipeline(image, cfg)
    evaluate_quality_gate_metrics(image, alpha=alpha_module.alpha_from_coverage(coverage))
    noise_module.measure_noise(image)
    equalize.equalize_if(False, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(coverage, covered)


# --------------------------------------------------------------------------- quality gate


@pytest.mark.parametrize("fwhm", [1.8, 2.5, 4.0, 7.0])
def test_good_tile_is_accepted(fwhm):
    metrics = evaluate_quality_gate_metrics(sky(fwhm=fwhm))
    assert metrics["accepted"]
    assert metrics["score"] < 0.25
    assert metrics["objects"] >= 20
    assert metrics["NBR"] == pytest.approx(1.0, abs=0.1)
    assert metrics["CER"] == metrics["EMPTY"] == 0.0


@pytest.mark.parametrize(("trail", "angle"), [(6.0, 0.0), (6.0, 0.8), (12.0, 1.6), (25.0, 2.5)])
def test_trailed_tile_is_rejected(trail, angle):
    metrics = evaluate_quality_gate_metrics(sky(trail=trail, angle=angle, stars=40))
    assert not metrics["accepted"]
    assert metrics["score"] == pytest.approx(metrics["TRL"])


def test_trailing_follows_the_axis_ratio_of_the_stars():
    """A star of sigma s drawn out over t px has variances s^2 and s^2 + t^2 / 12 (cut at 10 % of the peak: nearly)."""
    sigma2 = (4.0 / 2.3548) ** 2
    for trail in (2.0, 3.0, 4.0):
        expected = 1.0 - sigma2 / (sigma2 + trail**2 / 12)
        measured = evaluate_quality_gate_metrics(sky(fwhm=4.0, trail=trail))["TRL"]
        assert measured == pytest.approx(expected, abs=0.08)


def test_round_stars_in_a_row_are_not_trailing():
    """The moments of all bright pixels at once would see one long object."""
    image = sky(stars=0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for k in range(12):
        star = 3000 * np.exp(-0.5 * ((x - 20.3 - 25 * k) ** 2 + (y - 117.6) ** 2) / 1.6**2)
        image += star.astype(np.float32)[..., None]
    metrics = evaluate_quality_gate_metrics(image)
    assert metrics["objects"] == 12
    assert metrics["TRL"] < 0.15


@pytest.mark.parametrize("how", ["nan", "zero", "alpha"])
def test_half_empty_tile_is_rejected(how):
    image = sky()
    alpha = np.full(SHAPE, 255, np.uint8)
    if how == "alpha":
        alpha[:, :160] = 0
    else:
        image[:, :160] = np.nan if how == "nan" else 0.0
    metrics = evaluate_quality_gate_metrics(image, alpha=alpha)
    assert not metrics["accepted"]
    assert metrics["EMPTY"] == pytest.approx(0.5, abs=0.01)
    assert metrics["CER"] == pytest.approx(0.5, abs=0.01)


def test_corners_lost_to_rotation_do_not_reject():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = sky()
    image[np.minimum(x, SHAPE[1] - 1 - x) + np.minimum(y, SHAPE[0] - 1 - y) < 50] = np.nan
    metrics = evaluate_quality_gate_metrics(image, edge_band_px=24)
    assert metrics["CER"] > 0.9
    assert metrics["accepted"]


def test_nebula_is_reported_and_not_a_fault():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    nebula = 800 * np.exp(-((x - 150) ** 2 + (y - 120) ** 2) / (2 * 25.0**2))
    plain, with_nebula = (evaluate_quality_gate_metrics(image) for image in (sky(), sky() + nebula[..., None]))
    assert with_nebula["EOC"] > plain["EOC"] + 0.05
    assert with_nebula["accepted"]


def test_noisy_border_is_measured(rng):
    image = sky(stars=10)
    noisy = image + rng.normal(0, 20, image.shape)
    noisy[40:-40, 40:-40] = image[40:-40, 40:-40]
    metrics = evaluate_quality_gate_metrics(noisy, edge_band_px=40)
    assert metrics["NBR"] == pytest.approx(math.sqrt(5), rel=0.05)  # hypot(10, 20) / 10
    assert metrics["accepted"]


@pytest.mark.parametrize(
    "image", [np.full((64, 64, 3), np.nan, np.float32), np.zeros((64, 64, 3), np.float32), np.ones((1, 1), np.float32)]
)
def test_tile_without_data_is_rejected_with_numbers_that_fit_a_header(image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = evaluate_quality_gate_metrics(image)
    assert not metrics["accepted"]
    assert metrics["score"] == 1.0
    assert metrics["hard_reject_reason"] == ("small_dim" if min(image.shape[:2]) < 64 else "empty")
    assert all(math.isfinite(value) for value in metrics.values() if not isinstance(value, str))
    assert not evaluate_quality_gate_metrics(image, threshold=999.0)["accepted"]


def test_border_that_blew_up_is_rejected_whatever_the_threshold():
    image = sky()
    image[:64] = 1e12
    for tile_image in (image, np.where(image == 1e12, image, np.float32(0))):  # a flat inside too
        metrics = evaluate_quality_gate_metrics(tile_image, threshold=999.0)
        assert (metrics["accepted"], metrics["hard_reject"]) == (False, 1)
        assert metrics["hard_reject_reason"] == "edge_blowup"


def test_bright_star_at_the_border_is_no_blow_up():
    image = sky(stars=0)
    image[:3, :3] = 60000.0
    assert evaluate_quality_gate_metrics(image)["hard_reject"] == 0


def test_noisy_rim_alone_is_no_reason_to_reject(rng):
    noise = rng.normal(0, 50, (*SHAPE, 3))
    noise[40:-40, 40:-40] = 0
    for image, accepted in ((sky(), True), (sky(trail=12.0, stars=40), False)):
        metrics = evaluate_quality_gate_metrics((image + noise).astype(np.float32), threshold=0.2, edge_band_px=40)
        assert metrics["score"] > 0.2
        assert metrics["override"] is metrics["accepted"] is accepted


def test_inherited_form_of_the_gate():
    image = sky()
    image[:, :160] = 0.0
    gate = _evaluate_quality_gate_metrics
    assert gate(7, image, enabled=False, threshold=0.48, edge_band=64, k_sigma=2.5, erode_px=3, pcb=None) is None
    found = gate(7, image, enabled=True, threshold=0.48, edge_band=64, k_sigma=2.5, erode_px=3, pcb=None)
    direct = evaluate_quality_gate_metrics(image)
    assert found == {"score": direct["score"], "accepted": False, "threshold": 0.48, "metrics": direct}
    half = np.full(SHAPE, 0.5, np.float32)
    for alpha in (half, (half * 255).astype(np.uint8)):
        soft = {
            level: gate(7, sky(), enabled=True, alpha_mask=alpha, alpha_soft_threshold=level) for level in (0.3, 0.85)
        }
        assert soft[0.3]["accepted"]
        assert soft[0.85]["metrics"]["EMPTY"] == 1.0


def test_threshold_decides_and_a_wrong_alpha_is_refused():
    image = sky(trail=6.0)
    score = evaluate_quality_gate_metrics(image)["score"]
    assert evaluate_quality_gate_metrics(image, threshold=score)["accepted"]
    assert not evaluate_quality_gate_metrics(image, threshold=score - 1e-9)["accepted"]
    with pytest.raises(ValueError, match="alpha has shape"):
        evaluate_quality_gate_metrics(image, alpha=np.ones((3, 3)))


# --------------------------------------------------------------------------- real sky


def test_real_frame_is_left_whole_and_accepted():
    from astropy.io import fits

    image = fits.getdata(DATA / "isaac_cutout.fits").astype(np.float32)
    assert crop_file.apply_crop_pipeline(image, CropSpec(quality_crop=True))[2] is None
    metrics = evaluate_quality_gate_metrics(image)
    assert metrics["accepted"]
    assert metrics["objects"] >= 50
    rng = np.random.default_rng(1)
    own = noise_module.measure_noise(image)[0]
    more = noise_module.measure_noise(image + rng.normal(0, 2 * own, image.shape).astype(np.float32))[0]
    assert more == pytest.approx(math.sqrt(5) * own, rel=0.05)
