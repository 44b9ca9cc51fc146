"""Gains from shared stars and offsets from shared sky (``photometry.star_gain``), alone and in the frame table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from photometry_case import CELL, SHAPE, shifted, stats
from scipy.spatial import cKDTree

from zemosaic_phase3.photometry import star_gain
from zemosaic_phase3.photometry.frame_table import build_frame_table
from zemosaic_phase3.registration.distortion import displacement, make_field, nodes
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.simulate.truth import compare_with_truth
from zemosaic_phase3.spec import RegisterSpec, StackSpec
from zemosaic_worker import stack_files


@pytest.mark.parametrize("gain", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.8, 0.7, 0.5)])
def test_gain_is_the_inverse_of_transparency(gain):
    found = star_gain.frame_gain(stats(gain, seed=1), stats(seed=2), np.eye(3))
    assert found.supported and np.all(found.pairs > 100)
    np.testing.assert_allclose(found.factor * gain, 1.0, atol=0.01)
    assert np.all(found.error < 0.005)


def test_the_pairs_are_those_of_a_tree(rng: np.random.Generator) -> None:
    one, other = stats(seed=1), stats(seed=2)
    near = replace(one, star_xy=(other.star_xy + rng.normal(0.0, 0.8, other.star_xy.shape)).astype(np.float32))
    for radius in (1.0, 2.0, 9.0):  # the last by a tree
        i, j = star_gain.same_stars(replace(near, fwhm=2.0 * radius), other, np.eye(3), None, np.eye(3))
        theirs, ours = cKDTree(near.star_xy), cKDTree(other.star_xy)
        pairs = [
            (k, theirs.query(xy)[1]) for k, xy in enumerate(other.star_xy)
            if theirs.query(xy)[0] < radius and ours.query(near.star_xy[theirs.query(xy)[1]])[1] == k
        ]  # fmt: skip
        assert len(pairs) > 30 and list(zip(i.tolist(), j.tolist(), strict=True)) == pairs


def test_a_gain_is_remembered_for_its_reference_and_transform_alone() -> None:
    frame, reference = stats((0.5, 0.5, 0.5), seed=1), stats(seed=2)
    found = star_gain.frame_gain(frame, reference, np.eye(3))
    assert star_gain.frame_gain(frame, reference, np.eye(3)) is found
    dimmer = replace(reference, star_light=reference.star_light * np.float32(0.5))
    other = star_gain.frame_gain(frame, dimmer, np.eye(3))
    np.testing.assert_allclose(other.factor, 0.5 * found.factor, rtol=0.01)
    away = np.array([[1.0, 0.0, 500.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert not star_gain.frame_gain(frame, dimmer, away).supported
    assert star_gain.frame_gain(frame, reference, np.eye(3)).factor.tolist() == found.factor.tolist()


def test_variable_and_clipped_stars_do_not_count():
    frame = stats((0.6,), (1000.0,), seed=1)
    spoilt = frame.star_light.copy()
    spoilt[:40] *= 3.0
    spoilt[40:50] = np.nan
    found = star_gain.frame_gain(replace(frame, star_light=spoilt), stats((1.0,), (1000.0,), seed=2), np.eye(3))
    assert found.factor[0] * 0.6 == pytest.approx(1.0, abs=0.01)
    assert found.pairs[0] <= 70


def test_stars_are_matched_through_the_transform():
    frame = stats((0.9,), (1000.0,), shift=(31.0, -12.0))
    found = star_gain.frame_gain(frame, stats((1.0,), (1000.0,)), shifted(31.0, -12.0))
    assert found.pairs[0] > 100 and found.factor[0] * 0.9 == pytest.approx(1.0, abs=0.01)
    assert star_gain.frame_gain(frame, stats((1.0,), (1000.0,)), np.eye(3)).pairs[0] < 10


def test_few_or_poor_stars_are_no_gain():
    few = star_gain.frame_gain(stats(n=2), stats(), np.eye(3))
    assert not few.supported and np.isnan(few.factor).all()
    some = star_gain.frame_gain(stats(n=4), stats(n=4), np.eye(3))
    assert not some.supported and (some.error >= star_gain.FEW_STARS_ERROR).all()
    poor = star_gain.frame_gain(stats(n=8, error=0.09, seed=1), stats(error=0.09, seed=2), np.eye(3))
    assert not poor.supported
    none = star_gain.frame_gain(replace(stats(), star_xy=np.empty((0, 2), np.float32)), stats(), np.eye(3))
    assert not none.supported and none.pairs.tolist() == [0, 0, 0]


def test_channels_that_differ_by_noise_alone_are_drawn_together():
    error = np.full(3, 0.01)
    noise, colour = np.array([1.0, 1.006, 0.997]), np.array([1.0, 1.1, 0.9])
    assert np.ptp(star_gain.drawn_together(noise, error)) < 1e-12
    np.testing.assert_allclose(star_gain.drawn_together(colour, error), colour, rtol=0.01)


def test_offset_is_the_skies_difference_wherever_the_nebula_lies():
    """The frame shows less of the nebula; its median would say that its sky is darker."""
    gain = np.array([0.8, 0.8, 0.8])
    reference = stats(nebula=500.0)
    frame = stats(gain, (700.0, 700.0, 700.0), nebula=500.0, shift=(-128.0, 0.0))
    offset = star_gain.frame_offset(frame, reference, shifted(-128.0, 0.0), 1 / gain)
    np.testing.assert_allclose(offset, np.array([900.0, 1200.0, 800.0]) - 700.0 / 0.8, atol=0.01)


def test_offset_without_a_common_patch_is_that_of_the_medians():
    frame = replace(stats(), sky_mesh=np.empty((0, 0, 3), np.float32), median=np.array([1000.0, 1000.0, 1000.0]))
    offset = star_gain.frame_offset(frame, stats(), np.eye(3), np.full(3, 0.5))
    np.testing.assert_allclose(offset, [400.0, 700.0, 300.0])


@pytest.fixture(scope="module")
def hazy(tmp_path_factory):
    """A night of haze: transparency 0.6 .. 1, sky that brightens by 40 %, a nebula."""
    folder = tmp_path_factory.mktemp("hazy") / "subs"
    spec = SimulationSpec(
        n_frames=8, height=320, width=400, seed=3, n_stars=400, flux_min=3000.0, gain_range=(0.6, 1.0), sky_drift=0.4,
        hot_fraction=1e-4, trail_fraction=0.0, rotation_deg=1.0,
    )  # fmt: skip
    return folder, simulate(spec, folder)


def test_stack_of_a_hazy_night_keeps_the_fluxes(hazy):
    folder, truth = hazy
    errors = {}
    for method in ("auto", "additive_scaling"):
        tile = stack_files([folder], stack=StackSpec(normalize=method), register=RegisterSpec(), device="cpu")
        assert tile.report.n_used == 8
        figures = compare_with_truth(tile.image, truth, reference_name=tile.report.reference)
        errors[method] = (figures["photometric_error_worst"], max(map(abs, figures["nebula_error"])))
        reference = truth.index(tile.report.reference)
        for row in tile.rows:
            expected = truth.gains[truth.index(row.name)] / truth.gains[reference]
            assert row.transparency == pytest.approx(expected, rel=0.03)
    assert tile.header["ZMT_NORM"] == "additive_scaling"
    assert max(errors["auto"]) < 0.02
    assert max(errors["additive_scaling"]) > 2 * max(errors["auto"])


def test_header_says_what_auto_chose(hazy, tmp_path):
    folder, _ = hazy
    tile = stack_files([folder], device="cpu")
    assert tile.header["ZMT_NORM"] == "photometric"
    assert any("auto took photometric" in note for note in tile.report.warnings)


def test_stars_are_matched_where_the_field_puts_them():
    height, width = SHAPE[0] * CELL, SHAPE[1] * CELL
    field = make_field(6.0 * ((nodes(height, width) - (width / 2, height / 2)) / (width / 2)) ** 3)
    known, frame = stats(), stats(seed=1)
    there = known.star_xy + displacement(field, known.star_xy.astype(float))
    frame = replace(frame, star_xy=there.astype(np.float32))
    assert star_gain.frame_gain(frame, known, np.eye(3)).pairs.max() < 115
    assert star_gain.frame_gain(frame, known, np.eye(3), field).pairs.tolist() == [120, 120, 120]
    given = ["known", "bent"], [np.eye(3)] * 2, [known, frame], StackSpec(normalize="photometric", weight="none")
    assert build_frame_table(*given, 0, [None, field])[1] == [0, 1]


def test_a_gain_counts_the_area_of_pixels():
    """Pixels 4 % smaller: a star covers 8 % more of them, and loses them when the frame is resampled."""
    reference = stats()
    frame = replace(reference, star_xy=(reference.star_xy * 1.04).astype(np.float32))
    gain = star_gain.frame_gain(frame, reference, np.diag([1.04, 1.04, 1.0]))
    np.testing.assert_allclose(gain.factor, 1.04**2, rtol=1e-5)
    assert gain.area == pytest.approx(1.04**2)


def test_areas_follow_perspective_and_distortion():
    places = np.array([[100.0, 50.0], [300.0, 200.0]])
    tilted = np.array([[1.01, 0.02, 3.0], [-0.02, 0.99, 5.0], [1e-5, 2e-5, 1.0]])
    w = places @ tilted[2, :2] + 1.0
    np.testing.assert_allclose(star_gain.pixel_areas(tilted, places), abs(np.linalg.det(tilted)) / w**3, rtol=1e-6)
    field = make_field(np.stack(np.meshgrid(np.arange(8) * 0.64, np.zeros(6)), axis=-1).astype(np.float32))
    np.testing.assert_allclose(star_gain.pixel_areas(np.eye(3), places, field), 1.01, rtol=1e-4)
