"""Finishing of tiles under the names that ZeMosaic calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from zemosaic_phase3.finish.alpha import altaz_alpha
from zemosaic_phase3.finish.equalize import equalize_if
from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics
from zemosaic_phase3.records import Equalization
from zemosaic_phase3.settings import as_bool, setting
from zemosaic_phase3.spec import CropSpec


def equalization_info(done: Equalization) -> dict[str, Any]:
    """Return what was done as existing runs read it: ``enabled``, ``applied``, three gains and ``target_median``."""
    return {"enabled": done.enabled, "applied": done.applied, **asdict(done)}


def _poststack_rgb_equalization(
    stacked: np.ndarray, zconfig: object = None, stack_metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Inherited form: switched by ``zconfig.poststack_equalize_rgb`` (default True), answers in the metadata too."""
    enabled = as_bool(setting(zconfig, "poststack_equalize_rgb"), True)
    info = equalization_info(equalize_if(enabled, stacked))
    if stack_metadata is not None:
        stack_metadata["rgb_equalization"] = info
    return info


def crop_spec_from_config(cfg: Mapping[str, Any] | None) -> CropSpec:
    """Read the ``quality_crop_*`` and ``altaz_*`` keys of an existing configuration; absent or None = default (off)."""
    given = cfg or {}
    default = CropSpec()

    def value(key: str, fallback: Any) -> Any:
        found = given.get(key)
        return fallback if found is None else type(fallback)(found)

    return CropSpec(
        quality_crop=as_bool(given.get("quality_crop_enabled"), default.quality_crop),
        band_px=value("quality_crop_band_px", default.band_px),
        k_sigma=value("quality_crop_k_sigma", default.k_sigma),
        margin_px=value("quality_crop_margin_px", default.margin_px),
        min_run=value("quality_crop_min_run", default.min_run),
        altaz_cleanup=as_bool(given.get("altaz_cleanup_enabled"), default.altaz_cleanup),
        altaz_margin_percent=value("altaz_margin_percent", default.altaz_margin_percent),
        altaz_decay=value("altaz_decay", default.altaz_decay),
        altaz_nanize=as_bool(given.get("altaz_nanize"), default.altaz_nanize),
    )


def _apply_lecropper_pipeline(arr: np.ndarray, cfg: Mapping[str, Any] | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Inherited form: alt-az cleanup only, judged by the pixels.

    It never crops, whatever ``quality_crop_enabled`` says: it cannot tell its caller by how much the WCS has to follow.
    :func:`apply_crop_pipeline` can.
    """
    spec = crop_spec_from_config(cfg)
    if not spec.altaz_cleanup:
        return arr, None
    return altaz_alpha(
        arr, margin_percent=spec.altaz_margin_percent, decay=spec.altaz_decay, nanize=spec.altaz_nanize
    )  # fmt: skip


def _evaluate_quality_gate_metrics(
    tile_id: int,
    data: np.ndarray,
    *,
    enabled: bool,
    threshold: float = 0.48,
    edge_band: int = 64,
    k_sigma: float = 2.5,
    erode_px: int = 3,
    pcb: Callable[..., Any] | None = None,
    alpha_mask: np.ndarray | None = None,
    alpha_soft_threshold: float = 0.0,
) -> dict[str, Any] | None:
    """Inherited form of :func:`evaluate_quality_gate_metrics`: ``score``, ``accepted`` and the rest under ``metrics``.

    None where the gate is not enabled. Pixels with an alpha (0 to 1, or 0 to 255) below ``alpha_soft_threshold`` do not
    count. ``tile_id`` and ``pcb`` are accepted; the caller tells of the verdict.
    """
    if not enabled:
        return None
    alpha = None
    if alpha_mask is not None:
        full = 255.0 if alpha_mask.dtype.kind in "iu" else 1.0
        alpha = (alpha_mask > 0) & (alpha_mask >= alpha_soft_threshold * full)
    found = evaluate_quality_gate_metrics(
        data, edge_band_px=edge_band, k_sigma=k_sigma, erode_px=erode_px, threshold=threshold, alpha=alpha
    )
    return {"score": found["score"], "accepted": found["accepted"], "threshold": found["threshold"], "metrics": found}
