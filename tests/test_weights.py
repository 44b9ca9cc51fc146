"""Levels, normalisation and weights against the oracle and on quantised data."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import get_args

import numpy as np
import oracle
import pytest

from zemosaic_phase3.compat import stack_arrays as engine
from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.methods import STAR_NORMALISATIONS, NormalizeName, WeightName
from zemosaic_phase3.photometry import frame_table, measure, normalize, weights
from zemosaic_phase3.photometry.levels import clipped_variance, level_step, levels_of, measure_levels
from zemosaic_phase3.pipeline.group import scan_frame
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.spec import RegisterSpec, StackSpec
from zemosaic_worker import stack_files

STAR_WEIGHTS = ("noise_fwhm", "snr", "stars")


def frames(n=4, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    base = 1000 + 30 * rng.standard_normal((n, 40, 50, channels))
    base[:, 5:9, 5:9] += 5000
    base = base * np.linspace(0.9, 1.1, n)[:, None, None, None] + np.linspace(-50, 80, n)[:, None, None, None]
    base[1, :3] = np.nan
    return base.astype(np.float32)


@pytest.mark.parametrize("method", [name for name in get_args(NormalizeName) if name not in STAR_NORMALISATIONS])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_equals_the_oracle(method, channels):
    stack = frames(channels=channels)
    stats = [measure_levels(f) for f in stack]
    scale, offset = normalize.normalisation(StackSpec(normalize=method), stats, 2)
    ours = stack * scale[:, None, None] + offset[:, None, None]
    expected = oracle.normalize(stack.astype(float) if channels == 3 else stack[..., 0].astype(float), method, 2)
    np.testing.assert_allclose(ours if channels == 3 else ours[..., 0], expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("method", get_args(WeightName))
@pytest.mark.parametrize("channels", [1, 3])
def test_weights_equal_the_oracle(method, channels):
    stack = frames(channels=channels)
    rng = np.random.default_rng(9)
    fwhm, counts = [2.5, 3.5, 2.0, 9.0], [80, 7, 60, 200]
    flux = [np.sort(rng.uniform(100, 5000, n))[::-1] for n in counts]
    stats = [
        replace(measure_levels(f), fwhm=w, n_stars=n, star_flux=x[: weights.FLUX_STARS])
        for f, w, n, x in zip(stack, fwhm, counts, flux, strict=True)
    ]
    images = stack.astype(float) if channels == 3 else stack[..., 0].astype(float)
    expected = {
        "none": lambda: np.ones((4, channels)),
        "noise_variance": lambda: oracle.noise_variance_weights(images),
        "noise_fwhm": lambda: oracle.noise_fwhm_weights(images, fwhm),
        "snr": lambda: oracle.snr_weights(images, flux),
        "stars": lambda: oracle.star_count_weights(counts, channels),
    }[method]()
    ours = weights.frame_weights(method, stats, np.ones((4, channels)))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert (ours > 0).all()  # the worst frame too


def test_a_flat_frame_is_shifted_never_replaced():
    stack = frames(2)
    stack[1] = 77.0
    stats = [measure_levels(f) for f in stack]
    for method in ("linear_fit", "additive", "additive_scaling"):
        scale, offset = normalize.normalisation(StackSpec(normalize=method), stats, 0)
        np.testing.assert_array_equal(scale[1], 1.0)
        np.testing.assert_allclose(77.0 + offset[1], stats[0].p25 if method == "linear_fit" else stats[0].median)
    for method in ("multiplicative", "multiplicative_scaling"):  # no dispersion to match: the level alone
        scale, offset = normalize.normalisation(StackSpec(normalize=method), stats, 0)
        np.testing.assert_allclose(77.0 * scale[1] + offset[1], stats[0].median)


@pytest.mark.parametrize("method", ["multiplicative", "multiplicative_scaling"])
@pytest.mark.parametrize("level", [0.0, -3.0])
def test_a_level_that_is_not_positive_is_not_scaled(method, level):
    stats = [replace(stats_of(4.0), median=np.array([m])) for m in (100.0, level, 50.0)]
    spec = StackSpec(normalize=method, weight="none")
    three = ["a", "b", "c"], [np.eye(3)] * 3, stats, spec
    rows, used, dropped = frame_table.build_frame_table(*three, 0)
    assert used == [0, 2]
    np.testing.assert_allclose(rows.scale[:, 0], [1.0, 2.0])
    assert dropped[0][0] == "b"
    assert f"({level:g} ADU)" in dropped[0][1]
    assert "additive" in dropped[0][1]
    with pytest.raises(NoFramesError, match="the reference's median"):
        frame_table.build_frame_table(*three, 1)


def test_negative_levels_are_shifted():
    stats = [replace(stats_of(4.0), median=np.array([m])) for m in (-5.0, 20.0)]
    for method in ("additive", "additive_scaling"):
        scale, offset = normalize.normalisation(StackSpec(normalize=method), stats, 0)
        np.testing.assert_allclose((scale[1], offset[1]), [[1.0], [-25.0]])


# --------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000])
@pytest.mark.parametrize("digits", [0, 6])
def test_levels_equal_the_definitions(n, digits):
    rng = np.random.default_rng(n)
    for _ in range(20):
        values = np.round(100 * rng.standard_t(2, n), digits).astype(np.float32)
        stats = measure_levels(values.reshape(n, 1, 1))
        exact = values.astype(float)
        median, mad_sigma = oracle.location_scale(exact)
        assert stats.median[0] == pytest.approx(median, rel=1e-15)
        assert stats.mad_sigma[0] == pytest.approx(mad_sigma, rel=1e-14)
        np.testing.assert_allclose([stats.p25[0], stats.p90[0]], np.percentile(exact, [25, 90]), rtol=1e-12)
        clipped = oracle.deviation(oracle.clipped_samples(exact), 0) ** 2
        assert stats.variance[0] == pytest.approx(clipped, rel=1e-10, abs=1e-20)


def test_variance_keeps_its_digits_beside_huge_outliers():
    values = (1000 + 5 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)
    values[:40] = 1e12
    expected = oracle.deviation(oracle.clipped_samples(values.astype(float)), 0) ** 2
    assert clipped_variance(levels_of(values)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("top", [3000, 65535])
def test_quantised_samples_are_sorted_as_any(top):
    rng = np.random.default_rng(1)
    greens = (rng.integers(0, top, (50, 40, 1)) + rng.integers(0, top, (50, 40, 1))).astype(np.float32) / 2
    greens[0, :2] = [[0.0], [top]]  # the widest span there is
    plain, quantised = measure_levels(greens), measure_levels(greens, quantum=(0.5,))
    np.testing.assert_allclose(quantised.variance, plain.variance, rtol=1e-12)
    assert quantised.median[0] == pytest.approx(plain.median[0], abs=0.25)


def test_a_frame_without_valid_pixels_has_no_levels():
    for quantum in (None, (1.0,)):
        stats = measure_levels(np.full((4, 4, 1), np.nan, np.float32), quantum=quantum)
        assert np.isnan([*stats.median, *stats.mad_sigma, *stats.p25, *stats.p90, *stats.variance]).all()


def test_quantised_levels_are_known_better_than_their_step():
    rng = np.random.default_rng(4)
    true = 1000.37 + 14.2 * rng.standard_normal((400, 500, 1))
    stats = measure_levels(np.round(true).astype(np.float32), quantum=(1.0,))
    exact = measure_levels(true.astype(np.float32))
    assert stats.median[0] == pytest.approx(exact.median[0], abs=0.02)
    assert stats.mad_sigma[0] == pytest.approx(exact.mad_sigma[0], rel=2e-3)
    plain = measure_levels(np.round(true).astype(np.float32))
    assert abs(plain.mad_sigma[0] / exact.mad_sigma[0] - 1.0) > 5e-3  # what the spreading mends


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
    np.testing.assert_array_equal(measure.read_frame(open_source(image))[1], image)


def test_sampling_every_kth_row_changes_little():
    image = (1000 + 30 * np.random.default_rng(0).standard_normal((300, 300, 1))).astype(np.float32)
    whole, part = measure_levels(image, max_samples=None), measure_levels(image, max_samples=30_000)
    assert abs(whole.median[0] - part.median[0]) < 1.0
    assert part.mad_sigma[0] == pytest.approx(whole.mad_sigma[0], rel=0.03)


def stats_of(variance, median=100.0):
    one = np.array([float(variance)])
    return FrameStats(np.array([median]), np.sqrt(one), np.array([median]), np.array([median + 1]), one, median)


def table(variances, **spec):
    spec = StackSpec(**{"normalize": "none", "weight": "noise_variance", **spec})
    n = len(variances)
    return frame_table.build_frame_table(
        [f"f{i}" for i in range(n)], [np.eye(3)] * n, [stats_of(v) for v in variances], spec
    )


def test_unmeasurable_frames_are_dropped_never_given_weight_one():
    rows, used, dropped = table([4.0, np.nan, 16.0, 0.0])
    assert used == [0, 2]
    np.testing.assert_allclose(rows.weight[:, 0], [1.0, 0.25])
    assert [name for name, _ in dropped] == ["f1", "f3"]
    assert all(reason for _, reason in dropped)


def test_all_noiseless_frames_weigh_the_same():
    rows, used, dropped = table([0.0, 0.0])
    np.testing.assert_array_equal(rows.weight, 1.0)
    assert not dropped


def test_nothing_measurable_is_an_error():
    with pytest.raises(NoFramesError, match="none of 2"):
        table([np.nan, np.nan])


def test_the_worst_frame_never_weighs_nothing():
    rows, _, _ = table([1.0, 1e6])
    assert 0 < rows.weight[1, 0] < 1e-5


@pytest.mark.parametrize("method", ["noise_variance", *STAR_WEIGHTS])
def test_weights_with_a_median_are_said_to_be_unused(method):
    rows, used, _ = table([1.0, np.nan], combine="median", weight=method)
    assert rows.weight_method == "none"
    assert "median" in rows.notes[0]
    assert used == [0, 1]  # what is not used need not be measured
    np.testing.assert_array_equal(rows.weight, 1.0)


def test_a_frame_that_is_left_out_sets_no_scale():
    stats = [replace(stats_of(v), fwhm=f) for v, f in ((4.0, 3.0), (1.0, np.nan), (np.nan, 1.0), (16.0, 6.0))]
    ours = weights.frame_weights("noise_fwhm", stats, np.ones((4, 1)))[:, 0]
    np.testing.assert_allclose(ours, [1.0, np.nan, np.nan, 1 / 16])


def test_equal_star_counts_are_said_to_tell_nothing():
    stats = [replace(stats_of(4.0), n_stars=400)] * 2
    spec = StackSpec(normalize="none", weight="stars")
    rows, _, _ = frame_table.build_frame_table(["a", "b"], [np.eye(3)] * 2, stats, spec)
    np.testing.assert_array_equal(rows.weight, 1.0)
    assert "400 stars" in rows.notes[0]


# --------------------------------------------------------------------------- weights from stars, end to end


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


@pytest.mark.parametrize("method", STAR_WEIGHTS)
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


def test_continuous_and_uneven_samples_are_left_as_they_are():
    assert level_step(levels_of(np.random.default_rng(0).random(1000))) == 0.0
    uneven = np.random.default_rng(0).choice([0.0, 1.0, np.pi, 10.0], 1000)
    assert level_step(levels_of(uneven)) == 0.0


def test_a_channel_empty_in_all_frames_costs_no_frame():
    variance = np.array([[100.0, 50.0, 0.0], [100.0, 25.0, 0.0], [100.0, 0.0, 0.0]])
    given = weights.noise_variance_weights(variance)
    np.testing.assert_allclose(given[:2], [[0.25, 0.5, 1.0], [0.25, 1.0, 1.0]])
    assert np.isnan(given[2]).all()


def test_small_units_are_scaled_too():
    stack = frames(2, 1) * np.float32(1e-9)
    stack[1] *= np.float32(2.0)
    spec = StackSpec(normalize="additive_scaling")
    scale, _ = normalize.normalisation(spec, [measure_levels(f) for f in stack], 0)
    assert scale[1, 0] == pytest.approx(0.5 * 0.9 / 1.1, rel=0.2)
