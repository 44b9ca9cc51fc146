"""Levels, normalisation and weights against the oracle and on quantised data."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

import zemosaic_weights as weights
from zemosaic_spec import FrameStats, NoFramesError, StackSpec
from zemosaic_utils import open_source


def frames(n=4, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    base = 1000 + 30 * rng.standard_normal((n, 40, 50, channels))
    base[:, 5:9, 5:9] += 5000
    base = base * np.linspace(0.9, 1.1, n)[:, None, None, None] + np.linspace(-50, 80, n)[:, None, None, None]
    base[1, :3] = np.nan
    return base.astype(np.float32)


@pytest.mark.parametrize("method", ["none", "linear_fit", "sky_mean", "additive_scaling"])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_equals_the_oracle(method, channels):
    stack = frames(channels=channels)
    stats = [weights.measure_levels(f) for f in stack]
    scale, offset = weights.normalisation(StackSpec(normalize=method), stats, 2)
    ours = stack * scale[:, None, None] + offset[:, None, None]
    expected = oracle.normalize(stack.astype(float) if channels == 3 else stack[..., 0].astype(float), method, 2)
    np.testing.assert_allclose(ours if channels == 3 else ours[..., 0], expected, rtol=1e-6, equal_nan=True)


def test_noise_weights_equal_the_oracle():
    stack = frames()
    ours = weights.noise_variance_weights(np.stack([weights.measure_levels(f).variance for f in stack]))
    np.testing.assert_allclose(ours, oracle.noise_variance_weights(stack.astype(float)), rtol=1e-6)


def test_a_flat_frame_is_shifted_never_replaced():
    stack = frames(2)
    stack[1] = 77.0
    stats = [weights.measure_levels(f) for f in stack]
    for method in ("linear_fit", "additive_scaling"):
        scale, offset = weights.normalisation(StackSpec(normalize=method), stats, 0)
        np.testing.assert_array_equal(scale[1], 1.0)
        np.testing.assert_allclose(77.0 + offset[1], stats[0].p25 if method == "linear_fit" else stats[0].median)


def test_quantised_levels_are_known_better_than_their_step():
    rng = np.random.default_rng(4)
    true = 1000.37 + 14.2 * rng.standard_normal((400, 500, 1))
    stats = weights.measure_levels(np.round(true).astype(np.float32), quantum=(1.0,))
    exact = weights.measure_levels(true.astype(np.float32))
    assert stats.median[0] == pytest.approx(exact.median[0], abs=0.02)
    assert stats.mad_sigma[0] == pytest.approx(exact.mad_sigma[0], rel=2e-3)
    plain = weights.measure_levels(np.round(true).astype(np.float32))
    assert abs(plain.mad_sigma[0] / exact.mad_sigma[0] - 1.0) > 5e-3  # what the spreading mends


def test_cell_view_puts_every_colour_in_its_place():
    for pattern in ("RGGB", "GRBG", "GBRG", "BGGR"):
        value = {"R": 10, "G": 20, "B": 30}
        cell = np.array([value[c] for c in pattern], np.uint16).reshape(2, 2)
        view = weights.cell_view(np.tile(cell, (3, 4)), pattern)
        assert view.shape == (3, 4, 3)
        np.testing.assert_array_equal(view, np.broadcast_to(np.float32([10, 20, 30]), view.shape))


def test_cell_view_of_odd_frames_drops_the_last_line():
    view = weights.cell_view(np.arange(35, dtype=np.uint16).reshape(5, 7), "RGGB")
    assert view.shape == (2, 3, 3)
    np.testing.assert_array_equal(view[0, 0], [0.0, (1 + 7) / 2, 8.0])


def test_greens_near_full_scale_do_not_overflow():
    view = weights.cell_view(np.full((4, 4), 65535, np.uint16), "GRBG")
    np.testing.assert_array_equal(view, 65535.0)


def test_measuring_view_of_a_colour_frame_is_the_frame():
    image = np.random.default_rng(0).random((9, 10, 3)).astype(np.float32)
    np.testing.assert_array_equal(weights.measuring_view(open_source(image)), image)


def test_sampling_every_kth_row_changes_little():
    image = (1000 + 30 * np.random.default_rng(0).standard_normal((300, 300, 1))).astype(np.float32)
    whole, part = weights.measure_levels(image, max_samples=None), weights.measure_levels(image, max_samples=30_000)
    assert abs(whole.median[0] - part.median[0]) < 1.0
    assert part.mad_sigma[0] == pytest.approx(whole.mad_sigma[0], rel=0.03)


def stats_of(variance, median=100.0):
    one = np.array([float(variance)])
    return FrameStats(np.array([median]), np.sqrt(one), np.array([median]), np.array([median + 1]), one, median)


def table(variances, **spec):
    spec = StackSpec(**{"normalize": "none", "weight": "noise_variance", **spec})
    n = len(variances)
    return weights.build_frame_table(
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


def test_weights_with_a_median_are_said_to_be_unused():
    rows, _, _ = table([1.0, 2.0], combine="median")
    assert rows.weight_method == "none"
    assert "median" in rows.notes[0]
