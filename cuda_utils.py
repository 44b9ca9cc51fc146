"""Whether there is a GPU, and whether an error means that its memory is full: names that existing programs call."""

from __future__ import annotations

from zemosaic_phase3.runtime.cuda import CUPY_AVAILABLE, IS_WINDOWS, SYSTEM_NAME, enforce_nvidia_gpu, gpu_supported
from zemosaic_phase3.runtime.cuda_failure import is_oom_error

__all__ = [
    "CUPY_AVAILABLE",
    "IS_WINDOWS",
    "SYSTEM_NAME",
    "enforce_nvidia_gpu",
    "gpu_supported",
    "is_oom_error",
]
