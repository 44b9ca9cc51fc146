"""Whether a tile that the GPU made can be right. Needs no GPU, nor the engine of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

COMPARED_ROWS: Final = 12  # of a suspicious tile; spread over its height


def result_fault(
    image: object, shape: tuple[int, ...], coverage: np.ndarray | None, rows_by_cpu: Callable[[slice], np.ndarray]
) -> str:
    """Return what is wrong with an image that a GPU engine returned, empty if it can be a stack of the frames.

    A tile may rightly hold no valid pixel, or zeros alone. The CPU stacks a few rows of such a one, to compare. What
    the engine counted speaks against it, but not for it: frames that never reached the card count nothing.

    Parameters
    ----------
    image : object
        What was returned.
    shape : tuple of int
        What the image must have; it must be a float32 array.
    coverage : ndarray of int, that shape, or None
        Valid samples of each pixel as the engine counted them; None where it says nothing.
    rows_by_cpu : callable
        Stacks a range of rows on the CPU.
    """
    if not isinstance(image, np.ndarray) or image.shape != shape or image.dtype != np.float32:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        return f"the GPU returned {found} where float32 {shape} was due"
    finite = np.isfinite(image)
    only_zeros = finite.any() and not np.any(image, where=finite)
    if not only_zeros and finite.any():
        return ""
    what = "zeros only" if only_zeros else "no valid pixel"
    if coverage is not None and not only_zeros and coverage.any():
        return f"the GPU returned {what}, although it counted valid samples"
    for row in np.unique(np.linspace(0, shape[0] - 1, COMPARED_ROWS).astype(int)).tolist():
        rows = slice(row, row + 1)
        if not np.array_equal(rows_by_cpu(rows), image[rows], equal_nan=True):
            return f"the GPU returned {what}, although the frames hold more"
    return ""
