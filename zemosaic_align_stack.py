"""Aligning and stacking of arrays on the CPU: names that existing programs call."""

from __future__ import annotations

from zemosaic_phase3.compat.align_arrays import align_images_in_group
from zemosaic_phase3.compat.finish import _poststack_rgb_equalization
from zemosaic_phase3.compat.stack_arrays import (
    _calculate_image_weights_noise_variance,
    _compute_quality_weights,
    _normalize_images_linear_fit,
    _normalize_images_sky_mean,
    _reject_outliers_kappa_sigma,
    _reject_outliers_winsorized_sigma_clip,
    stack_aligned_images,
    stack_kappa_sigma_clip,
    stack_linear_fit_clip,
    stack_winsorized_sigma_clip,
)
from zemosaic_phase3.finish.equalize import equalize_rgb_medians_inplace

__all__ = [
    "_calculate_image_weights_noise_variance",
    "_compute_quality_weights",
    "_normalize_images_linear_fit",
    "_normalize_images_sky_mean",
    "_poststack_rgb_equalization",
    "_reject_outliers_kappa_sigma",
    "_reject_outliers_winsorized_sigma_clip",
    "align_images_in_group",
    "equalize_rgb_medians_inplace",
    "stack_aligned_images",
    "stack_kappa_sigma_clip",
    "stack_linear_fit_clip",
    "stack_winsorized_sigma_clip",
]
