"""Tiles to files, radial weights, sky levels and the GPU: names that existing programs call."""

from __future__ import annotations

from zemosaic_phase3.compat.gpu_names import (
    ensure_cupy_pool_initialized,
    free_cupy_memory_pools,
    gpu_is_available,
    gpu_memory_sufficient,
)
from zemosaic_phase3.compat.radial_map import make_radial_weight_map
from zemosaic_phase3.compat.sky_match import compute_sky_statistics, estimate_sky_affine_to_ref
from zemosaic_phase3.io.tile_file import save_fits_image

__all__ = [
    "compute_sky_statistics",
    "ensure_cupy_pool_initialized",
    "estimate_sky_affine_to_ref",
    "free_cupy_memory_pools",
    "gpu_is_available",
    "gpu_memory_sufficient",
    "make_radial_weight_map",
    "save_fits_image",
]
