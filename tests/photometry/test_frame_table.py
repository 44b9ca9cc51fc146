"""Tests of ``photometry.frame_table``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from weights_case import STAR_WEIGHTS, stats_of

from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.photometry import frame_table
from zemosaic_phase3.spec import StackSpec


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


def test_equal_star_counts_are_said_to_tell_nothing():
    stats = [replace(stats_of(4.0), n_stars=400)] * 2
    spec = StackSpec(normalize="none", weight="stars")
    rows, _, _ = frame_table.build_frame_table(["a", "b"], [np.eye(3)] * 2, stats, spec)
    np.testing.assert_array_equal(rows.weight, 1.0)
    assert "400 stars" in rows.notes[0]
