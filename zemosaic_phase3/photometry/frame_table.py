"""The table of a stack: transform, scale, offset and weight of every frame that is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.methods import STAR_WEIGHTS
from zemosaic_phase3.photometry.normalize import match_levels
from zemosaic_phase3.photometry.star_gain import pixel_areas
from zemosaic_phase3.photometry.weights import MIN_FLUX_STARS, frame_weights
from zemosaic_phase3.records import FrameStats, FrameTable
from zemosaic_phase3.spec import StackSpec


def why_unmeasured(stats: FrameStats, method: str) -> str:
    """Say what a frame lacks for a weight."""
    fewest = MIN_FLUX_STARS if method == "snr" else 1
    if method in STAR_WEIGHTS - {"point_source"} and np.isfinite(stats.median).all() and stats.n_stars < fewest:
        return f"{stats.n_stars} stars found, too few for weight {method}; choose weight noise_variance to keep it"
    return "its levels or its noise could not be measured (blank, constant or without valid pixels)"


def _why_left_out(spec: StackSpec, stats: FrameStats, reference: FrameStats) -> str:
    if spec.normalize in ("multiplicative", "multiplicative_scaling"):
        whose = {"its": stats.median, "the reference's": reference.median}
        for who, median in whose.items():
            if np.isfinite(median).all() and (median <= 0.0).any():
                levels = ", ".join(f"{m:g}" for m in median)
                return (
                    f"{who} median ({levels} ADU) is not positive, so {spec.normalize} cannot scale it; "
                    "choose normalisation additive or additive_scaling"
                )
    return why_unmeasured(stats, spec.frame_weight)


def _notes(spec: StackSpec, stats: Sequence[FrameStats], used: Sequence[int]) -> list[str]:
    """Say what was asked for and could not have its effect."""
    if spec.combine != "mean" and spec.weight != "none":
        return [f"weights ({spec.weight}) do not apply to combine = {spec.combine}; they were not used"]
    counts = {stats[i].n_stars for i in used}
    if spec.frame_weight == "stars" and len(used) > 1 and len(counts) == 1:
        return [f"weight stars has no effect: {counts.pop()} stars were kept in every frame; snr tells them apart"]
    return []


def build_frame_table(
    names: Sequence[str],
    transforms: Sequence[np.ndarray],
    stats: Sequence[FrameStats],
    spec: StackSpec,
    reference: int = 0,
    distortion: Sequence[np.ndarray | None] = (),
) -> tuple[FrameTable, list[int], list[tuple[str, str]]]:
    """Compute scale, offset and weight of every frame.

    Parameters
    ----------
    names, transforms, stats : sequences of length N
        Name, (3, 3) map from reference to frame pixels, and levels of each frame.
    spec : StackSpec
    reference : int
        Frame the others are normalised to.
    distortion : sequence of ndarray (rows, columns, 2) float32, or None
        Displacements of each frame on top of its transform; empty: no frame has any.

    Returns
    -------
    table : FrameTable
        Rows of the frames that can be stacked.
    used : list of int
        Their positions among the frames given.
    dropped : list of (name, reason)
        Frames that could not be measured.

    Raises
    ------
    NoFramesError
        None could be measured.
    """
    match = match_levels(spec, stats, transforms, reference, distortion)
    scale, offset = match.scale, match.offset
    origin = np.zeros((1, 2))
    from_grid = np.linalg.inv(np.asarray(transforms[reference], np.float64))
    area = np.array([pixel_areas(transform @ from_grid, origin)[0] for transform in transforms])
    weight = frame_weights(spec.frame_weight, stats, scale, area)
    good = np.isfinite(scale).all(axis=1) & np.isfinite(offset).all(axis=1) & np.isfinite(weight).all(axis=1)
    used = np.flatnonzero(good).tolist()
    dropped = [
        (names[i], match.reasons.get(i) or _why_left_out(spec, stats[i], stats[reference]))
        for i in np.flatnonzero(~good).tolist()
    ]
    if not used:
        first = "; ".join(f"{name}: {reason}" for name, reason in dropped[:3])
        raise NoFramesError(f"none of {len(names)} frames could be measured: {first}")
    table = FrameTable(
        names=[names[i] for i in used],
        transform=np.stack([transforms[i] for i in used]),
        scale=scale[used],
        offset=offset[used],
        weight=weight[used],
        weight_method=spec.frame_weight,
        notes=[*match.notes, *_notes(spec, stats, used)],
        normalize_method=match.method,
    )
    return table, used, dropped
