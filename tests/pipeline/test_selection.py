"""Frames left out by limits and by rank (``pipeline.selection``), in stacks of simulated frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.pipeline.group import FrameRow, Group, open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.registering import register_group
from zemosaic_phase3.pipeline.scan import Scan
from zemosaic_phase3.pipeline.selection import apply_limits, drop_worst, point_source_noise, rate_frames
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import RegisterSpec, SelectSpec
from zemosaic_worker import stack_files

SKY = SimulationSpec(
    n_frames=6, height=240, width=320, n_stars=150, flux_min=3000.0, bayer="none", dither_px=5.0, nebula=0.0,
    trail_fraction=0.0, gain_range=(1.0, 1.0), seeing_variation=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Two good frames, one of double width, one dimmed to a fifth, two more good ones, all of one sky."""
    folder = tmp_path_factory.mktemp("select")
    kinds = {"good": {}, "wide": {"fwhm_px": 6.0}, "dim": {"gain_range": (0.2, 0.2)}}
    paths = {kind: [] for kind in kinds}
    for kind, options in kinds.items():
        truth = simulate(replace(SKY, **options), folder / kind)
        paths[kind] = [folder / kind / name for name in truth.names]
    good = paths["good"]
    return [good[0], good[1], paths["wide"][2], paths["dim"][3], good[4], good[5]]


def prepared(paths, spec: SelectSpec, reference=None) -> Group:
    group = open_group(paths, reference=reference)
    scan_group(group, RegisterSpec(), find_stars=True, workers=2)
    apply_limits(group, spec)
    register_group(group, RegisterSpec(), workers=2)
    rate_frames(group)
    drop_worst(group, spec)
    return group


def test_the_defaults_keep_all_and_rate_them(frames):
    group = prepared(frames, SelectSpec())
    assert group.usable == list(range(6))
    seen = [row.transparency for row in group.rows]
    np.testing.assert_allclose(np.array(seen)[[0, 1, 2, 3, 4, 5]], [1, 1, 1, 0.2, 1, 1], rtol=0.05)
    assert seen[group.reference] == 1.0


def test_limits_leave_out_wide_stars_and_few_stars_with_the_numbers(frames):
    assert prepared(frames, SelectSpec(max_fwhm=5.0)).usable == [0, 1, 3, 4, 5]
    group = prepared(frames, SelectSpec(min_stars=80))
    assert 3 not in group.usable and group.usable[:2] == [0, 1]
    assert "stars, at least 80 are asked for (--min-stars)" in group.rows[3].reason
    reason = prepared(frames, SelectSpec(max_fwhm=5.0)).rows[2].reason
    assert "FWHM 6." in reason and "limit 5 px" in reason


def test_the_worst_show_faint_stars_worst(frames):
    assert prepared(frames, SelectSpec(drop_worst=17.0)).usable == [0, 1, 2, 4, 5]
    group = prepared(frames, SelectSpec(drop_worst=34.0))
    assert group.usable == [0, 1, 4, 5]
    assert "worst 34 % (--drop-worst)" in group.rows[2].reason and "transparency 0.2" in group.rows[3].reason
    assert len(prepared(frames, SelectSpec(drop_worst=16.0)).usable) == 6  # less than one frame


def test_the_reference_always_stays(frames):
    group = prepared(frames, SelectSpec(max_fwhm=5.0, drop_worst=50.0), reference=frames[2])
    assert group.reference == 2 and 2 in group.usable


def test_noise_of_a_frame_without_stars_is_infinite(frames):
    stats = prepared(frames[:2], SelectSpec()).scan(0).stats
    assert point_source_noise(replace(stats, fwhm=np.nan), 1.0) == np.inf
    assert point_source_noise(stats, 0.5) == pytest.approx(2 * point_source_noise(stats, 1.0))
    assert point_source_noise(stats, np.nan) == point_source_noise(stats, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_fwhm": 0.0}, "max FWHM"),
        ({"max_fwhm": "wide"}, "3s for three sigmas"),
        ({"max_fwhm": "0s"}, "sigmas of the session"),
        ({"max_eccentricity": 1.5}, "max eccentricity"),
        ({"max_background": "x"}, "max background"),
        ({"min_stars": 2.5}, "whole number"),
        ({"drop_worst": 100.0}, "drop worst"),
    ],
)
def test_impossible_limits_are_named(options, words):
    with pytest.raises(SpecError, match=words):
        SelectSpec(**options)


def test_a_stack_reports_what_it_knows_of_each_frame(frames):
    from zemosaic_phase3.pipeline.outputs import frames_columns

    tile = stack_files(frames, select=SelectSpec(max_fwhm=5.0), device="cpu")
    assert tile.report.n_used == 5
    assert tile.report.spec["select"]["max_fwhm"] == 5.0
    columns = frames_columns(sorted(tile.rows, key=lambda row: list(map(str, frames)).index(row.name)))
    assert {"FWHM", "ECCENTR", "STARS", "SKY", "NOISE", "TRANSPAR", "MODEL"} <= set(columns)
    assert columns["TRANSPAR"][3] == pytest.approx(0.2, rel=0.05)
    assert np.isnan(columns["TRANSPAR"][2])
    assert columns["FWHM"][2] > 1.7 * columns["FWHM"][0]
    np.testing.assert_allclose(columns["SKY"][:, 0], 1200.0, rtol=0.12)
    assert np.all((columns["NOISE"][:, 0] > 30.0) & (columns["NOISE"][:, 0] < 60.0))
    assert np.all(columns["ECCENTR"] < 0.6)  # of round stars, most of them faint


def measured(fwhm, eccentricity=(), sky=(), n_stars=()) -> Group:
    """Frames of which these figures are known."""
    group = Group([], [])
    for k, width in enumerate(fwhm):
        level = np.array([sky[k] if sky else 1000.0])
        stats = FrameStats(
            level, level, level, level, level, 0.0, fwhm=width, eccentricity=eccentricity[k] if eccentricity else 0.3,
            n_stars=n_stars[k] if n_stars else 100,
        )  # fmt: skip
        group.rows.append(FrameRow(f"f{k}", used=True, scan=Scan(stats, None)))
        group.sources.append(None)
    return group


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (SelectSpec(), [0, 1, 2, 3, 4, 6]),  # 8 is wider than 2.5 times 3.05; no stars are not too wide
        (SelectSpec(max_fwhm="none"), [0, 1, 2, 3, 4, 5, 6]),
        (SelectSpec(max_fwhm="3s"), [0, 1, 2, 3, 4]),  # but no stars are not as sharp as was asked for
        (SelectSpec(max_fwhm="1.01x"), [0, 1, 2]),
        (SelectSpec(max_fwhm=None, max_eccentricity=0.5), [0, 2, 3, 4, 5, 6]),
        (SelectSpec(max_fwhm=None, max_background="3s"), [0, 1, 3, 4, 5, 6]),
        (SelectSpec(max_fwhm=None, min_stars="0.5x"), [0, 1, 2, 3, 4, 6]),
    ],
)
def test_limits_of_the_session(spec, kept):
    group = measured(
        [2.9, 3.0, 3.0, 3.1, 3.2, 8.0, np.nan],
        [0.3, 0.7, 0.3, 0.3, 0.3, 0.3, 0.3],
        [1000, 1010, 1900, 990, 1020, 1000, 1000],
        [100, 90, 95, 100, 110, 20, 99],
    )
    apply_limits(group, spec)
    assert group.usable == kept
    assert all(row.reason for row in group.rows if not row.used)


def test_frames_out_of_focus_are_noted():
    group = measured([3.0, 3.1, 2.9, 20.0, 22.0])
    apply_limits(group, SelectSpec())
    assert "2 frames are left out: stars wider than 7.8 px" in group.notes[0] and "--max-fwhm none" in group.notes[0]
    assert "FWHM 20.00 px, more than 2.5x the median" in group.rows[3].reason
    two = measured([3.0, 20.0])
    apply_limits(two, SelectSpec())
    assert two.usable == [0, 1] and not two.notes  # which of two is wrong, nobody knows
