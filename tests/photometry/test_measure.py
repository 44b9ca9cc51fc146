"""Levels, normalisation and weights against the oracle and on quantised data."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from weights_case import STAR_WEIGHTS

from zemosaic_phase3.compat import stack_arrays as engine
from zemosaic_phase3.detection.planes import planes_of
from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.photometry import frame_table, measure
from zemosaic_phase3.photometry.measure import SKY_STEP, sky_cells
from zemosaic_phase3.pipeline.scan import scan_frame
from zemosaic_phase3.spec import RegisterSpec, StackSpec
from zemosaic_worker import stack_files


def test_cell_view_puts_every_colour_in_its_place():
    for pattern in ("RGGB", "GRBG", "GBRG", "BGGR"):
        value = {"R": 10, "G": 20, "B": 30}
        cell = np.array([value[c] for c in pattern], np.uint16).reshape(2, 2)
        view = measure.cell_view(np.tile(cell, (3, 4)), pattern)
        assert view.shape == (3, 4, 3)
        np.testing.assert_array_equal(view, np.broadcast_to(np.float32([10, 20, 30]), view.shape))


def test_cell_view_of_odd_frames_drops_the_last_line():
    view = measure.cell_view(np.arange(35, dtype=np.uint16).reshape(5, 7), "RGGB")
    assert view.shape == (2, 3, 3)
    np.testing.assert_array_equal(view[0, 0], [0.0, (1 + 7) / 2, 8.0])


def test_greens_near_full_scale_do_not_overflow():
    view = measure.cell_view(np.full((4, 4), 65535, np.uint16), "GRBG")
    np.testing.assert_array_equal(view, 65535.0)


def test_levels_of_a_colour_frame_are_measured_on_the_frame():
    image = np.random.default_rng(0).random((9, 10, 3)).astype(np.float32)
    np.testing.assert_array_equal(measure.shown(open_source(image).read_rows(0, 9), None), image)


def star_field(fwhm, *, noise=5.0, transparency=1.0, seed=0, channels=0, n=30):
    """One field of Gaussian stars on a sky of 500 ADU, seen through air of a given seeing and transparency."""
    places = np.random.default_rng(77)
    y, x = np.mgrid[:160, :180]
    image = np.zeros((160, 180))
    for _ in range(n):
        x0, y0, flux = places.uniform(12, 168), places.uniform(12, 148), 10 ** places.uniform(4, 5)
        variance = (fwhm / 2.354820045) ** 2
        image += flux * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / variance) / (2 * np.pi * variance)
    image = 500.0 + transparency * image
    shape = (160, 180, channels) if channels else (160, 180)
    image = (image[..., None] if channels else image) + noise * np.random.default_rng(seed).standard_normal(shape)
    return image.astype(np.float32)


def relative(weight):
    """Weights of the frames in units of the first's."""
    flat = np.asarray(weight, float).reshape(len(weight), -1)
    return (flat / flat[0])[:, 0]


@pytest.mark.parametrize("channels", [0, 3])
def test_noise_fwhm_works_in_memory(channels):
    """The predecessor's never did."""
    images = [star_field(f, noise=s, seed=i, channels=channels) for i, (f, s) in enumerate(((3, 5), (4.5, 5), (3, 10)))]
    got, method, found = engine._compute_quality_weights(images, "noise_fwhm")
    assert (method, found["frames"]) == ("noise_fwhm", 3)
    assert got.shape == (3, 1, 1, 3) if channels else (3, 1, 1)
    np.testing.assert_allclose(relative(got), [1.0, (3 / 4.5) ** 2, 0.25], rtol=0.15)

    told = {}
    image = engine.stack_aligned_images(
        images, weighting_method="noise_fwhm", rejection_algorithm="none", stack_metadata=told,
        zconfig=type("Off", (), {"poststack_equalize_rgb": False})(),
    )  # fmt: skip
    assert told["weight_method"] == "noise_fwhm"
    mean = np.average(np.stack(images).astype(float), axis=0, weights=np.broadcast_to(got, np.shape(images)))
    np.testing.assert_allclose(image, mean, rtol=1e-6)


def test_snr_follows_transparency_and_no_normalisation():
    images = [star_field(3.0, transparency=t, seed=i) for i, t in enumerate((1.0, 0.5, 0.25))]
    stats = [measure.measure_frame(open_source(f), with_its_stars=True) for f in images]
    for method in ("none", "additive_scaling", "multiplicative"):
        spec = StackSpec(normalize=method, weight="snr")
        rows, _, _ = frame_table.build_frame_table(list("abc"), [np.eye(3)] * 3, stats, spec)
        # Thirty stars, of which a blend that is two in one frame and one in another: f is good to 7 %.
        np.testing.assert_allclose(relative(rows.weight), [1.0, 0.25, 0.0625], rtol=0.15)


def test_star_counts_fall_with_transparency():
    images = [star_field(3.0, noise=20.0, transparency=t, seed=i) for i, t in enumerate((1.0, 0.02))]
    got, _, _ = engine._compute_quality_weights(images, "stars")
    assert 0.0 < relative(got)[1] < 0.9


@pytest.mark.parametrize("method", [name for name in STAR_WEIGHTS if name != "point_source"])  # which takes the median
def test_a_frame_without_stars_is_left_out_with_a_warning(method, caplog):
    images = [star_field(3.0, seed=0), star_field(3.0, seed=1, n=0), star_field(4.0, seed=2)]
    told = {}
    with caplog.at_level(logging.WARNING, "ZeMosaicWorker"):
        image, _ = engine.stack_kappa_sigma_clip(images, weight_method=method, stack_metadata=told)
        got, _, found = engine._compute_quality_weights(images, method)
    alone, _ = engine.stack_kappa_sigma_clip([images[0], images[2]], weight_method=method)
    np.testing.assert_array_equal(image, alone)
    assert len(told["frames_dropped"]) == 1
    assert sum("0 stars found" in record.message for record in caplog.records) == 2
    assert got.ravel()[1] == 0.0
    assert found["min"] > 0.0
    with pytest.raises(NoFramesError, match="0 stars"):
        engine._compute_quality_weights(images[1:2], method)


@pytest.mark.parametrize("call", [engine._compute_quality_weights, engine.stack_aligned_images])
def test_unknown_names_are_refused(call):
    images = [star_field(3.0)] * 2
    with pytest.raises(SpecError, match="noise_fwhm" if call is engine._compute_quality_weights else "multiplicative"):
        call(images, "fwhm_noise")


@pytest.mark.parametrize("mode", ["none", "auto"])
def test_a_tile_weighs_by_stars_however_it_is_registered(mode):
    images = [star_field(f, seed=i) for i, f in enumerate((3.0, 4.5, 3.0))]
    tile = stack_files(
        images, stack=StackSpec(weight="noise_fwhm", normalize="multiplicative", reject="none"),
        register=RegisterSpec(mode=mode), workers=1, device="cpu",
    )  # fmt: skip
    np.testing.assert_allclose([row.weight[0] for row in tile.rows], [1.0, (3 / 4.5) ** 2, 1.0], rtol=0.15)
    assert [row.scan.n_stars > 15 for row in tile.rows] == [True] * 3
    assert [row.registration.method for row in tile.rows].count("stars") == (2 if mode == "auto" else 0)


def test_looking_for_stars_to_weigh_by_changes_no_registration():
    source = open_source(star_field(3.0))
    assert scan_frame(source, RegisterSpec(mode="stars"), find_stars=True).stars is not None
    for mode in ("none", "wcs"):
        scan = scan_frame(source, RegisterSpec(mode=mode), find_stars=True)
        assert scan.stars is None
        assert scan.fwhm == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("step", [1, 4, 16])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_steps_of_any_camera_and_type_are_found(step, dtype):
    """A 12-bit camera's frames come in steps of 16; integers come as float32 from many programs."""
    rng = np.random.default_rng(step)
    true = 1003.7 + 40.0 * rng.standard_normal((300, 400))
    frame = (step * np.round(true / step)).astype(dtype)
    stats = measure.measure_frame(open_source(frame))
    assert stats.median[0] == pytest.approx(1003.7, abs=0.6)
    assert stats.mad_sigma[0] == pytest.approx(40.0, rel=0.02)


@pytest.mark.parametrize(
    ("size", "cell"), [((1080, 1920), 128), ((768, 1280), 128), ((640, 960), 64), ((240, 360), 32), ((96, 128), 128)]
)
@pytest.mark.parametrize("cfa", [None, "GRBG"])
def test_small_frames_have_small_cells_of_sky(size, cell, cfa):
    """Planes through the differences of two skies are then as good as of large frames."""
    planes = planes_of((*size, 1), cfa)
    side, step = sky_cells(planes)
    assert side * planes.spacing == cell
    assert step * planes.spacing == (SKY_STEP if size[0] > 640 else SKY_STEP // 2)
