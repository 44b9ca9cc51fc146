"""Tests of ``engine.gpu_check``."""

from __future__ import annotations

import logging
import sys

import pytest
from gpu_engine_case import CUDARuntimeError, stack_of
from host_cupy import OutOfMemoryError

from zemosaic_phase3 import errors
from zemosaic_phase3.compat import stack_gpu
from zemosaic_phase3.engine import gpu_card, gpu_check
from zemosaic_phase3.runtime import cuda, cuda_failure


def test_nothing_is_touched_after_a_sticky_error(cupy):
    cupy.failures["combine_block"] = CUDARuntimeError(700)
    with pytest.raises(CUDARuntimeError):
        stack_gpu.gpu_stack_from_arrays(stack_of(), {})
    assert cuda_failure.is_poisoned()
    assert cupy.used > 0, "not even a destructor may run"
    launched = len(cupy.launched)
    with pytest.raises(errors.GPUStackingError, match="cannot be undone"):
        stack_gpu.gpu_stack_from_arrays(stack_of(), {})
    assert not gpu_check.gpu_is_usable()
    assert len(cupy.launched) == launched


def test_the_probe_compiles_runs_and_checks(cupy):
    assert gpu_check.gpu_is_usable()
    assert "combine_block" in cupy.launched
    launched = len(cupy.launched)
    assert gpu_check.gpu_is_usable()
    assert len(cupy.launched) == launched, "once per process"


def test_the_probe_notices_a_wrong_answer(cupy, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="ZeMosaicWorker")
    collect = gpu_card.Card.collect

    def spoiled(self, slab, name, result):
        sums = collect(self, slab, name, result)
        if name == "image":
            result.image[2, 3] += 1e-4 * result.image[2, 3]
        return sums

    monkeypatch.setattr(gpu_card.Card, "collect", spoiled)
    assert not gpu_check.gpu_is_usable()
    assert "mean differs at 1 of 768 pixels" in caplog.text


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (RuntimeError("Failed to load libnvrtc.so.12"), "cannot be compiled"),
        (CUDARuntimeError(209), "a test kernel failed"),
        (OutOfMemoryError("Out of memory"), "a test kernel failed"),
    ],
    ids=["nvrtc", "no image", "memory"],
)
def test_the_probe_names_the_reason(cupy, failure, said):
    cupy.failures["combine_block"] = failure
    found = gpu_check.usability()
    assert not found.usable
    assert said in found.reason
    assert found.remedy
    assert not cuda_failure.is_poisoned()


def test_a_full_card_is_left_alone(cupy):
    cupy.total = 100 << 20
    assert "free memory" in gpu_check.usability().reason
    assert cupy.launched == []


def test_no_cupy_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(gpu_check, "_KNOWN", {})
    cuda.first_probe.cache_clear()
    found = gpu_check.usability()
    cuda.first_probe.cache_clear()
    assert (found.usable, found.reason) == (False, "CuPy is not installed")
    assert "pip install" in found.remedy
