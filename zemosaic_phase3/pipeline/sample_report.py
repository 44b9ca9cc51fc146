"""What a tile says of its samples: what was put right in them, and where no frame measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.pipeline.samples import mend_notes

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from zemosaic_phase3.engine.job import StackResult
    from zemosaic_phase3.pipeline.group import Group
    from zemosaic_phase3.records import TileReport


def sample_notes(group: Group, result: StackResult) -> list[str]:
    """Return notes on the samples of the frames that were stacked."""
    usable = [i for i in group.usable if group.rows[i].scan is not None]
    source = result.job.sources[0]
    pixels = source.height * source.width
    return mend_notes([group.rows[i].name for i in usable], [group.scan(i).mend for i in usable], pixels)


COLOURS: Final = ("red", "green", "blue")


def hole_notes(result: StackResult) -> list[str]:
    """Return a note on pixels of a drizzle that nothing fell on, though drops lie all around; [] if there are none.

    Around: within two pixels of the frames, in any colour; the border of what frames cover does not count.
    """
    spec = result.job.spec
    if not spec.drizzle:
        return []
    from scipy.ndimage import binary_dilation, binary_erosion

    coverage = result.coverage if result.coverage.ndim == 3 else result.coverage[:, :, None]
    reach = math.ceil(2.0 * spec.drizzle)
    near = np.ones((3, 3), bool)
    inside = binary_dilation(coverage.any(axis=2), near, reach)
    inside = binary_erosion(inside, near, 2 * reach, border_value=1)
    channels = [coverage[:, :, c][inside] for c in range(coverage.shape[2])]
    empty = [100.0 * float(np.mean(channel == 0)) if channel.size else 0.0 for channel in channels]
    if max(empty) == 0.0:
        return []
    parts = [f"{p:.2g} %" + (f" in {c}" if len(empty) == 3 else "") for p, c in zip(empty, COLOURS, strict=False)]
    return [
        f"drizzle: nothing fell on some pixels, which are empty (NaN, weight 0): {', '.join(parts)} of those covered; "
        "a larger --pixfrac, a smaller --drizzle scale or more frames leave fewer"
    ]


def note_saturation(header: Header, result: StackResult, report: TileReport) -> Header:
    """Write into header and report at which level of the result samples are clipped, and how many pixels reach it.

    ``SATURATE`` of the reference is of its own samples, and goes.
    """
    header.remove("SATURATE", ignore_missing=True, remove_all=True)
    level = result.job.saturation
    if not math.isfinite(level):
        return header
    gains = result.equalization
    level *= min(gains.gain_r, gains.gain_g, gains.gain_b) if gains.applied else 1.0
    report.saturation_level = level
    with np.errstate(invalid="ignore"):
        reached = result.image >= np.float32(level)
    report.saturated_pixels = int(np.count_nonzero(reached if reached.ndim == 2 else reached.any(axis=2)))
    header["SATURATE"] = (float(f"{level:.7g}"), "level at which samples are clipped, adu")
    return header
