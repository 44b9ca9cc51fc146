"""Tests of ``compat.stack_cpu``."""

from __future__ import annotations

import numpy as np
import pytest
from align_stack_case import cube

from zemosaic_phase3.compat import stack_cpu
from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source


def test_descriptors_of_every_kind_give_the_same(tmp_path):
    frames = cube(4)
    path = tmp_path / "a.npy"
    np.save(path, frames[0])
    kinds = [path, {"data": frames[1]}, Frame(open_source(frames[2])), frames[3]]
    image, metadata = stack_cpu.stack_descriptors(kinds, {"poststack_equalize_rgb": False})
    plain, _ = stack_cpu.stack_descriptors(list(frames), {"poststack_equalize_rgb": False})
    np.testing.assert_array_equal(image, plain)
    assert metadata["frames_used"] == 4


def test_nothing_to_stack_is_an_error():
    for empty in (None, [], np.empty((0, 4, 4), np.float32)):
        with pytest.raises(NoFramesError):
            stack_cpu.stack_descriptors(empty, {})


def test_rejected_percent_of_a_frame_is_of_its_own_samples():
    frames = np.full((8, 40, 40), 100.0, np.float32) + np.random.default_rng(0).normal(0, 1, (8, 40, 40)).astype("f4")
    frames[0] = np.nan
    frames[0, :4] = 9999.0
    _, metadata = stack_cpu.stack_descriptors(
        list(frames), {"stack_reject_algo": "winsorized_sigma_clip", "wsc_impl": "pixinsight"}
    )
    assert metadata["frame_rejected_percent"][0] == pytest.approx(100.0)
    assert max(metadata["frame_rejected_percent"][1:]) < 10.0
