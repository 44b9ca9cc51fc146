"""What one stack may take of the machine: decided before it starts, a value like any other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from zemosaic_phase3.engine.slab_plan import OUTPUT_MAPS

GPU_BYTES: Final = 512 * 1024**2  # a chunk every card that runs CUDA 12 can hold


@dataclass(frozen=True)
class Resources:
    """Threads, memory and slab heights of one stack; None leaves the choice to the engine. None changes a value.

    Attributes
    ----------
    workers : int
        Threads of the host.
    memory : int or None
        Bytes of the host's memory; None: half of what is available.
    rows : int or None
        No slab on the CPU is higher.
    gpu_memory : int or None
        Bytes of the card's memory; None: what the stack has a use for, if the card has it free.
    gpu_rows : int or None
        No slab on the GPU is higher.
    cards : tuple of int
        Cards that share a stack on the GPU, by CUDA's numbers; empty: CUDA's current device alone.
    copied_maps : int
        Maps of the result, the image among them, that are written to a file afterwards: each is copied for it.
    """

    workers: int = 1
    memory: int | None = None
    rows: int | None = None
    gpu_memory: int | None = None
    gpu_rows: int | None = None
    cards: tuple[int, ...] = ()
    copied_maps: int = OUTPUT_MAPS

    def tighter(self) -> Resources:
        """Return the same with half of the card's memory and half the rows there, for a second attempt."""
        rows = self.gpu_rows or self.rows
        return replace(
            self,
            gpu_memory=max(1, (self.gpu_memory or GPU_BYTES) // 2),
            gpu_rows=max(1, rows // 2) if rows else None,
        )
