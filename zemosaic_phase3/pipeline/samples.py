"""What is looked for in the numbers of a frame before they are measured, and what is said of it.

Filler, wrapped and clipped samples, frames that are saturated or whose numbers have more digits than samples keep.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.calibrate.calibrated import CalibratedSource
from zemosaic_phase3.detection.filler import find_filler, has_long_runs
from zemosaic_phase3.detection.floor import find_floors
from zemosaic_phase3.detection.look import Look, look_at
from zemosaic_phase3.detection.wrapped import find_wrapped
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.mended_frame import Mend, MendedSource, areas_of
from zemosaic_phase3.io.wrapped_frame import WrappedSource

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import FrameSource
    from zemosaic_phase3.records import FrameStats

MOST_CLIPPED: Final = 0.25  # of a frame's samples: it shows no sky to be matched by
ROUNDED: Final = 0.5  # of the noise: a wider step of float32 at the level of a frame loses what it shows


def look_over(pixels: np.ndarray, cfa: str | None) -> Look:
    """Look at all pixels of a frame ``(H, W)`` or ``(H, W, C) float32``."""
    return look_at(pixels.reshape(*pixels.shape[:2], -1), is_mosaic=cfa is not None)


def find_mend(source: FrameSource, pixels: np.ndarray, look: Look) -> Mend:
    """Find what has to be put right in all pixels of a frame, as they are stored, where a look at them says so."""
    wrapped = find_wrapped(pixels) if source.codec.is_signed16 else None
    filler = find_filler(pixels, source.cfa) if look.may_have_filler else None
    floors = None
    if filler is not None:
        floors = find_floors(Mend(areas_of(filler[0])).apply(pixels), source.cfa)
    elif look.may_have_floor:
        floors = find_floors(pixels, source.cfa)
    nothing = Mend()
    return Mend(
        nothing.invalid if filler is None else areas_of(filler[0]),
        nothing.wrapped if wrapped is None else areas_of(wrapped if filler is None else wrapped & ~filler[0]),
        math.nan if filler is None else filler[1],
        () if floors is None else tuple(map(tuple, floors.tolist())),
    )


def as_stored(source: FrameSource) -> FrameSource:
    """Return what a frame is before it is calibrated: one number is many once a dark was subtracted from it."""
    inner = source
    while isinstance(inner, WrappedSource):
        if isinstance(inner, CalibratedSource):
            return inner.inner
        inner = inner.inner
    return source


def mended(source: FrameSource, mend: Mend) -> FrameSource:
    """Return a frame with what was found in it, as it is stored, put right before it is calibrated."""
    stored = as_stored(source)
    if source is stored or not isinstance(source, WrappedSource):
        return MendedSource(source, mend)
    outer = copy.copy(source)
    outer.inner = MendedSource(stored, mend) if source.inner is stored else mended(source.inner, mend)
    return outer


def may_have_filler(source: FrameSource) -> bool:
    """Return whether any of a few rows of a frame, which is not read whole, begins or ends with a run of one number."""
    places = {0, source.height // 4, source.height // 2, 3 * source.height // 4, source.height - 1}
    return any(has_long_runs(source.read_rows(y, y + 1)) for y in sorted(places))


def clip_levels(look: Look, saturate: object = None, cfa: str | None = None) -> np.ndarray:
    """Return the level at which the samples of each channel are clipped, ``(C,) float64`` ADU; infinity where none is.

    That is the highest number of the frame, where several pixels that lie together have it, or what the header gives as
    ``SATURATE``, where the frame reaches it.
    """
    try:
        stated = float(saturate)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        stated = math.nan
    levels = [
        stated if 0.0 < stated <= highest else highest if together else math.inf
        for highest, together in zip(look.highest.tolist(), look.lie_together.tolist(), strict=True)
    ]
    return np.array(levels * 3 if cfa is not None else levels)


def refuse_clipped(name: str, pixels: np.ndarray) -> None:
    """Raise FrameError for a frame of which a quarter or more has the highest number there is in it.

    Raises
    ------
    FrameError
        With the number and the share.
    """
    step = max(1, int((pixels.size / 65_536) ** 0.5)) | 1
    seen = pixels[::step, ::step]
    seen = seen[np.isfinite(seen)]
    if seen.size == 0 or np.count_nonzero(seen == seen.max()) < MOST_CLIPPED * seen.size:
        return
    highest = float(np.nanmax(pixels))
    share = float(np.mean(pixels[np.isfinite(pixels)] == highest))
    if share >= MOST_CLIPPED and seen.min() < highest:
        raise FrameError(
            name,
            f"saturated: {100.0 * share:.0f} % of its samples have its highest number, {highest:g}, so that it shows "
            "too little sky to be matched by; leave it out, or expose shorter",
        )


def refuse_rounded(source: FrameSource, stats: FrameStats) -> None:
    """Raise FrameError for a frame whose numbers are so large that float32, which samples are, has no room for them."""
    if source.codec.loses_digits:
        for level, noise in zip(stats.median.tolist(), stats.mad_sigma.tolist(), strict=True):
            refuse_rounded_level(source, level, noise)


def refuse_rounded_level(source: FrameSource, level: float, noise: float) -> None:
    """Raise FrameError where a level (ADU) leaves float32 steps that are wide beside the noise (ADU).

    Raises
    ------
    FrameError
        With the step.
    """
    if not source.codec.loses_digits or not math.isfinite(level):
        return
    step = float(np.spacing(np.float32(abs(level))))
    if step >= 1.0 and step > ROUNDED * noise:
        raise FrameError(
            source.name,
            f"its numbers ({source.codec.stored.newbyteorder('=')}) lie about {level:g}, where samples, which are "
            f"float32, are {step:g} ADU apart, wide beside its noise; subtract a constant from all and save them again",
        )


def mend_notes(names: Iterable[str], mends: Iterable[Mend], pixels: int) -> list[str]:
    """Say what was put right in how many frames of so many pixels."""
    pairs = [(name, mend) for name, mend in zip(names, mends, strict=True) if mend]
    notes = []
    filled = [(name, mend) for name, mend in pairs if len(mend.invalid)]
    if filled:
        shares = [100.0 * mend.invalid_pixels / pixels for _, mend in filled]
        values = [f"{value:g}" for value, _ in Counter(mend.value for _, mend in filled).most_common(3)]
        notes.append(
            f"filler: {len(filled)} of the frames have areas of one exact number ({', '.join(values)}), "
            f"{_range(shares)} % of the frame, such as {Path(filled[0][0]).name}; "
            "they count as no data"
        )
    wrapped = [(name, mend) for name, mend in pairs if len(mend.wrapped)]
    if wrapped:
        count = sum(mend.wrapped_pixels for _, mend in wrapped)
        notes.append(
            f"wrapped: {len(wrapped)} of the frames are signed 16-bit numbers in which {count} pixels above 32767 came "
            f"back negative, such as {Path(wrapped[0][0]).name}; 65536 was added to those. Have the program that wrote "
            "them write BZERO = 32768"
        )
    floored = [(name, mend) for name, mend in pairs if mend.floors]
    if floored:
        shares = [100.0 * max(share for _, _, share in mend.floors if share == share) for _, mend in floored]
        notes.append(
            f"cut off: {_range(shares)} % of the samples of {len(floored)} frames "
            f"have the lowest number of their frame, such as {Path(floored[0][0]).name}: the low side of its noise "
            "is lost; they count as the mean of what was below. Add a pedestal when subtracting darks"
        )
    return notes


def _range(shares: list[float]) -> str:
    lowest, highest = _percent(min(shares)), _percent(max(shares))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _percent(value: float) -> str:
    return f"{value:.1f}" if value < 10.0 else f"{value:.0f}"
