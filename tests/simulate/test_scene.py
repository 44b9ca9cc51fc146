"""The simulated sky is what its truth says, and the judge finds the faults that are put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from simulate_case import (
    CLEAN,
    SMALL,
    frame,
    perfect,
    session,  # noqa: F401 - a fixture
    sky_of,
)

from zemosaic_phase3.errors import OutputError, SpecError
from zemosaic_phase3.simulate.paint import map_points
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import FULL_SCALE, SimulationSpec, load_truth
from zemosaic_phase3.simulate.truth import compare_with_truth


def test_same_seed_same_bytes_other_seed_other_sky(tmp_path):
    first, again = simulate(SMALL, tmp_path / "a"), simulate(SMALL, tmp_path / "b")
    for name in (*first.names, "truth.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert np.array_equal(first.image, again.image)
    other = simulate(replace(SMALL, seed=8), tmp_path / "c")
    assert not np.array_equal(other.star_xy[:5], first.star_xy[:5])


def test_truth_survives_the_disk(tmp_path):
    written = simulate(CLEAN, tmp_path)
    read = load_truth(tmp_path)
    assert read.spec == written.spec and read.names == written.names
    for name in ("transforms", "gains", "sky", "star_xy", "star_flux", "trail_ends", "image", "sample_sigma"):
        assert np.array_equal(getattr(read, name), getattr(written, name)), name
    with pytest.raises(FileNotFoundError):
        load_truth(tmp_path / "elsewhere")


def test_headers_say_what_a_seestar_says(tmp_path):
    truth = simulate(SMALL, tmp_path)
    headers = [fits.getheader(tmp_path / name) for name in truth.names]
    first = headers[0]
    assert (first["BITPIX"], first["BZERO"], first["BSCALE"]) == (16, 32768, 1)
    assert (first["NAXIS1"], first["NAXIS2"]) == (320, 240)
    expected = {"BAYERPAT": "GRBG", "EXPTIME": 10.0, "INSTRUME": "Seestar S50", "FILTER": "IRCUT", "FOCALLEN": 250}
    assert {key: first[key] for key in expected} == expected
    assert {"OBJECT", "TELESCOP", "GAIN", "CCD-TEMP", "XPIXSZ", "YPIXSZ", "RA", "DEC"} <= set(first)
    dates = [header["DATE-OBS"] for header in headers]
    assert dates == sorted(set(dates)) and dates[0] == "2025-01-15T21:00:00.000"
    assert frame(tmp_path, truth, 0).dtype == np.uint16


@pytest.mark.parametrize(("bayer", "dtype", "shape"), [("none", np.uint16, (240, 320)), ("rgb", ">f4", (3, 240, 320))])
def test_mono_and_colour_frames(tmp_path, bayer, dtype, shape):
    truth = simulate(replace(SMALL, bayer=bayer, n_frames=1, with_wcs=False), tmp_path)
    data, header = fits.getdata(tmp_path / truth.names[0], header=True)
    assert data.shape == shape and data.dtype == dtype
    assert "BAYERPAT" not in header and "CTYPE1" not in header
    assert truth.image.shape == (240, 320) + ((3,) if bayer == "rgb" else ())


@pytest.mark.filterwarnings("ignore:.datfix.")  # headers of a Seestar have DATE-OBS and no MJD-OBS
def test_wcs_agrees_with_the_transforms(tmp_path):
    exact = simulate(SMALL, tmp_path / "exact")
    simulate(replace(SMALL, wcs_error_px=3.0), tmp_path / "off")
    points = np.array([[10.0, 20.0], [300.0, 50.0], [150.0, 230.0]])
    reference = WCS(fits.getheader(tmp_path / "exact" / exact.names[0]))
    assert np.allclose(reference.proj_plane_pixel_scales()[0].to_value("arcsec"), 2.393)
    for k, name in enumerate(exact.names):
        sky = reference.all_pix2world(points, 0)
        found = WCS(fits.getheader(tmp_path / "exact" / name)).all_world2pix(sky, 0)
        assert np.abs(found - map_points(exact.transforms[k], points)).max() < 1e-3
    off = WCS(fits.getheader(tmp_path / "off" / exact.names[1])).all_world2pix(sky, 0)
    assert 0.1 < np.abs(off - map_points(exact.transforms[1], points)).max() < 15


def test_field_rotates_steadily_about_the_centre(tmp_path):
    truth = simulate(replace(CLEAN, rotation_deg=3.0, dither_px=0.0), tmp_path)
    angles = np.rad2deg(np.arctan2(truth.transforms[:, 1, 0], truth.transforms[:, 0, 0]))
    assert np.allclose(angles, [0, 1, 2, 3])
    assert np.allclose(map_points(truth.transforms[3], np.array(truth.spec.centre)), truth.spec.centre)


def test_a_folder_in_use_is_refused_unless_allowed(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        simulate(SMALL, tmp_path)
    simulate(SMALL, tmp_path, overwrite=True)
    simulate(replace(SMALL, n_frames=2), tmp_path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "mine.txt", "sub_0001.fits", "sub_0002.fits", "truth.json", "truth.npz"
    ]  # fmt: skip


def test_progress_counts_frames(tmp_path):
    seen = []
    simulate(SMALL, tmp_path, progress=lambda *step: seen.append(step))
    assert seen == [("simulate", k, 4) for k in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "change",
    [{"bayer": "XYZW"}, {"n_frames": 0}, {"width": 10}, {"gain_range": (1.2, 0.8)}, {"hot_fraction": 2.0},
     {"sky": (1.0, 2.0, -3.0)}, {"n_stars": -1}, {"fwhm_px": float("nan")}],
)  # fmt: skip
def test_values_that_cannot_be_are_named(change):
    with pytest.raises(SpecError, match=next(iter(change))):
        SimulationSpec(**change)


@pytest.mark.parametrize("rounding", [0.0, 1 / 12])
def test_every_pixel_is_expectation_plus_predicted_noise(tmp_path, rounding):
    colour_cube = rounding == 0.0
    spec = replace(CLEAN, saturated_stars=0, electrons_per_adu=0.8, bayer="rgb" if colour_cube else "GRBG")
    truth = simulate(spec, tmp_path)
    cell = np.array([["RGB".index(c) for c in "GR"], ["RGB".index(c) for c in "BG"]])
    colour = np.tile(cell, (120, 160))[..., None]
    expected = sky_of(truth, 0) + truth.gains[0] * truth.image
    data = np.moveaxis(frame(tmp_path, truth, 0), 0, -1) if colour_cube else frame(tmp_path, truth, 0)[..., None]
    if colour_cube:
        colour = np.broadcast_to([0, 1, 2], expected.shape)
    else:
        expected = np.take_along_axis(expected, colour, 2)
    deviation = (data - expected) / np.sqrt(expected / 0.8 + (8 / 0.8) ** 2 + rounding)
    for channel in range(3):
        sample = deviation[colour == channel]
        assert abs(sample.mean()) < 5 / np.sqrt(sample.size)
        assert sample.std() == pytest.approx(1.0, abs=0.02)
    plain = np.sqrt(truth.sky[0] / 0.8 + 100 + rounding)
    assert np.allclose(truth.sample_sigma[0], plain)


@pytest.mark.parametrize("k", [0, 3])
def test_bright_stars_lie_where_truth_puts_them(tmp_path, k):
    spec = replace(CLEAN, bayer="none", n_frames=4, nebula=0.0, n_stars=25, flux_min=20_000.0, saturated_stars=0)
    truth = simulate(spec, tmp_path)
    data = frame(tmp_path, truth, k) - sky_of(truth, k)[..., 0]
    where = map_points(truth.transforms[k], truth.star_xy)
    y, x = np.mgrid[: spec.height, : spec.width]
    checked = 0
    for star in np.flatnonzero(np.all((where > 15) & (where < [304, 224]), axis=1)):
        alone = np.sort(np.hypot(*(where - where[star]).T))[1] > 25
        if not alone:
            continue
        centre = where[star] + 0.3  # start off the mark: the fixed point is what is tested
        for _ in range(20):
            weight = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 1.5**2)) * data
            centre = centre + 2 * (np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum() - centre)
        assert np.hypot(*(centre - where[star])) < 0.05
        checked += 1
    assert checked >= 3


def test_flux_of_an_isolated_star_is_the_stated_one(tmp_path):
    truth = simulate(replace(CLEAN, bayer="none", nebula=0.0, n_stars=0, saturated_stars=0), tmp_path)
    assert truth.image.max() == 0
    bright = replace(CLEAN, bayer="none", nebula=0.0, n_stars=1, saturated_stars=1, dither_px=0.0, rotation_deg=0.0)
    truth = simulate(bright, tmp_path, overwrite=True)
    assert truth.image.sum(dtype=float) == pytest.approx(truth.star_flux.sum(), rel=5e-3)


def test_saturated_cores_sit_at_full_scale(tmp_path):
    truth = simulate(replace(CLEAN, saturated_stars=1), tmp_path)
    x, y = np.rint(truth.star_xy[0]).astype(int)
    assert frame(tmp_path, truth, 0)[y, x] == FULL_SCALE


def test_hot_and_cold_pixels_stay_on_the_sensor(tmp_path):
    truth = simulate(replace(SMALL, hot_fraction=2e-3, n_stars=0, saturated_stars=0, trail_fraction=0.0), tmp_path)
    frames = np.stack([frame(tmp_path, truth, k) for k in range(4)]).astype(float)
    lowest, highest = frames.min(axis=0), frames.max(axis=0)
    hot = lowest > 2500  # in all frames; sky and nebula stay below
    assert 20 < hot.sum() <= round(2e-3 * hot.size)
    assert 3 <= (highest < 550).sum() <= round(1e-4 * hot.size)


def test_trails_cross_their_own_frame_only(tmp_path):
    spec = replace(CLEAN, bayer="none", trail_fraction=0.5, n_stars=0, saturated_stars=0, nebula=0.0)
    truth = simulate(spec, tmp_path)
    assert truth.trail_frame.tolist() == sorted(set(truth.trail_frame.tolist())) and truth.trail_frame.size == 2
    for t, k in enumerate(truth.trail_frame):
        start, end = truth.trail_ends[t]
        points = np.rint(start + np.linspace(0, 1, 2000)[:, None] * (end - start)).astype(int)
        x, y = points[np.all((points >= 0) & (points < [320, 240]), axis=1)].T
        above = [float((frame(tmp_path, truth, i) - sky_of(truth, i)[..., 0])[y, x].mean()) for i in range(4)]
        # sampled at the nearest pixels: at most 0.7 px from the axis of a profile 3 px wide or more
        assert 0.8 * truth.trail_peak[t] < above[k] < 1.02 * truth.trail_peak[t]
        assert all(abs(level) < 25 for i, level in enumerate(above) if i not in truth.trail_frame)


def test_a_perfect_result_has_no_fault(session):
    folder, truth = session
    figures = compare_with_truth(
        perfect(truth), folder, transforms=dict(zip(truth.names, truth.transforms, strict=True))
    )
    assert figures["registration_rms_px"] < 1e-9
    assert max(figures["sky_noise_over_ideal"]) < 0.01
    assert figures["photometric_error_worst"] < 1e-4 and figures["channel_balance_error"] < 1e-4
    assert figures["fwhm_over_truth_mean"] == pytest.approx(1.0, abs=1e-3)
    assert abs(figures["trail_residual_adu"]) < 0.01 and figures["trails"] == 1
    assert figures["photometric_stars"] >= 10


def test_without_any_noise_there_is_no_unit_for_trails(tmp_path):
    empty = replace(CLEAN, trail_fraction=0.25, n_stars=0, saturated_stars=0, nebula=0.0)
    truth = simulate(empty, tmp_path)
    figures = compare_with_truth(np.zeros_like(truth.image), truth)
    assert figures["trail_residual_adu"] == 0 and figures["trails"] == 1
    assert figures["photometric_stars"] == 0 and np.isnan(figures["photometric_error_worst"])
    assert np.isnan(figures["trail_residual_sigma"]) and np.isnan(figures["trail_residual_pixel_sigma"])


def test_ideal_counts_raw_samples_and_weights_frames_by_transparency(tmp_path):
    truth = simulate(replace(CLEAN, nebula=0.0, dither_px=0.0, rotation_deg=0.0, gain_range=(0.5, 1.5)), tmp_path)
    relative = truth.gains / truth.gains[0]
    information = ((relative[:, None] / truth.sample_sigma) ** 2).sum(axis=0) * 64 * np.array([0.25, 0.5, 0.25])
    figures = compare_with_truth(perfect(truth), truth)
    assert figures["sky_noise_ideal_adu"] == pytest.approx(1 / np.sqrt(information), rel=2e-3)


def test_registration_error_is_measured_as_given(session):
    _, truth = session
    shift = np.array([[1, 0, 0.3], [0, 1, -0.4], [0, 0, 1]])
    found = {f"/some/where/{name}": t for name, t in zip(truth.names, truth.transforms, strict=True)}
    found[f"/some/where/{truth.names[2]}"] = shift @ truth.transforms[2]
    figures = compare_with_truth(perfect(truth), truth, transforms=found)
    assert figures["registration_worst_px"] == pytest.approx(0.5)
    assert figures["registration_rms_px"] == pytest.approx(0.25, abs=0.02)  # one of four frames, about equal in stars
