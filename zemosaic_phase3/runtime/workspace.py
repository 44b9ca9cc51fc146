"""Memory that a thread uses again for one frame after the other.

A fresh array of megabytes costs more than what is written into it: the system clears its pages one by one, and the
threads of a process wait for each other meanwhile.
"""

from __future__ import annotations

from math import prod

import numpy as np


class Workspace:
    """Arrays of one thread, by what they are for; what is in one stays until its role is asked for again."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, role: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """Return an array whose content is undefined; the same memory as before where that is large enough."""
        size = prod(shape) * np.dtype(dtype).itemsize
        kept = self._kept.get(role)
        if kept is None or kept.size < size:
            kept = np.empty(size, np.uint8)
            self._kept[role] = kept
        return kept[:size].view(dtype).reshape(shape)
