"""Tests of ``compat.gpu_names``."""

from __future__ import annotations

from zemosaic_phase3.compat import gpu_names
from zemosaic_phase3.compat.gpu_names import gpu_is_available, gpu_memory_sufficient
from zemosaic_phase3.runtime import cuda


def test_gpu_names_answer_as_cuda_utils_does(monkeypatch):
    assert gpu_is_available() == cuda.gpu_supported()
    assert gpu_names.ensure_cupy_pool_initialized() == cuda.initialize_pools()
    assert gpu_names.free_cupy_memory_pools() == cuda.free_pools()
    monkeypatch.setattr(cuda, "memory_info", lambda: (1000, 2000))
    assert gpu_memory_sufficient(750) and not gpu_memory_sufficient(751)
    assert gpu_memory_sufficient(1000, safety_fraction=1.0)
    monkeypatch.setattr(cuda, "memory_info", lambda: None)
    assert not gpu_memory_sufficient(0)
