"""Tests of ``resample.footprint``."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from resample_case import similarity, some_field, warp

from zemosaic_phase3.registration.distortion import reach
from zemosaic_phase3.resample import footprint, interpolation


@settings(max_examples=60, deadline=None)
@given(
    angle=st.one_of(st.floats(-180, 180), st.sampled_from([0.0, 90.0, 180.0, -90.0])),
    dx=st.floats(-60, 60),
    dy=st.floats(-60, 60),
    y0=st.integers(0, 88),
    rows=st.integers(1, 60),
    tilt=st.sampled_from([0.0, 1e-4, 3e-4]),
    strength=st.sampled_from([0.0, 1.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_columns_that_a_slab_does_not_need_may_hold_anything(angle, dx, dy, y0, rows, tilt, strength, seed):
    image = np.random.default_rng(seed).normal(1000.0, 30.0, (90, 120)).astype(np.float32)
    centre = np.array([[1, 0, 59.5], [0, 1, 44.5], [0, 0, 1.0]])
    matrix = centre @ similarity(angle, dx, dy) @ np.linalg.inv(centre)
    matrix[2, :2] = tilt, -tilt / 2
    field = some_field(90, 120, strength, seed) if strength else None
    y1 = min(y0 + rows, 90)
    whole = warp(image, matrix, rows=(y0, y1), field=field)
    first, last = footprint.source_rows(matrix, y0, y1, 120, 90, 0.0 if field is None else reach(field))
    if last <= first:
        return
    far = 0.0 if field is None else float(np.abs(field).max())
    columns = footprint.source_columns(matrix, y0, y1, 120, first, last, 120, far)
    assert columns.shape == (last - first, 2)
    spoilt = image.copy()
    x = np.arange(120)
    spoilt[first:last][(x < columns[:, :1]) | (x >= columns[:, 1:])] = 1e9
    np.testing.assert_array_equal(warp(spoilt, matrix, rows=(y0, y1), field=field), whole)


def test_a_thin_slab_of_a_turned_frame_needs_little_more_than_its_area():
    matrix = similarity(3.0, 20.0, -30.0)
    first, last = footprint.source_rows(matrix, 500, 508, 1920, 1080)
    columns = footprint.source_columns(matrix, 500, 508, 1920, first, last, 1920)
    pixels = np.diff(columns, axis=1).sum() / 1920
    assert 8 < pixels < 8 + 2 * (interpolation.MARGIN + 3) < 0.25 * (last - first)
