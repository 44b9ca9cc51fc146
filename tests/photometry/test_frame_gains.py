"""Tests of ``photometry.frame_table``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from photometry_case import stats

from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.photometry.frame_table import build_frame_table
from zemosaic_phase3.spec import StackSpec


def table(frames, **spec):
    names = [f"f{i}" for i in range(len(frames))]
    return build_frame_table(names, [np.eye(3)] * len(frames), frames, StackSpec(**spec))


def test_photometric_scales_weigh_by_transparency_and_noise():
    rows, used, dropped = table([stats(), stats((0.5, 0.5, 0.5), seed=3)], normalize="photometric")
    assert (used, dropped, rows.normalize_method) == ([0, 1], [], "photometric")
    np.testing.assert_allclose(rows.scale, [[1.0] * 3, [2.0] * 3], rtol=0.01)
    np.testing.assert_allclose(rows.weight[1] / rows.weight[0], 0.25, rtol=0.03)  # the noise is scaled too


def test_a_frame_without_a_gain_is_left_out_with_its_numbers():
    _, used, dropped = table([stats(), stats(n=3), stats(seed=4)], normalize="photometric")
    assert used == [0, 2]
    assert dropped[0][0] == "f1"
    assert "3 stars shared" in dropped[0][1] and "additive_scaling" in dropped[0][1]
    with pytest.raises(NoFramesError, match="none of 1 frames"):
        table([replace(stats(), median=np.full(3, np.nan), variance=np.full(3, np.nan))], normalize="photometric")


def test_auto_takes_photometric_where_the_stars_allow_it_and_says_so():
    good = [stats(seed=k) for k in range(11)]
    rows, used, _ = table([*good, stats(n=2)], normalize="auto")
    assert rows.normalize_method == "photometric" and len(used) == 12
    assert "auto took photometric" in rows.notes[0]
    assert "1 of 12 frames tell theirs too roughly" in rows.notes[1]
    np.testing.assert_allclose(rows.scale[11], 1.0, rtol=0.01)  # as its neighbour
    rows, used, _ = table([good[0], *[stats(n=2, seed=k) for k in range(4)]], normalize="auto")
    assert rows.normalize_method == "additive_scaling" and len(used) == 5
    assert "auto took additive_scaling: 4 of 5" in rows.notes[0]
    rows, _, _ = table([stats(n=2), stats(n=2)], normalize="auto")
    assert rows.normalize_method == "additive_scaling"
