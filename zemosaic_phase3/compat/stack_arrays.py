"""The stacking functions that existing programs call by name, on the engine of ``engine.cpu``.

Each takes frames in memory and keeps the parameters and returns it always had; the engine's own functions are here
under their names too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zemosaic_phase3.combine.kernel_arguments import kernel_arguments
from zemosaic_phase3.compat.descriptors import as_frames, describe
from zemosaic_phase3.compat.finish import _poststack_rgb_equalization
from zemosaic_phase3.compat.parallel_plan import resources_of
from zemosaic_phase3.compat.parameters import wsc_impl_choice
from zemosaic_phase3.engine.cpu import stack
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.photometry.frame_table import why_unmeasured
from zemosaic_phase3.photometry.levels import measure_levels
from zemosaic_phase3.photometry.measure import measure_frame
from zemosaic_phase3.photometry.normalize import normalisation
from zemosaic_phase3.photometry.weights import frame_weights, noise_variance_weights
from zemosaic_phase3.progress import Callback
from zemosaic_phase3.spec import StackSpec

logger = logging.getLogger("ZeMosaicWorker")


def _same_shape(frames: Any, what: str) -> tuple[list[np.ndarray], list[int]]:
    """Check frames given in memory; those of another shape than the first are left out with a warning."""
    if frames is None or len(frames) == 0:
        raise NoFramesError(f"{what}: no frames to stack")
    first = np.asarray(frames[0])
    if first.ndim not in (2, 3) or (first.ndim == 3 and first.shape[2] not in (1, 3)):
        raise SpecError(f"{what}: a frame of shape {first.shape} is neither (H, W) nor (H, W, 3)")
    kept = [i for i, f in enumerate(frames) if np.shape(f) == first.shape]
    for i in sorted(set(range(len(frames))) - set(kept)):
        logger.warning("%s: frame %d has shape %s, not %s; left out", what, i, np.shape(frames[i]), first.shape)
    return [np.asarray(frames[i]) for i in kept], kept


def _frame_weights(
    weights: Any, n_frames: int, kept: list[int], shape: tuple[int, ...]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Split weights given by a caller into frame weights ``(N, C)`` and sample weights of full shape."""
    if weights is None:
        return None, None
    given = np.asarray(weights, np.float64)
    if given.ndim == 0 or given.shape[0] != n_frames:
        raise SpecError(f"weights have length {given.shape[0] if given.ndim else 0}, there are {n_frames} frames")
    if not np.isfinite(given).all() or (given < 0).any():
        raise SpecError("weights must be finite and not negative")
    given = given[kept]
    channels = shape[2] if len(shape) == 3 else 1
    if given.size == len(kept) or (
        given.ndim >= 2 and given.size == len(kept) * given.shape[-1] == len(kept) * channels
    ):
        per_frame = given.reshape(len(kept), -1)
        return np.ascontiguousarray(np.broadcast_to(per_frame, (len(kept), channels))), None
    try:
        full = np.broadcast_to(given if given.ndim == len(shape) + 1 else given[..., None], (len(kept), *shape))
    except ValueError as exc:
        raise SpecError(
            f"weights of shape {given.shape} fit neither {len(kept)} frames nor frames of shape {shape}"
        ) from exc
    return None, full


def _stack_in_memory(
    frames: Any,
    spec: StackSpec,
    what: str,
    *,
    weights: Any = None,
    zconfig: object = None,
    stack_metadata: dict[str, Any] | None = None,
    parallel_plan: object = None,
    progress_callback: Callback | None = None,
    clipped_kappa: bool = False,
) -> tuple[np.ndarray, float]:
    """Stack arrays, fill ``stack_metadata`` in place, return image and percent rejected."""
    arrays, kept = _same_shape(frames, what)
    per_frame, per_sample = _frame_weights(weights, len(frames), kept, arrays[0].shape)
    job = replace(
        make_job(as_frames(arrays), spec if per_frame is None and per_sample is None else replace(spec, weight="none")),
        sample_weight=per_sample,
        clipped_kappa=clipped_kappa,
    )
    for name, reason in job.dropped:
        logger.warning("%s: left out: %s: %s", what, name, reason)
    if per_frame is not None:
        job = replace(job, table=replace(job.table, weight=per_frame))
    result = stack(job, resources_of(parallel_plan), progress_callback)
    metadata = describe(result)
    if stack_metadata is not None:
        stack_metadata.update({k: v for k, v in metadata.items() if k not in stack_metadata or k != "rgb_equalization"})
    _poststack_rgb_equalization(result.image, zconfig, stack_metadata)
    samples = float(result.coverage.sum())
    rejected = float(result.rejected_low.sum() + result.rejected_high.sum())
    return result.image, 100.0 * rejected / samples if samples > 0 else 0.0


def stack_kappa_sigma_clip(
    frames: Any,
    weight_method: str = "none",
    zconfig: object = None,
    stack_metadata: dict[str, Any] | None = None,
    parallel_plan: object = None,
    *,
    sigma_low: float = 3.0,
    sigma_high: float = 3.0,
    weights: Any = None,
    progress_callback: Callback | None = None,
) -> tuple[np.ndarray, float]:
    """Kappa-sigma rejection in one pass, weighted mean, RGB equalisation. No normalisation.

    Parameters
    ----------
    frames : sequence of (H, W) or (H, W, 3) arrays, or a 3-D or 4-D array, ADU
    weight_method : str
        A :data:`methods.WeightName`; ignored when ``weights`` are given.
    zconfig : object
        ``poststack_equalize_rgb`` is honoured (default True).
    stack_metadata : dict or None
        Filled in place.
    parallel_plan : object
        ``cpu_workers`` and ``rows_per_chunk`` are hints.
    sigma_low, sigma_high : float
        Limits, units of the population standard deviation about the median.
    weights : array (N,), (N, 1, ..), (N, 1, 1, C) or of full shape, or None

    Returns
    -------
    image : ndarray float32, ADU
    rejected : float
        Percent of the valid samples.

    Raises
    ------
    ValueError
        No frames, frames that are not images, weights of another length, limits out of range.
    """
    spec = StackSpec(
        normalize="none", weight=weight_method, reject="kappa_sigma", kappa_low=sigma_low, kappa_high=sigma_high  # type: ignore[arg-type]
    )  # fmt: skip
    return _stack_in_memory(
        frames, spec, "stack_kappa_sigma_clip", weights=weights, zconfig=zconfig, stack_metadata=stack_metadata,
        parallel_plan=parallel_plan, progress_callback=progress_callback,
    )  # fmt: skip


def stack_linear_fit_clip(
    frames: Any,
    weight_method: str = "none",
    zconfig: object = None,
    stack_metadata: dict[str, Any] | None = None,
    parallel_plan: object = None,
    *,
    sigma: float = 3.0,
    weights: Any = None,
    progress_callback: Callback | None = None,
) -> tuple[np.ndarray, float]:
    """Linear-fit clipping, weighted mean, RGB equalisation. No normalisation.

    ``sigma`` is the limit on both sides of the line of value against rank. For the other parameters, the returns and
    the errors see :func:`stack_kappa_sigma_clip`.
    """
    spec = StackSpec(
        normalize="none", weight=weight_method, reject="linear_fit_clip", kappa_low=sigma, kappa_high=sigma  # type: ignore[arg-type]
    )  # fmt: skip
    return _stack_in_memory(
        frames, spec, "stack_linear_fit_clip", weights=weights, zconfig=zconfig, stack_metadata=stack_metadata,
        parallel_plan=parallel_plan, progress_callback=progress_callback,
    )  # fmt: skip


def stack_winsorized_sigma_clip(
    frames: Any,
    weights: Any = None,
    weight_method: str = "none",
    zconfig: object = None,
    stack_metadata: dict[str, Any] | None = None,
    parallel_plan: object = None,
    *,
    kappa: float = 3.0,
    winsor_limits: tuple[float, float] | None = (0.05, 0.05),
    apply_rewinsor: bool = True,
    winsor_max_frames_per_pass: int = 0,
    winsor_max_workers: int = 1,
    winsor_auto_fallback_on_memory_error: bool = True,
    winsor_min_frames_per_pass: int = 4,
    winsor_memmap_fallback: str = "auto",
    winsor_split_strategy: str = "sequential",
    progress_callback: Callback | None = None,
) -> tuple[np.ndarray, float]:
    """Winsorized sigma clipping, weighted mean, RGB equalisation. No normalisation.

    ``kappa`` is the limit on both sides. ``winsor_limits`` None means (0.05, 0.05). ``zconfig.wsc_impl`` or the
    environment choose the implementation, ZeMosaic's own by default. The ``winsor_*`` sizes, workers and strategies are
    accepted as hints of old configurations; memory is bounded anyway and none of them changes a value. For the other
    parameters, the returns and the errors see :func:`stack_kappa_sigma_clip`.
    """
    spec = StackSpec(
        normalize="none",
        weight=weight_method,  # type: ignore[arg-type]
        reject="winsorized_sigma_clip",
        wsc_impl=wsc_impl_choice(zconfig),  # type: ignore[arg-type]
        kappa_low=kappa,
        kappa_high=kappa,
        winsor_limits=winsor_limits,  # type: ignore[arg-type]
        apply_rewinsor=apply_rewinsor,
    )
    return _stack_in_memory(
        frames, spec, "stack_winsorized_sigma_clip", weights=weights, zconfig=zconfig, stack_metadata=stack_metadata,
        parallel_plan=parallel_plan, progress_callback=progress_callback,
    )  # fmt: skip


def stack_aligned_images(
    aligned_image_data_list: Sequence[Any],
    normalize_method: str = "none",
    weighting_method: str = "none",
    rejection_algorithm: str = "kappa_sigma",
    final_combine_method: str = "mean",
    sigma_clip_low: float = 3.0,
    sigma_clip_high: float = 3.0,
    winsor_limits: tuple[float, float] | None = (0.05, 0.05),
    minimum_signal_adu_target: float = 0.0,
    apply_radial_weight: bool = False,
    radial_feather_fraction: float = 0.8,
    radial_shape_power: float = 2.0,
    winsor_max_workers: int = 1,
    progress_callback: Callback | None = None,
    zconfig: object = None,
    stack_metadata: dict[str, Any] | None = None,
    parallel_plan: object = None,
) -> np.ndarray | None:
    """Normalise, weight, reject and combine aligned frames; None entries are skipped, None is returned if none is left.

    ``minimum_signal_adu_target > 0`` lifts the image so that its minimum is that, ADU. ``kappa_sigma`` takes its limits
    from sigma-clipped statistics here, unlike :func:`stack_kappa_sigma_clip`.
    """
    frames = [f for f in aligned_image_data_list or [] if f is not None]
    if not frames:
        return None
    spec = StackSpec(
        normalize=normalize_method,  # type: ignore[arg-type]
        weight=weighting_method,  # type: ignore[arg-type]
        reject=rejection_algorithm,  # type: ignore[arg-type]
        wsc_impl=wsc_impl_choice(zconfig),  # type: ignore[arg-type]
        kappa_low=sigma_clip_low,
        kappa_high=sigma_clip_high,
        winsor_limits=winsor_limits,  # type: ignore[arg-type]
        combine=final_combine_method,  # type: ignore[arg-type]
        radial_weight=apply_radial_weight,
        radial_feather=radial_feather_fraction,
        radial_power=radial_shape_power,
    )
    image, _ = _stack_in_memory(
        frames, spec, "stack_aligned_images", zconfig=zconfig, stack_metadata=stack_metadata,
        parallel_plan=parallel_plan, progress_callback=progress_callback, clipped_kappa=spec.reject == "kappa_sigma",
    )  # fmt: skip
    if minimum_signal_adu_target > 0 and np.isfinite(image).any():
        image += np.float32(minimum_signal_adu_target - float(np.nanmin(image)))
    return image


def _normalized_copies(images: Sequence[Any], reference_index: int, method: str) -> list[np.ndarray | None]:
    present = [i for i, image in enumerate(images) if image is not None]
    views = {i: np.asarray(images[i], np.float32).reshape(*np.shape(images[i])[:2], -1) for i in present}
    spec = StackSpec(normalize=method, weight="none")  # type: ignore[arg-type]
    stats = [measure_levels(views[i], max_samples=None) for i in present]
    scale, offset = normalisation(spec, stats, present.index(reference_index))
    copies: list[np.ndarray | None] = [None] * len(images)
    for k, i in enumerate(present):
        copies[i] = (views[i] * scale[k] + offset[k]).astype(np.float32).reshape(np.shape(images[i]))
    return copies


def _normalize_images_linear_fit(
    image_list: Sequence[Any],
    reference_index: int = 0,
    low_percentile: float = 25.0,
    high_percentile: float = 90.0,
    progress_callback: Callback | None = None,
    use_gpu: bool = False,
) -> list[np.ndarray | None]:
    """Match percentiles 25 and 90 of every channel to the reference's; copies, inputs unchanged.

    Raises
    ------
    SpecError
        Other percentiles than 25 and 90, which are the definition.
    """
    if (low_percentile, high_percentile) != (25.0, 90.0):
        raise SpecError(f"linear_fit matches percentiles 25 and 90, not {low_percentile:g} and {high_percentile:g}")
    return _normalized_copies(image_list, reference_index, "linear_fit")


def _normalize_images_sky_mean(
    image_list: Sequence[Any],
    reference_index: int = 0,
    sky_percentile: float = 25.0,
    progress_callback: Callback | None = None,
    use_gpu: bool = False,
) -> list[np.ndarray | None]:
    """Shift every frame so that the 25th percentile of its luminance is the reference's; copies, inputs unchanged.

    Raises
    ------
    SpecError
        Another percentile than 25, which is the definition.
    """
    if sky_percentile != 25.0:
        raise SpecError(f"sky_mean matches percentile 25, not {sky_percentile:g}")
    return _normalized_copies(image_list, reference_index, "sky_mean")


def _calculate_image_weights_noise_variance(image_list: Sequence[Any]) -> np.ndarray:
    """Return ``min(v) / v`` of every frame, ``(N,)`` or ``(N, 3) float32``; v = sigma-clipped variance, ADU^2."""
    stats = [
        measure_levels(np.asarray(f, np.float32).reshape(*np.shape(f)[:2], -1), max_samples=None) for f in image_list
    ]
    weights = noise_variance_weights(np.stack([s.variance for s in stats])).astype(np.float32)
    return weights[:, 0] if np.ndim(image_list[0]) == 2 else weights


def _compute_quality_weights(
    image_list: Sequence[Any], requested_method: str, progress_callback: Callback | None = None
) -> tuple[np.ndarray | None, str, dict[str, float] | None]:
    """Return weights that broadcast over the frames ``(N, 1, 1[, C]) float32``, the method, and their statistics.

    A frame that cannot be measured weighs 0, which leaves it out of a mean, and is warned of; it is not in the
    statistics.

    Raises
    ------
    SpecError
        The method is unknown.
    NoFramesError
        No frame could be measured.
    """
    spec = StackSpec(normalize="none", weight=requested_method)  # type: ignore[arg-type]
    if spec.weight == "none":
        return None, "none", None
    if len(image_list) == 0:
        raise NoFramesError("no frames to weigh: the list of images is empty")
    frames = [open_source(np.asarray(image, np.float32)) for image in image_list]
    stats = [measure_frame(frame, with_its_stars=spec.needs_stars, max_samples=None) for frame in frames]
    weights = frame_weights(spec.weight, stats, np.ones((len(frames), frames[0].channels))).astype(np.float32)
    measured = np.isfinite(weights.sum(axis=1))
    reasons = [f"frame {i}: {why_unmeasured(stats[i], spec.weight)}" for i in np.flatnonzero(~measured)]
    for reason in reasons:
        logger.warning("_compute_quality_weights: weight 0: %s", reason)
    if not measured.any():
        raise NoFramesError(f"none of {len(frames)} frames could be measured: {'; '.join(reasons[:3])}")
    found = {"min": float(weights[measured].min()), "max": float(weights[measured].max()), "frames": len(frames)}
    shape = (len(frames), 1, 1, *np.shape(image_list[0])[2:])
    return np.where(measured[:, None], weights, np.float32(0.0)).reshape(shape), spec.weight, found


def _kept_mask(stack: np.ndarray, spec: StackSpec, *, clipped_kappa: bool = False) -> np.ndarray:
    """Boolean mask of the samples that a rejection keeps, of the stack's shape."""
    from zemosaic_phase3.combine.block import combine_block
    from zemosaic_phase3.runtime.lanes import LANES

    cube = np.ascontiguousarray(stack.reshape(stack.shape[0], -1), dtype=np.float32)
    n_frames, size = cube.shape
    low, high = (np.empty(size, np.float32) for _ in range(2))
    equal = np.ones((n_frames, LANES))
    arguments = kernel_arguments(spec, equal, sample_weights=False, clipped_kappa=clipped_kappa)
    maps = [np.empty(size, kind) for kind in (np.float32, np.int32, np.float32, np.int32, np.int32)]
    combine_block(
        cube, 0, size, arguments, equal, np.empty((0, 0), np.float32), 1, maps,
        np.zeros((n_frames, 3), np.int64), kept=(low, high),
    )  # fmt: skip
    return ((cube >= low) & (cube <= high)).reshape(stack.shape)


def _reject_outliers_kappa_sigma(
    stacked_array_NHDWC: np.ndarray, sigma_low: float, sigma_high: float, progress_callback: Callback | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return a float32 copy with rejected samples NaN, and the boolean mask of the samples kept.

    The limits are those of :func:`stack_aligned_images`, from sigma-clipped statistics.
    """
    stack = np.asarray(stacked_array_NHDWC, np.float32)
    spec = StackSpec(reject="kappa_sigma", kappa_low=sigma_low, kappa_high=sigma_high)
    keep = _kept_mask(stack, spec, clipped_kappa=True)
    return np.where(keep, stack, np.float32(np.nan)), keep


def _reject_outliers_winsorized_sigma_clip(
    stacked_array_NHDWC: np.ndarray,
    winsor_limits_tuple: tuple[float, float] | None,
    sigma_low: float,
    sigma_high: float,
    progress_callback: Callback | None = None,
    max_workers: int = 1,
    apply_rewinsor: bool = True,
    weights_chunk: np.ndarray | None = None,
    streaming_state: object = None,
) -> tuple[np.ndarray, None]:
    """Return a float32 copy, rejected samples NaN or with ``apply_rewinsor`` their clipped values; and None."""
    stack = np.asarray(stacked_array_NHDWC, np.float32)
    spec = StackSpec(
        reject="winsorized_sigma_clip",
        wsc_impl="legacy_quantile",
        kappa_low=sigma_low,
        kappa_high=sigma_high,
        winsor_limits=winsor_limits_tuple,  # type: ignore[arg-type]
        apply_rewinsor=False,  # the mask is the same
    )
    keep = _kept_mask(stack, spec)
    replaced: Any = np.float32(np.nan)
    if apply_rewinsor:
        low, high = spec.winsor_limits
        valid = np.isfinite(stack)
        samples = np.where(valid, stack.astype(np.float64), np.nan)
        samples[:, ~valid.any(axis=0)] = 0.0  # nothing to take a quantile of, and nothing kept either
        bounds = np.nanquantile(samples, (low, 1.0 - high), axis=0)
        replaced = np.clip(stack, bounds[0], bounds[1]).astype(np.float32)
    return np.where(keep, stack, replaced), None
