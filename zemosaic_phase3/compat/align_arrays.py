"""Alignment of arrays, as ZeMosaic calls it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from zemosaic_phase3.detection.star_finder import detect_stars
from zemosaic_phase3.engine.job import Job
from zemosaic_phase3.engine.slab import fill_samples
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.photometry.frame_table import build_frame_table
from zemosaic_phase3.photometry.levels import no_levels
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.spec import RegisterSpec, StackSpec

logger = logging.getLogger("ZeMosaicWorker")


def align_images_in_group(
    image_data_list: Sequence[Any],
    reference_image_index: int = 0,
    detection_sigma: float = 3.0,
    min_area: int = 5,
    propagate_mask: bool = False,
    progress_callback: Callback | None = None,
) -> tuple[list[np.ndarray | None], list[int]]:
    """Register frames on one of them by their stars and resample them onto its grid.

    Parameters
    ----------
    image_data_list : sequence of (H, W) or (H, W, 3) arrays or None, ADU
    reference_image_index : int
    detection_sigma, min_area : float, int
        Detection threshold in units of the background rms; connected pixels above it.
    propagate_mask : bool
        Accepted; invalid pixels (NaN) always follow their frame.

    Returns
    -------
    aligned : list
        Of the same length: float32 copies, NaN outside the footprint, or None.
    failed : list of int
        Positions that could not be registered, None entries included.

    Raises
    ------
    SpecError
        The reference is missing.
    """
    if not 0 <= reference_image_index < len(image_data_list) or image_data_list[reference_image_index] is None:
        raise SpecError(f"reference image {reference_image_index} of {len(image_data_list)} is missing")
    spec = RegisterSpec(detection_sigma=detection_sigma, min_area=min_area)
    reference = open_source(np.asarray(image_data_list[reference_image_index]))
    known = detect_stars(_luminance(reference), spec)
    aligned: list[np.ndarray | None] = []
    for i, data in enumerate(image_data_list):
        if i == reference_image_index:
            aligned.append(np.array(data, np.float32))
            continue
        source = None if data is None else open_source(np.asarray(data))
        if source is None or source.shape != reference.shape:
            aligned.append(None)
            continue
        verdict = register_stars(known, detect_stars(_luminance(source), spec), reference.shape[:2], spec)
        if not verdict.ok:
            logger.warning("align_images_in_group: frame %d not registered: %s", i, verdict.reason)
        aligned.append(_resampled(source, verdict.transform) if verdict.ok else None)
        notify(progress_callback, "align", i + 1, len(image_data_list))
    return aligned, [i for i, a in enumerate(aligned) if a is None]


def _luminance(source: FrameSource) -> np.ndarray:
    pixels = source.read_rows(0, source.height).astype(np.float32, copy=False)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.mean(axis=2, dtype=np.float32))


def _resampled(source: FrameSource, matrix: np.ndarray) -> np.ndarray:
    """One frame on the reference grid."""
    spec = StackSpec(normalize="none", weight="none")
    levels = no_levels(source.channels)  # not looked at: nothing is normalised
    table, _, _ = build_frame_table([source.name], [matrix], [levels], spec)
    job = Job([source], table, spec, source.shape)
    out = np.empty(source.shape, np.float32)
    fill_samples(job, 0, slice(0, source.height), out.reshape(-1), np.empty(0, np.float32))
    return out
