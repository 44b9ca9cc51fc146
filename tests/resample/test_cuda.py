"""The CUDA text of reading, demosaicing and resampling, built by g++, gives the bits of the host's own code."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import CONTRACTED, build, has_fma
from gpu_resample_case import compare, fields, job_of, some_transforms

from zemosaic_phase3.resample import cuda


def test_contraction_would_change_the_bits(tmp_path):
    if not has_fma():
        pytest.skip("this processor, or its compiler flag, has no fused multiply-add")
    contracted = build(cuda.source(), "contracted", tmp_path, CONTRACTED)
    rng = np.random.default_rng(5)
    job = job_of(fields(rng, 6, (40, 53), np.float32), some_transforms(rng, 6))
    assert compare(contracted, job, None) > 0, "a test of equal bits must be able to fail"


def test_the_text_steps_as_fields_do():
    from zemosaic_phase3.registration.distortion import STEP

    assert f"constexpr int FIELD_STEP = {STEP};" in cuda.source()
    assert STEP & (STEP - 1) == 0, "a power of two"
