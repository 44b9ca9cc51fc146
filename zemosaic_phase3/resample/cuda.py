"""From the bytes of a frame as stored to samples on the reference grid, on the GPU: the CUDA text and what it is given.

The text is ``resample/warp.cu`` with ``resample/decode.cu``, the twins of :mod:`resample.warp` and of what reads files,
and for a drizzle ``resample/drizzle.cu``, the twin of :mod:`resample.drizzle`.
It is plain C++ but for the words of CUDA, so a host compiler can build it too, which is how its arithmetic is tested
without a GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np

from zemosaic_phase3.registration.distortion import STEP
from zemosaic_phase3.runtime.cuda_text import constants, joined

SWAPPED: Final = 1  # bits of ``stored``: bytes in the other order than this machine's
FLIPPED: Final = 2  # 16-bit numbers with the top bit inverted: signed, 32768 to be added
SIGNED: Final = 4  # 16-bit numbers that are signed and mean what they say
FLOAT: Final = 8  # float32; without it 16-bit numbers
PLANAR: Final = 16  # all rows of one plane, then those of the next
MOSAIC: Final = 32  # a mosaic that is not to be demosaiced

RESAMPLED: Final = 0  # values of ``place``: goes through the interpolation
IN_PLACE: Final = 1  # lies on the reference grid already
OUTSIDE: Final = 2  # does not touch the slab

FRAME_ROWS: Final = np.dtype(
    [
        ("raw_at", np.int64),  # first byte of its rows in the staging buffer
        ("block_at", np.int64),  # first element of its rows in the scratch of demosaiced blocks
        ("field_at", np.int64),  # first element of its distortion field among those of all frames; -1: it has none
        ("raw_first", np.int32),  # first row that is staged
        ("raw_rows", np.int32),  # rows that are staged
        ("first", np.int32),  # rows of the block: first ...
        ("last", np.int32),  # ... to last - 1
        ("stored", np.int32),  # bits above
        ("red_row", np.int32),  # place of red in the 2x2 cell; -1 when the frame is no mosaic
        ("red_col", np.int32),
        ("place", np.int32),
        ("matrix", np.float64, 9),  # reference pixel to frame pixel
        ("scale", np.float64, 3),  # by channel
        ("offset", np.float64, 3),
    ],
    align=True,
)
"""One frame of one slab, as the kernels take it; twin of ``struct FrameRows``."""


@cache
def source() -> str:
    """Return the text of the kernels ``open_rows`` and ``resample_rows``.

    For both, ``blockIdx.y`` counts the frames of a batch.
    """
    return _constants() + joined("resample/warp.cu")


@cache
def drizzle_source() -> str:
    """Return the text of the same kernels and of ``drizzle_rows``."""
    from zemosaic_phase3.resample.drizzle import PARTS

    return _constants() + constants({"PARTS": PARTS}) + joined("resample/drizzle.cu")


def _constants() -> str:
    from zemosaic_phase3.resample.interpolation import PHASES

    values = {
        "SWAPPED": SWAPPED,
        "FLIPPED": FLIPPED,
        "SIGNED": SIGNED,
        "FLOAT": FLOAT,
        "PLANAR": PLANAR,
        "MOSAIC": MOSAIC,
        "RESAMPLED": RESAMPLED,
        "IN_PLACE": IN_PLACE,
        "OUTSIDE": OUTSIDE,
        "PHASES": PHASES,
        "FIELD_STEP": STEP,
    }
    return constants(values)
