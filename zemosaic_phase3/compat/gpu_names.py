"""The GPU and its memory pools, under the names that ZeMosaic calls."""

from __future__ import annotations

from zemosaic_phase3.runtime import cuda


def gpu_is_available() -> bool:
    """Return True when a GPU can be used; see :func:`runtime.cuda.gpu_supported`."""
    return cuda.gpu_supported()


def ensure_cupy_pool_initialized() -> bool:
    """Prepare CuPy's memory pools; see :func:`runtime.cuda.initialize_pools`."""
    return cuda.initialize_pools()


def free_cupy_memory_pools() -> bool:
    """Give back what CuPy's memory pools hold unused; see :func:`runtime.cuda.free_pools`."""
    return cuda.free_pools()


def gpu_memory_sufficient(required_bytes: int, safety_fraction: float = 0.75) -> bool:
    """Return True when ``required_bytes`` fit into this fraction of the free GPU memory (False without a GPU)."""
    info = cuda.memory_info()
    return info is not None and required_bytes <= info[0] * safety_fraction
