"""Masks that grow."""

from __future__ import annotations

import numpy as np


def dilated(mask: np.ndarray, reach: int) -> np.ndarray:
    """Set every pixel that is at most ``reach`` rows and ``reach`` columns from one that is set."""
    grown = np.pad(mask, reach)
    for _ in range(2):  # rows, then columns
        seen = 1  # neighbouring pixels that an element has taken up; they double with each step
        while seen < 2 * reach + 1:
            step = min(seen, 2 * reach + 1 - seen)
            grown = grown[:-step] | grown[step:]
            seen += step
        grown = grown.T
    return grown
