"""Stacking on the GPU: names that existing programs call."""

from __future__ import annotations

from zemosaic_phase3.compat.stack_gpu import gpu_stack_from_arrays, gpu_stack_from_paths
from zemosaic_phase3.engine.gpu_check import gpu_is_usable as _gpu_is_usable
from zemosaic_phase3.errors import GPUStackingError

__all__ = [
    "GPUStackingError",
    "_gpu_is_usable",
    "gpu_stack_from_arrays",
    "gpu_stack_from_paths",
]
