"""After the stack: equalisation, crop, alt-az cleanup, alpha, gate, noise (recorded numbers are in ``test_golden``)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from finish_case import SHAPE, WHOLE, crop, ragged_coverage, sky
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from zemosaic_phase3.finish import crop as crop_file
from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics
from zemosaic_phase3.spec import CropSpec


def inside(array, box):
    return array[box[0] : box[2], box[1] : box[3]]


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


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
    box = crop_file.largest_rectangle(good)
    assert area(box) == best
    assert inside(good, box).all()


def test_largest_rectangle_of_a_large_mask_is_exact_to_the_pixel():
    good = np.zeros((1001, 1533), bool)
    good[37:911, 103:1402] = True
    assert crop_file.largest_rectangle(good) == (37, 103, 911, 1402)


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


def test_mono_tile_goes_the_same_way():
    mono = sky()[..., 1].copy()
    mono[:, :30] = np.nan
    out, mask, box = crop_file.apply_crop_pipeline(mono, CropSpec(quality_crop=True, altaz_cleanup=True))
    assert box == (0, 38, *SHAPE)
    assert out.shape == mask.shape == inside(mono, box).shape
    assert evaluate_quality_gate_metrics(mono)["EMPTY"] == pytest.approx(30 / 320)
